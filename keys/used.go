package keys

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"time"

	"github.com/ds01/ds01/internal/db"
	"golang.org/x/crypto/ssh"
)

// Used notes, in memory, that a login has proved key. It is written each
// minute and by Close, so that a login costs no disk write.
func (s *Store) Used(key ssh.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[ssh.FingerprintSHA256(key)] = time.Now()
}

// Close writes what Used has noted and stops doing so. Call it once.
func (s *Store) Close() error {
	close(s.stop)
	s.done.Wait()
	return s.flush()
}

func (s *Store) flushEachMinute() {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = s.flush() // tried again in a minute, and by Close, which tells
		case <-s.stop:
			return
		}
	}
}

// flush writes the times of last use. What it cannot write it keeps.
func (s *Store) flush() error {
	s.mu.Lock()
	used := maps.Clone(s.used)
	s.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	// It belongs to no request: those who logged in may be gone.
	ctx := context.Background()
	err := db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		for fingerprint, t := range used {
			_, err := tx.ExecContext(ctx, `UPDATE keys SET last_used = max(last_used, ?) WHERE fingerprint = ?`,
				db.Millis(t), fingerprint)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write when keys were last used: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.used, func(fingerprint string, t time.Time) bool { return t.Equal(used[fingerprint]) })
	return nil
}
