-- +goose Up
-- Images that were built from the Dockerfile in a project's workspace. One whose
-- project is gone is still somebody's to remove.
CREATE TABLE images (
	id         INTEGER PRIMARY KEY,
	project    INTEGER REFERENCES projects(id) ON DELETE SET NULL,
	owner      TEXT NOT NULL,
	name       TEXT NOT NULL,                -- the project's
	ref        TEXT NOT NULL UNIQUE,         -- the engine's name for it
	dockerfile TEXT NOT NULL,                -- hash of it and .dockerignore
	content    TEXT NOT NULL,                -- hash of all that was sent
	size       INTEGER NOT NULL,             -- bytes, its base image's included
	took       INTEGER NOT NULL,             -- milliseconds
	built      INTEGER NOT NULL
) STRICT;
CREATE INDEX images_by_project ON images(owner, name, built);
