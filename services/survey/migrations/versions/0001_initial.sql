-- Survey owns the company, customers, programs, invitations, responses and permits.

CREATE TABLE company (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL,
    name text NOT NULL,
    sender_name text NOT NULL,
    sender_email text NOT NULL,
    reply_to text NOT NULL,
    postal_address text NOT NULL,
    colour text NOT NULL,                       -- '#rrggbb'
    language text NOT NULL,                     -- 'en' | 'de' | 'es'
    time_zone text NOT NULL,                    -- IANA name
    business_hours jsonb NOT NULL,              -- {"mon": ["09:00", "17:00"], "tue": …}; a closed day is absent
    first_contact_hours integer NOT NULL,       -- business hours until first contact
    fallback_owner text,                        -- a staff member's e-mail
    ask_gap_days integer NOT NULL DEFAULT 30,   -- a customer is asked at most once in so many days
    contact_limit integer NOT NULL DEFAULT 6,   -- messages to one customer in 30 days
    setup_done_at timestamptz
);

CREATE TABLE account (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    name text NOT NULL,
    name_key text NOT NULL UNIQUE,              -- case-folded, spaces collapsed
    manager_email text,
    tier text,
    annual_value numeric(14, 2)
);

CREATE TABLE customer (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    external_id text,
    email text,
    email_key text,                             -- case-folded
    phone text,                                 -- E.164
    name text,
    account_id uuid REFERENCES account,
    language text,
    time_zone text,
    touchpoint text,
    properties jsonb NOT NULL DEFAULT '{}',
    email_opt_out_at timestamptz,
    sms_opt_out_at timestamptz,
    email_bounced_at timestamptz,
    sms_bounced_at timestamptz,
    last_asked_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX customer_external_id ON customer (external_id);
CREATE UNIQUE INDEX customer_email ON customer (email_key);
CREATE UNIQUE INDEX customer_phone ON customer (phone);
CREATE INDEX customer_account ON customer (account_id);
CREATE INDEX customer_by_name ON customer (lower(coalesce(name, email, phone, external_id)), id);

-- The words of a text for search by their beginnings; addresses fall apart into their parts.
CREATE FUNCTION words(text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_tsvector('simple'::regconfig, translate(coalesce($1, ''), '@._+-/\''"()<>:&,;', '                 '))
$$;
CREATE INDEX customer_words ON customer USING gin (words(
    coalesce(name, '') || ' ' || coalesce(email, '') || ' ' || coalesce(phone, '') || ' ' || coalesce(external_id, '')));
CREATE INDEX account_words ON account USING gin (words(name));
CREATE INDEX account_manager ON account (manager_email);

-- An opt-out belongs to the address, not to the row: it survives deletion and re-import.
CREATE TABLE opt_out (
    channel text NOT NULL,                      -- 'email' | 'sms'
    address_hash bytea NOT NULL,                -- HMAC under the key for purpose 'opt-out'
    at timestamptz NOT NULL,
    source text NOT NULL,                       -- 'link' | 'one-click' | 'stop' | 'staff' | 'complaint'
    PRIMARY KEY (channel, address_hash)
);

CREATE TABLE import_run (
    id uuid PRIMARY KEY,
    file_name text NOT NULL,
    state text NOT NULL,                        -- 'uploading' | 'waiting' | 'running' | 'done' | 'stopped' | 'failed'
    by text NOT NULL,
    region text,                                -- ISO 3166 country of phone numbers without a country code
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    claim uuid,                                 -- of the worker that runs it; renewed with each batch
    claimed_at timestamptz,
    total_bytes bigint,
    done_bytes bigint NOT NULL DEFAULT 0,
    done_line bigint NOT NULL DEFAULT 0,        -- the last line that is committed: where a crash goes on
    rows integer NOT NULL DEFAULT 0,
    created integer NOT NULL DEFAULT 0,
    updated integer NOT NULL DEFAULT 0,
    unchanged integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    stop_requested boolean NOT NULL DEFAULT false,
    encoding text,
    delimiter text,
    unknown_managers jsonb NOT NULL DEFAULT '[]',
    message text
);
CREATE TABLE import_error (
    run_id uuid NOT NULL REFERENCES import_run ON DELETE CASCADE,
    line integer NOT NULL,
    column_name text,
    reason text NOT NULL
);
CREATE INDEX import_error_run ON import_error (run_id, line);
CREATE INDEX import_run_open ON import_run (started_at) WHERE state IN ('uploading', 'waiting', 'running');
-- The uploaded file until its run has ended: web and worker need not share a disk.
CREATE TABLE import_chunk (
    run_id uuid NOT NULL REFERENCES import_run ON DELETE CASCADE,
    n integer NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (run_id, n)
);

CREATE TABLE program (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    name text NOT NULL UNIQUE,
    touchpoint text NOT NULL,
    channels text[] NOT NULL,                   -- in order of preference
    wording jsonb NOT NULL,                     -- {"en": {"subject", "question", "intro", "thanks", "sms"}, …}
    answer_days integer NOT NULL DEFAULT 30,    -- how long an answer is accepted
    state text NOT NULL,                        -- 'active' | 'paused'
    created_at timestamptz NOT NULL
);

CREATE TABLE ask_run (
    id uuid PRIMARY KEY,
    program_id uuid NOT NULL REFERENCES program,
    by text NOT NULL,
    requested_at timestamptz NOT NULL,
    audience jsonb NOT NULL,                    -- filter as asked
    touchpoint text,
    channel text,                               -- forced channel, or null
    state text NOT NULL,                        -- 'running' | 'done' | 'stopped'
    asked integer NOT NULL DEFAULT 0,
    skipped integer NOT NULL DEFAULT 0,
    total integer NOT NULL DEFAULT 0,
    cursor uuid,                                -- the last customer dealt with; they are taken in order of id
    ended_at timestamptz
);
CREATE INDEX ask_run_running ON ask_run (requested_at) WHERE state = 'running';
CREATE INDEX ask_run_program ON ask_run (program_id, requested_at);

CREATE TABLE invitation (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    program_id uuid NOT NULL REFERENCES program,
    customer_id uuid NOT NULL REFERENCES customer ON DELETE CASCADE,
    ask_run_id uuid REFERENCES ask_run,
    channel text NOT NULL,                      -- 'email' | 'sms'
    touchpoint text NOT NULL,
    test boolean NOT NULL DEFAULT false,        -- a test message to oneself: its answer is excluded
    state text NOT NULL,                        -- 'queued' | 'sent' | 'failed' | 'skipped' | 'uncertain' | 'expired'
    created_at timestamptz NOT NULL,
    sent_at timestamptz,
    expires_at timestamptz NOT NULL
);
CREATE INDEX invitation_customer ON invitation (customer_id, created_at);
CREATE INDEX invitation_program ON invitation (program_id, created_at);
CREATE INDEX invitation_run ON invitation (ask_run_id);
CREATE INDEX invitation_expiry ON invitation (expires_at) WHERE state IN ('sent', 'uncertain');

CREATE TABLE skip (
    id uuid PRIMARY KEY,
    program_id uuid NOT NULL REFERENCES program,
    customer_id uuid NOT NULL REFERENCES customer ON DELETE CASCADE,
    ask_run_id uuid REFERENCES ask_run,
    invitation_id uuid REFERENCES invitation ON DELETE CASCADE,  -- when it had been made and was then refused
    touchpoint text NOT NULL,
    reason text NOT NULL,                       -- 'opted_out' | 'no_address' | 'recently_asked' | 'bounced' | 'contact_limit' | 'expired'
    at timestamptz NOT NULL
);
CREATE INDEX skip_customer ON skip (customer_id, at);
CREATE INDEX skip_run ON skip (ask_run_id);
CREATE INDEX skip_program ON skip (program_id, at);

-- Tokens are random and stored hashed. 'answer': answer page and trail of one invitation; several may
-- lead to one invitation (a notice brings a fresh one). 'preferences': one customer's preference page.
CREATE TABLE token (
    hash bytea PRIMARY KEY,
    purpose text NOT NULL,
    customer_id uuid NOT NULL REFERENCES customer ON DELETE CASCADE,
    invitation_id uuid REFERENCES invitation ON DELETE CASCADE,
    channel text NOT NULL,                      -- the message's channel
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL             -- read-only until then; answering until the invitation expires
);
CREATE INDEX token_customer ON token (customer_id);
CREATE INDEX token_invitation ON token (invitation_id);

CREATE TABLE response (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    invitation_id uuid NOT NULL UNIQUE REFERENCES invitation ON DELETE CASCADE,
    customer_id uuid NOT NULL REFERENCES customer ON DELETE CASCADE,
    score smallint NOT NULL CHECK (score BETWEEN 0 AND 10),
    comment text,
    callback text,                              -- null | 'please' | 'dont'
    answered_at timestamptz NOT NULL,
    revised_at timestamptz NOT NULL,
    source text NOT NULL,                       -- 'page' | 'sms' | 'api'
    state text NOT NULL DEFAULT 'counted',      -- 'counted' | 'quarantined' | 'excluded'
    state_reason text,
    state_by text
);
CREATE INDEX response_customer ON response (customer_id, answered_at);
CREATE INDEX response_time ON response (answered_at, id);
CREATE INDEX response_words ON response USING gin (words(comment));

CREATE TABLE response_version (
    response_id uuid NOT NULL REFERENCES response ON DELETE CASCADE,
    version bigint NOT NULL,
    score smallint NOT NULL,
    comment text,
    callback text,
    at timestamptz NOT NULL,
    source text NOT NULL,
    nonce text NOT NULL,                        -- the form's: the same nonce again is a retry, not a revision
    PRIMARY KEY (response_id, version),
    UNIQUE (response_id, nonce)
);

-- Evidence, best effort: what was opened or clicked. Never an answer by itself (rule 6).
CREATE TABLE click (
    id uuid PRIMARY KEY,
    invitation_id uuid NOT NULL REFERENCES invitation ON DELETE CASCADE,
    kind text NOT NULL,                         -- 'get' | 'decoy' | 'confirmed'
    score smallint,
    at timestamptz NOT NULL,
    evidence jsonb NOT NULL DEFAULT '{}',       -- {"webdriver": bool, "gesture": "pointerdown", "milliseconds": n}
    settled boolean NOT NULL DEFAULT false,     -- the clock has looked at it
    reported boolean NOT NULL DEFAULT false     -- and published response.unconfirmed for it
);
CREATE INDEX click_invitation ON click (invitation_id, at);
CREATE INDEX click_reported ON click (invitation_id) WHERE reported;
CREATE INDEX click_unreported ON click (at) WHERE NOT settled AND kind = 'get' AND score IS NOT NULL;

CREATE TABLE inbound (
    id uuid PRIMARY KEY,
    provider_id text NOT NULL UNIQUE,
    channel text NOT NULL,
    customer_id uuid REFERENCES customer ON DELETE CASCADE,
    invitation_id uuid REFERENCES invitation ON DELETE SET NULL,
    text text NOT NULL,
    effect text NOT NULL,                       -- 'answer' | 'stop' | 'start' | 'help' | 'message' | 'unknown_sender'
    at timestamptz NOT NULL
);
CREATE INDEX inbound_customer ON inbound (customer_id, at);

CREATE TABLE webhook_event (
    provider text NOT NULL,
    event_id text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (provider, event_id)
);

-- Replicas of what followup owns.
CREATE TABLE task_replica (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    account_id uuid,
    owner_email text,
    data jsonb NOT NULL                         -- the task event's data
);
CREATE TABLE task_response (
    response_id uuid NOT NULL,
    task_id uuid NOT NULL,
    PRIMARY KEY (response_id, task_id)
);
CREATE INDEX task_replica_owner ON task_replica (owner_email);
CREATE TABLE change_replica (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    data jsonb NOT NULL
);
CREATE TABLE notice_replica (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    customer_id uuid NOT NULL,
    response_id uuid,
    change_id uuid NOT NULL,
    data jsonb NOT NULL
);
CREATE INDEX notice_replica_customer ON notice_replica (customer_id);
CREATE INDEX notice_replica_response ON notice_replica (response_id);

-- When regular work was last taken up, so that of several clocks one does it.
CREATE TABLE chore (
    name text PRIMARY KEY,
    at timestamptz NOT NULL
);
