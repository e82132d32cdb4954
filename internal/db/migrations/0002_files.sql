-- +goose Up
-- A project may have, beside its session, one that only moves files: without a
-- GPU, and gone soon after.
ALTER TABLE sessions ADD COLUMN files INTEGER NOT NULL DEFAULT 0;
DROP INDEX one_session_per_project;
CREATE UNIQUE INDEX one_session_per_project ON sessions(project, files) WHERE ended = 0;
