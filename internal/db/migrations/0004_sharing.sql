-- +goose Up
-- A project may have sessions that only read its workspace, too. Each session
-- counts for its holder: the project's owner, or of one that only reads, the
-- member who launched it.
ALTER TABLE sessions ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN holder TEXT NOT NULL DEFAULT '';
UPDATE sessions SET holder = owner;
CREATE INDEX sessions_by_holder ON sessions(holder) WHERE ended = 0;
DROP INDEX one_session_per_project;
CREATE UNIQUE INDEX one_session_per_project ON sessions(project, files, read_only) WHERE ended = 0;
