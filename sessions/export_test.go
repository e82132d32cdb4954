package sessions

import (
	"context"
	"database/sql"
)

// Admit and Doubt are what a transaction on the line does whose commit nobody
// knows to have happened.
func (m *Manager) Admit(ctx context.Context, tx *sql.Tx, session string) (bool, error) {
	return m.admit(ctx, tx, session)
}
func (m *Manager) Doubt() { m.doubtful() }
