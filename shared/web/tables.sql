-- What every service's database has for its web role: who may use it, and what one request leaves behind.

-- The truth in followup's database, a replica elsewhere (filled from the topic staff).
CREATE TABLE staff (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    email text NOT NULL UNIQUE,                 -- case-folded
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('agent', 'lead', 'admin', 'viewer')),
    disabled boolean NOT NULL DEFAULT false,
    epoch integer NOT NULL DEFAULT 0            -- sessions of another epoch are over
);
CREATE TABLE apikey (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    name text NOT NULL,
    hash bytea NOT NULL UNIQUE,                 -- SHA-256 of the key
    scopes text[] NOT NULL,
    disabled boolean NOT NULL DEFAULT false,
    created_by uuid
);

-- The reply to a write that carried an Idempotency-Key; committed together with what the write did.
CREATE TABLE idempotency (
    key bytea PRIMARY KEY,                      -- hash of who asked, what for, and the key
    request bytea NOT NULL,                     -- hash of the body: the same key with another body is refused
    status integer,
    content_type text,
    headers jsonb NOT NULL DEFAULT '{}',
    body bytea,
    at timestamptz NOT NULL
);
CREATE INDEX idempotency_at ON idempotency (at);

-- Counters of rate limits: one row per key and window. A crash may forget them.
CREATE UNLOGGED TABLE rate (
    key bytea NOT NULL,
    until timestamptz NOT NULL,
    count integer NOT NULL,
    PRIMARY KEY (key, until)
);
CREATE INDEX rate_until ON rate (until);
