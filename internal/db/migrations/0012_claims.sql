-- +goose Up
-- Who has added a key, and what must hold for it to let in: a key is worth no
-- more than the login that added it.
ALTER TABLE keys ADD COLUMN added_by TEXT NOT NULL DEFAULT '';   -- a key's fingerprint, or an account of the host
ALTER TABLE keys ADD COLUMN voucher BLOB NOT NULL DEFAULT x'';   -- a certificate, or a key of the site's directory; x'' is nothing

-- Keys that users say are theirs, until they log in with them or the time is up. A
-- claim lets nobody in, and keeps nobody else from having the key.
CREATE TABLE claims (
	user        TEXT NOT NULL REFERENCES users(name) ON DELETE CASCADE,
	fingerprint TEXT NOT NULL,
	code        TEXT NOT NULL,             -- to be named in the login that proves the key
	until       INTEGER NOT NULL,
	blob        BLOB NOT NULL,
	comment     TEXT NOT NULL DEFAULT '',
	expires     INTEGER NOT NULL DEFAULT 0,
	added       INTEGER NOT NULL,
	added_by    TEXT NOT NULL DEFAULT '',
	voucher     BLOB NOT NULL DEFAULT x'',
	PRIMARY KEY (user, fingerprint)
) STRICT;
