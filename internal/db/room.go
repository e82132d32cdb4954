package db

import (
	"context"
	"database/sql"
	"fmt"
	"os"
)

// A disk that is full must not keep anybody from logging in and deleting files, nor a
// session from ending. So the database has room of its own: free pages in its file, and
// a write-ahead log that is as large, is written over from its beginning again and
// again, and stays when the database is closed. Changes then need nothing of the disk.

// roomPages is how many pages of each there are. The log is copied into the database
// after half as many, so that the other half is always left.
const roomPages = 512

// MakeRoom makes that room, or makes it again when half of it is used up. It is the
// only thing that needs the disk, and should be called now and then.
func MakeRoom(ctx context.Context, d *sql.DB) error {
	var free, size, left int
	var path string
	err := d.QueryRowContext(ctx, `SELECT f.freelist_count, p.page_size, l.file, (SELECT count(*) FROM sqlite_master WHERE name = 'room')
		FROM pragma_freelist_count f, pragma_page_size p, pragma_database_list l WHERE l.name = 'main'`).Scan(&free, &size, &path, &left)
	if err != nil {
		return fmt.Errorf("look for room in the database: %w", err)
	}
	if log, err := os.Stat(path + "-wal"); err == nil && log.Size() >= int64(roomPages*size) && free >= roomPages/2 && left == 0 {
		return nil
	}
	err = InTx(ctx, d, func(tx *sql.Tx) error {
		if left > 0 { // of an attempt that was cut short
			return nil
		}
		_, err := tx.ExecContext(ctx, `CREATE TABLE room (filler BLOB)`)
		if err == nil {
			_, err = tx.ExecContext(ctx, `INSERT INTO room VALUES (zeroblob(?))`, roomPages*size)
		}
		return err
	})
	if err == nil {
		_, err = d.ExecContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`) // the file gets its pages
	}
	if err == nil {
		err = InTx(ctx, d, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `DROP TABLE IF EXISTS room`)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("make room in the database: %w", err)
	}
	return nil
}
