package db

import (
	"context"
	"database/sql"
)

// A Querier is a database or a transaction on it.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// A Row is a *sql.Row or *sql.Rows.
type Row interface{ Scan(dest ...any) error }

// Select returns what scan makes of each row that query finds, in their order.
// Its errors are the database's and scan's, as they are.
func Select[T any](ctx context.Context, q Querier, scan func(Row) (T, error), query string, args ...any) (all []T, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has what matters
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// Value scans a row's only column, for Select.
func Value[T any](row Row) (v T, err error) {
	err = row.Scan(&v)
	return v, err
}
