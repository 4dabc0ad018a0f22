package approval

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// schemaVersion is in the file's user_version, and applicationID ("Slyp") in its application_id.
const (
	schemaVersion = 1
	applicationID = 0x536c7970
)

//go:embed schema.sql
var schema string

// SQLite is the Store of one host: a file, with a write-ahead log beside it.
type SQLite struct {
	write *sql.DB // one connection; every transaction takes the write lock at once
	read  *sql.DB
}

var _ Store = (*SQLite)(nil)

// OpenSQLite opens the store in a file, readable by its owner only, and makes it if there is none. It refuses a file that
// is damaged, is not its own, or was made by a newer version.
func OpenSQLite(path string) (*SQLite, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// SQLite gives the files beside it the mode of this one.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("approval store: %w", err)
	}
	s := &SQLite{}
	// FULL, because a vote that was acknowledged must survive a power loss: in WAL mode, NORMAL may lose the last ones
	// (sqlite.org/pragma.html#pragma_synchronous).
	if s.write, err = openDB(path, "immediate", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "trusted_schema(0)"); err == nil {
		s.write.SetMaxOpenConns(1)
		if err = s.prepare(); err == nil {
			s.read, err = openDB(path, "deferred", "query_only(1)", "trusted_schema(0)")
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("approval store %s: %w", path, err), s.Close())
	}
	s.read.SetMaxOpenConns(4)
	return s, nil
}

func openDB(path, lock string, pragmas ...string) (*sql.DB, error) {
	// Five seconds is beyond any transaction here; who waits longer waits for another program that holds the file.
	q := url.Values{"_txlock": {lock}, "_pragma": append([]string{"busy_timeout(5000)"}, pragmas...)}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
}

// prepare makes the schema in an empty file, or checks that it is the one known here.
func (s *SQLite) prepare() error {
	tx, err := s.write.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var version, app, objects int
	var check string
	if err := errors.Join(
		tx.QueryRow("PRAGMA user_version").Scan(&version),
		tx.QueryRow("PRAGMA application_id").Scan(&app),
		tx.QueryRow("SELECT count(*) FROM sqlite_schema").Scan(&objects),
		tx.QueryRow("PRAGMA quick_check(1)").Scan(&check),
	); err != nil {
		return err
	}
	switch {
	case check != "ok":
		return fmt.Errorf("the file is damaged: %s", check)
	case objects == 0 && version == 0:
		_, err := tx.Exec(schema + fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d;", schemaVersion, applicationID))
		if err != nil {
			return fmt.Errorf("make schema: %w", err)
		}
		return tx.Commit()
	case app != applicationID:
		return errors.New("the file is another program's")
	case version != schemaVersion:
		return fmt.Errorf("the file has version %d, and this program knows %d", version, schemaVersion)
	}
	return nil
}

// Close closes the file.
func (s *SQLite) Close() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

func (s *SQLite) Create(ctx context.Context, t Ticket, max int, deniedAfter time.Time) (filed Ticket, created bool, err error) {
	t.Rev, t.State = 1, Pending
	body, err := json.Marshal(t)
	if err != nil {
		return Ticket{}, false, err
	}
	err = s.change(ctx, func(tx *sql.Tx) error {
		filed, err = current(ctx, tx, t.Digest, deniedAfter)
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		var pending int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM tickets WHERE run = ? AND state = 'pending' AND ends > ?",
			t.Run, nanos(t.Created)).Scan(&pending); err != nil {
			return err
		}
		if pending >= max {
			return ErrTooMany
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO tickets (id, short, digest, run, rev, state, created, ends, body)
			VALUES (?, ?, ?, ?, 1, 'pending', ?, ?, ?)`,
			t.ID, t.Short, t.Digest, t.Run, nanos(t.Created), nanos(t.PendingUntil), string(body)); err != nil {
			return err
		}
		created = true
		filed, err = get(ctx, tx, t.ID)
		return err
	})
	if err != nil {
		return Ticket{}, false, err
	}
	return filed, created, nil
}

func (s *SQLite) Current(ctx context.Context, digest string, deniedAfter time.Time) (Ticket, error) {
	return current(ctx, s.read, digest, deniedAfter)
}

func current(ctx context.Context, q querier, digest string, deniedAfter time.Time) (Ticket, error) {
	return one(query(ctx, q, `WHERE digest = ? AND (state IN ('pending', 'approved') OR state = 'denied' AND ended > ?)
		ORDER BY state = 'denied', ended DESC LIMIT 1`, digest, nanos(deniedAfter)))
}

func (s *SQLite) Get(ctx context.Context, id string) (Ticket, error) { return get(ctx, s.read, id) }

func get(ctx context.Context, q querier, id string) (Ticket, error) {
	return one(query(ctx, q, "WHERE id = ?", id))
}

func (s *SQLite) Find(ctx context.Context, ref Ref) ([]Ticket, error) {
	column, prefix := "id", ref.ID
	if ref.Short != "" {
		column, prefix = "short", ref.Short
	}
	if prefix == "" {
		return nil, nil
	}
	// A range rather than LIKE, which has wildcards: "~" sorts after every character of an id.
	return query(ctx, s.read, "WHERE "+column+" BETWEEN ? AND ? ORDER BY created DESC LIMIT 2", prefix, prefix+"~")
}

func (s *SQLite) List(ctx context.Context, f Filter) ([]Ticket, error) {
	where, args := "WHERE 1", []any{}
	if f.States != nil {
		where += " AND state IN (''" + strings.Repeat(", ?", len(f.States)) + ")"
		for _, st := range f.States {
			args = append(args, string(st))
		}
	}
	if f.Run != "" {
		where, args = where+" AND run = ?", append(args, f.Run)
	}
	if !f.After.IsZero() {
		where, args = where+" AND state IN ('pending', 'approved') AND ends > ?", append(args, nanos(f.After))
	}
	return query(ctx, s.read, where+" ORDER BY created DESC, id DESC LIMIT ?", append(args, max(f.Limit, 0))...)
}

func (s *SQLite) Due(ctx context.Context, n int) ([]Ticket, error) {
	return query(ctx, s.read, "WHERE state IN ('pending', 'approved') ORDER BY ends LIMIT ?", n)
}

func (s *SQLite) Move(ctx context.Context, id string, rev int64, c Change) (t Ticket, err error) {
	if c.To == Consumed {
		return Ticket{}, ErrConflict
	}
	err = s.change(ctx, func(tx *sql.Tx) error {
		if t, err = get(ctx, tx, id); err != nil {
			return err
		}
		if !t.State.may(c.To) {
			return ErrConflict
		}
		from := t.State
		c.apply(&t)
		by, err := json.Marshal(t.By)
		if err != nil {
			return err
		}
		r, err := tx.ExecContext(ctx, `UPDATE tickets SET rev = ?, state = ?, ends = ?, decided = ?, grant_until = ?, ended = ?,
			by = ?, why = ? WHERE id = ? AND rev = ? AND state = ?`, t.Rev, string(t.State), nanos(t.End()), nanos(t.Decided),
			nanos(t.GrantUntil), nanos(t.Ended), string(by), t.Why, id, rev, string(from))
		if err := swapped(r, err); err != nil || c.Vote == nil {
			return err
		}
		vote, err := json.Marshal(c.Vote)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO votes (ticket, uid, rev, body) VALUES (?, ?, ?, ?)", id, c.Vote.UID, t.Rev, string(vote))
		return err
	})
	if err != nil {
		return Ticket{}, err
	}
	return t, nil
}

func (s *SQLite) Consume(ctx context.Context, id, digest, session string, at time.Time) (t Ticket, err error) {
	err = s.change(ctx, func(tx *sql.Tx) error {
		if _, err := get(ctx, tx, id); err != nil {
			return err
		}
		r, err := tx.ExecContext(ctx, `UPDATE tickets SET rev = rev + 1, state = 'consumed', ends = 0, ended = ?, used_by = ?, outcome = ?
			WHERE id = ? AND digest = ? AND state = 'approved' AND grant_until > ?`, nanos(at), session, Forwarded, id, digest, nanos(at))
		if err := swapped(r, err); err != nil {
			return err
		}
		t, err = get(ctx, tx, id)
		return err
	})
	if err != nil {
		return Ticket{}, err
	}
	return t, nil
}

func (s *SQLite) Finish(ctx context.Context, id, outcome string) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		if _, err := get(ctx, tx, id); err != nil {
			return err
		}
		r, err := tx.ExecContext(ctx, "UPDATE tickets SET rev = rev + 1, outcome = ? WHERE id = ? AND outcome = ?", outcome, id, Forwarded)
		return swapped(r, err)
	})
}

func (s *SQLite) Purge(ctx context.Context, before time.Time, n int) (gone int, err error) {
	err = s.change(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, `DELETE FROM tickets WHERE id IN (SELECT id FROM tickets
			WHERE ended > 0 AND ended < ? AND state NOT IN ('pending', 'approved') LIMIT ?)`, nanos(before), n)
		if err != nil {
			return err
		}
		rows, err := r.RowsAffected()
		gone = int(rows)
		return err
	})
	return gone, err
}

// change runs f in a transaction that has the write lock from its start, and commits it. What the schema forbids is a
// conflict.
func (s *SQLite) change(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err = f(tx); err == nil {
		err = tx.Commit()
	}
	var e *sqlite.Error
	if errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_CONSTRAINT {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return err
}

// swapped makes a conflict of an UPDATE that found nothing to change.
func swapped(r sql.Result, err error) error {
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return ErrConflict
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// query reads the tickets that a clause selects.
func query(ctx context.Context, q querier, clause string, args ...any) ([]Ticket, error) {
	rows, err := q.QueryContext(ctx, `SELECT rev, state, decided, grant_until, ended, by, why, used_by, outcome, body,
		(SELECT json_group_array(json(v.body) ORDER BY v.rev) FROM votes v WHERE v.ticket = tickets.id) FROM tickets `+clause, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []Ticket
	for rows.Next() {
		var rev, decided, grantUntil, ended int64
		var state, why, usedBy, outcome, body, votes string
		var by sql.NullString
		if err := rows.Scan(&rev, &state, &decided, &grantUntil, &ended, &by, &why, &usedBy, &outcome, &body, &votes); err != nil {
			return nil, err
		}
		var t Ticket
		err := errors.Join(json.Unmarshal([]byte(body), &t), json.Unmarshal([]byte(votes), &t.Votes))
		if by.Valid {
			err = errors.Join(err, json.Unmarshal([]byte(by.String), &t.By))
		}
		if err != nil {
			return nil, fmt.Errorf("ticket in store: %w", err)
		}
		if len(t.Votes) == 0 {
			t.Votes = nil
		}
		t.Rev, t.State, t.Why, t.UsedBy, t.Outcome = rev, State(state), why, usedBy, outcome
		t.Decided, t.GrantUntil, t.Ended = at(decided), at(grantUntil), at(ended)
		found = append(found, t)
	}
	return found, rows.Err()
}

func one(found []Ticket, err error) (Ticket, error) {
	if err != nil {
		return Ticket{}, err
	}
	if len(found) == 0 {
		return Ticket{}, ErrNotFound
	}
	return found[0], nil
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func at(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
