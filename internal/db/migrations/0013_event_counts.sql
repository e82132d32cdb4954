-- +goose Up
-- An event stands for so many: those of a user who causes too many are counted.
ALTER TABLE events ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
CREATE INDEX events_by_user ON events(user, at);
CREATE INDEX events_by_time ON events(at);
