-- +goose Up
-- A project may ask for one MIG instance, which counts as its part of a GPU.
ALTER TABLE projects ADD COLUMN profile TEXT NOT NULL DEFAULT ''; -- '' means whole GPUs
ALTER TABLE leases ADD COLUMN share REAL NOT NULL DEFAULT 1;      -- of a whole GPU
CREATE INDEX leases_by_release ON leases(released);

-- Who waits for GPUs. A session that waits has no row in sessions yet.
CREATE TABLE waiters (
	session TEXT NOT NULL UNIQUE,        -- what it will be
	owner   TEXT NOT NULL,               -- whose limits and GPUs it counts for
	project TEXT NOT NULL,               -- as its owner calls it
	count   INTEGER NOT NULL,
	profile TEXT NOT NULL,
	most    REAL NOT NULL,               -- what the owner may hold at once
	weight  REAL NOT NULL,
	since   INTEGER NOT NULL,
	gone    INTEGER NOT NULL DEFAULT 0,  -- when it left; its place is kept for a while
	PRIMARY KEY (owner, project)
) STRICT;
