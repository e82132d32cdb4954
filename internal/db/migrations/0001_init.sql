-- +goose Up
-- Times are Unix milliseconds, UTC; 0 means never. Names are checked in code.

CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value TEXT NOT NULL
) STRICT;

CREATE TABLE users (
	name     TEXT PRIMARY KEY,
	role     TEXT NOT NULL,
	uid      INTEGER NOT NULL UNIQUE,
	gid      INTEGER NOT NULL,
	disabled INTEGER NOT NULL DEFAULT 0,
	created  INTEGER NOT NULL
) STRICT;

CREATE TABLE keys (
	fingerprint TEXT PRIMARY KEY, -- SHA256:…
	user        TEXT NOT NULL REFERENCES users(name) ON DELETE CASCADE,
	type        TEXT NOT NULL,
	blob        BLOB NOT NULL,    -- SSH wire format, RFC 4253 §6.6
	comment     TEXT NOT NULL DEFAULT '',
	expires     INTEGER NOT NULL DEFAULT 0,
	added       INTEGER NOT NULL,
	last_used   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX keys_by_user ON keys(user);

CREATE TABLE projects (
	id      INTEGER PRIMARY KEY,
	owner   TEXT NOT NULL REFERENCES users(name),
	name    TEXT NOT NULL,
	image   TEXT NOT NULL DEFAULT '', -- '' means the role's or the site's
	gpus    INTEGER NOT NULL DEFAULT 1,
	created INTEGER NOT NULL,
	UNIQUE (owner, name)
) STRICT;

CREATE TABLE members (
	project   INTEGER NOT NULL REFERENCES projects(id) ON DELETE CASCADE,
	user      TEXT NOT NULL REFERENCES users(name) ON DELETE CASCADE,
	read_only INTEGER NOT NULL DEFAULT 0,
	added     INTEGER NOT NULL,
	PRIMARY KEY (project, user)
) STRICT;

-- One row per session, kept after its end so that the next login can say why.
CREATE TABLE sessions (
	id         TEXT PRIMARY KEY,
	project    INTEGER REFERENCES projects(id) ON DELETE SET NULL,
	owner      TEXT NOT NULL,
	name       TEXT NOT NULL,                -- the project's
	image      TEXT NOT NULL,
	state      TEXT NOT NULL CHECK (state IN ('launching', 'active', 'idle', 'retiring', 'ended')),
	launched   INTEGER NOT NULL,
	idle_since INTEGER NOT NULL DEFAULT 0,
	ended      INTEGER NOT NULL DEFAULT 0,
	reason     TEXT NOT NULL DEFAULT '',     -- why it retires or ended
	told       INTEGER NOT NULL DEFAULT 0    -- 1 once a login has shown the reason
) STRICT;
CREATE UNIQUE INDEX one_session_per_project ON sessions(project) WHERE ended = 0;
CREATE INDEX sessions_by_owner ON sessions(owner, name, launched);

-- One row per GPU and session. The rule that a GPU has one holder is this
-- file's unique index and nothing else.
CREATE TABLE leases (
	session  TEXT NOT NULL REFERENCES sessions(id),
	gpu      TEXT NOT NULL,                  -- UUID, as NVML gives it
	idx      INTEGER NOT NULL,               -- NVML index when lent, for people
	owner    TEXT NOT NULL,
	project  TEXT NOT NULL,
	lent     INTEGER NOT NULL,
	released INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (session, gpu)
) STRICT;
CREATE UNIQUE INDEX one_holder_per_gpu ON leases(gpu) WHERE released = 0;
CREATE INDEX leases_by_owner ON leases(owner) WHERE released = 0;

CREATE TABLE events (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	at      INTEGER NOT NULL,
	kind    TEXT NOT NULL,                   -- session.active, project.created, …
	user    TEXT NOT NULL DEFAULT '',        -- who did it; '' is ds01 itself
	project TEXT NOT NULL DEFAULT '',        -- owner.name
	session TEXT NOT NULL DEFAULT '',
	detail  TEXT NOT NULL DEFAULT ''
) STRICT;
