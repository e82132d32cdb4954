-- +goose Up
-- Devices that are not lent, until an admin returns them.
CREATE TABLE unhealthy (
	gpu   TEXT PRIMARY KEY,          -- UUID
	idx   INTEGER NOT NULL,          -- NVML index at the time, for people
	name  TEXT NOT NULL,             -- the model
	cause TEXT NOT NULL,
	taken TEXT NOT NULL DEFAULT '',  -- the admin who took it; '' is ds01 itself
	since INTEGER NOT NULL
) STRICT;

-- How much of a lease was used: milliseconds in which the device computed, of
-- those in which it was looked at. Sums, which are added to while it lasts.
ALTER TABLE leases ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN watched INTEGER NOT NULL DEFAULT 0;
