-- +goose Up
-- Which ends of a session have been announced, for when: JSON, by clock. A
-- restart of the gateway neither forgets nor repeats them.
ALTER TABLE sessions ADD COLUMN announced TEXT NOT NULL DEFAULT '';
