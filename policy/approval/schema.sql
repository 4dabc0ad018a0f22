-- Tickets of Sallyport's approvals, version 1. Times are nanoseconds since 1970 UTC, 0 for never.

CREATE TABLE tickets (
  id          TEXT    NOT NULL PRIMARY KEY,
  short       TEXT    NOT NULL UNIQUE,
  digest      TEXT    NOT NULL,
  run         TEXT    NOT NULL,
  rev         INTEGER NOT NULL,
  state       TEXT    NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'expired', 'cancelled', 'superseded',
                                                'consumed', 'lapsed', 'revoked')),
  created     INTEGER NOT NULL,
  ends        INTEGER NOT NULL, -- when a live ticket changes by itself
  decided     INTEGER NOT NULL DEFAULT 0,
  grant_until INTEGER NOT NULL DEFAULT 0,
  ended       INTEGER NOT NULL DEFAULT 0,
  by          TEXT,             -- JSON: who cancelled or revoked it
  why         TEXT    NOT NULL DEFAULT '',
  used_by     TEXT    NOT NULL DEFAULT '',
  outcome     TEXT    NOT NULL DEFAULT '',
  body        TEXT    NOT NULL  -- JSON: what does not change
) STRICT;

-- One live ticket a request: the same request sent again finds it.
CREATE UNIQUE INDEX tickets_live ON tickets (digest) WHERE state IN ('pending', 'approved');
CREATE INDEX tickets_ends ON tickets (ends) WHERE state IN ('pending', 'approved');
CREATE INDEX tickets_denied ON tickets (digest, ended) WHERE state = 'denied';
CREATE INDEX tickets_run ON tickets (run) WHERE state = 'pending';
CREATE INDEX tickets_ended ON tickets (ended) WHERE ended > 0;
CREATE INDEX tickets_created ON tickets (created);

-- Whoever writes here, no ticket comes back from its end, and none is used without a yes.
CREATE TRIGGER tickets_move BEFORE UPDATE OF state ON tickets
WHEN NOT (old.state = 'pending'  AND new.state IN ('pending', 'approved', 'denied', 'expired', 'cancelled', 'superseded')
       OR old.state = 'approved' AND new.state IN ('consumed', 'lapsed', 'revoked', 'superseded'))
BEGIN SELECT RAISE(ABORT, 'no such change of state'); END;

CREATE TRIGGER tickets_bound BEFORE UPDATE OF id, short, digest, run, created, body ON tickets
BEGIN SELECT RAISE(ABORT, 'this does not change'); END;

CREATE TABLE votes (
  ticket TEXT    NOT NULL REFERENCES tickets (id) ON DELETE CASCADE,
  uid    INTEGER NOT NULL,
  rev    INTEGER NOT NULL, -- of the ticket, with this vote
  body   TEXT    NOT NULL, -- JSON
  PRIMARY KEY (ticket, uid) -- one human, one vote
) STRICT, WITHOUT ROWID;

CREATE TRIGGER votes_stay BEFORE UPDATE ON votes
BEGIN SELECT RAISE(ABORT, 'a vote does not change'); END;
