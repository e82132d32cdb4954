-- +goose Up
-- A session may be kept on request: until then neither its idle time nor its
-- age ends it.
ALTER TABLE sessions ADD COLUMN kept_until INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN kept_why TEXT NOT NULL DEFAULT '';
