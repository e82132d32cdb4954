-- +goose Up
-- Whose files may still lie about: nobody else gets their uid, and they do if
-- they come back.
CREATE TABLE former_users (
	name TEXT PRIMARY KEY,
	uid  INTEGER NOT NULL,
	gid  INTEGER NOT NULL
) STRICT;
