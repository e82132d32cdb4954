-- +goose Up
-- Which ends of a session have been announced, for when: JSON, by clock. A
-- restart of the gateway neither forgets nor repeats them.
ALTER TABLE sessions ADD COLUMN announced TEXT NOT NULL DEFAULT '';

-- Since when a session is kept.
ALTER TABLE sessions ADD COLUMN kept_since INTEGER NOT NULL DEFAULT 0;
UPDATE sessions SET kept_since = launched WHERE kept_until > 0;
