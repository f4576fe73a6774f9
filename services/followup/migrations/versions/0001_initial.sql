-- Followup owns staff, tasks, themes, changes and notices. `staff` and `apikey` come from the shared
-- migration; here is what only the owner needs of them.

ALTER TABLE staff
    ADD COLUMN password_hash text,
    ADD COLUMN must_change_password boolean NOT NULL DEFAULT false,
    ADD COLUMN absent_from date,
    ADD COLUMN absent_until date,               -- inclusive
    ADD COLUMN deputy_id uuid REFERENCES staff,
    ADD COLUMN created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN last_login_at timestamptz;

ALTER TABLE apikey ADD COLUMN created_at timestamptz NOT NULL DEFAULT now();

-- Guesses at passwords: a row is written before the password is looked at, and removed when it was right.
CREATE TABLE login_failure (
    who bytea NOT NULL,                         -- hash of the login, of the address it came from, or of both
    at timestamptz NOT NULL
);
CREATE INDEX login_failure_who ON login_failure (who, at);

-- Recurring work: one of several clocks takes it, by moving its time on.
CREATE TABLE chore (
    name text PRIMARY KEY,
    at timestamptz NOT NULL
);

-- Replicas of what survey owns.
CREATE TABLE company (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL,
    data jsonb NOT NULL
);
CREATE TABLE program (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    name text NOT NULL,
    data jsonb NOT NULL
);
CREATE TABLE account (
    id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,          -- 0 is a stub: the row is there to be locked
    name text,
    tier text,
    annual_value numeric(14, 2),
    manager_email text
);
CREATE TABLE customer (
    id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,          -- 0 is a stub
    name text,
    email text,
    phone text,
    account_id uuid,
    language text,
    time_zone text,
    data jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX customer_account ON customer (account_id);
CREATE TABLE response (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    customer_id uuid NOT NULL,
    account_id uuid,
    invitation_id uuid NOT NULL,
    program_name text NOT NULL,
    touchpoint text NOT NULL,
    channel text NOT NULL,
    score smallint NOT NULL,
    band text NOT NULL,
    comment text,
    callback text,
    answered_at timestamptz NOT NULL,
    state text NOT NULL DEFAULT 'counted',      -- 'counted' | 'excluded' | 'quarantined' | 'unconfirmed'
    data jsonb NOT NULL
);
CREATE INDEX response_customer ON response (customer_id, answered_at);
CREATE INDEX response_account ON response (account_id, answered_at);
CREATE TABLE response_version (
    response_id uuid NOT NULL REFERENCES response ON DELETE CASCADE,
    version bigint NOT NULL,
    score smallint NOT NULL,
    comment text,
    callback text,
    at timestamptz NOT NULL,
    PRIMARY KEY (response_id, version)
);
-- "Perhaps unhappy, not confirmed": a click on 0–6 that nobody confirmed, or an answer that contradicts itself.
CREATE TABLE unconfirmed (
    invitation_id uuid PRIMARY KEY,
    kind text NOT NULL DEFAULT 'unconfirmed',   -- 'unconfirmed' | 'quarantined'
    customer_id uuid NOT NULL,
    account_id uuid,
    manager_email text,
    program_name text NOT NULL,
    touchpoint text NOT NULL,
    score smallint NOT NULL,
    at timestamptz NOT NULL,
    dismissed_at timestamptz,
    dismissed_by uuid
);
CREATE INDEX unconfirmed_shown ON unconfirmed (at) WHERE dismissed_at IS NULL;
CREATE TABLE inbound_message (
    id uuid PRIMARY KEY,
    customer_id uuid NOT NULL,
    text text NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX inbound_message_customer ON inbound_message (customer_id, at);

CREATE TABLE theme (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    name_key text NOT NULL UNIQUE,              -- case-folded, spaces collapsed
    retired_at timestamptz
);
-- Root causes to begin with; each company renames, retires and adds its own.
INSERT INTO theme (id, name, name_key)
SELECT gen_random_uuid(), name, lower(name) FROM unnest(ARRAY[
    'Billing', 'Delivery late', 'Delivery wrong or incomplete', 'Hard to reach us', 'Hard to use',
    'Missing feature', 'Price', 'Product quality', 'Promise not kept', 'Repair or support took too long',
    'Unclear information', 'Unfriendly or unhelpful contact', 'Other'
]) AS name;

CREATE TABLE task (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    account_id uuid,
    customer_id uuid NOT NULL,                  -- whose answer opened it
    state text NOT NULL,                        -- 'open' | 'resolved' | 'withdrawn'
    owner_id uuid REFERENCES staff,
    opened_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,                -- the promise: first contact by then
    call_by timestamptz,                        -- by when somebody must call (again); null: no call is due
    remind_at timestamptz,                      -- when to remind the owner of it; null: done, or not needed
    first_contact_at timestamptz,               -- first attempt, reached or not
    contacted_at timestamptz,                   -- first attempt that reached the customer
    dont_call boolean NOT NULL DEFAULT false,
    call_please boolean NOT NULL DEFAULT false,
    lowest_score smallint NOT NULL,
    escalated_at timestamptz,
    theme_id uuid REFERENCES theme,
    outcome text,
    outcome_note text,
    resolved_at timestamptz,
    resolved_by uuid REFERENCES staff,
    withdrawn_reason text,
    reopened boolean NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL,            -- when this version came about
    on_it_id uuid REFERENCES staff,             -- who said "I am calling now", and when
    on_it_at timestamptz
);
-- At most one open task per account, or per customer without one.
CREATE UNIQUE INDEX task_open_account ON task (account_id) WHERE state = 'open' AND account_id IS NOT NULL;
CREATE UNIQUE INDEX task_open_customer ON task (customer_id) WHERE state = 'open' AND account_id IS NULL;
CREATE INDEX task_owner ON task (owner_id, due_at) WHERE state = 'open';
CREATE INDEX task_call_by ON task (call_by) WHERE state = 'open';
CREATE INDEX task_remind ON task (remind_at) WHERE state = 'open' AND remind_at IS NOT NULL;
CREATE INDEX task_customer ON task (customer_id);
CREATE INDEX task_account ON task (account_id);
CREATE INDEX task_opened ON task (opened_at, id);
CREATE INDEX task_resolved ON task (resolved_at, id);

CREATE TABLE task_response (
    task_id uuid NOT NULL REFERENCES task ON DELETE CASCADE,
    response_id uuid NOT NULL,
    customer_id uuid NOT NULL,
    joined_at timestamptz NOT NULL,
    PRIMARY KEY (task_id, response_id)
);
CREATE INDEX task_response_response ON task_response (response_id);
CREATE INDEX task_response_customer ON task_response (customer_id);

-- What happened to a task, for its history: opened, joined, revised, assigned, attempted, noted, reminded,
-- escalated, resolved, reopened, withdrawn.
CREATE TABLE task_entry (
    id uuid PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES task ON DELETE CASCADE,
    kind text NOT NULL,
    at timestamptz NOT NULL,
    by uuid REFERENCES staff,                   -- null: Hearback itself
    by_name text NOT NULL,
    channel text,                               -- of an attempt: 'phone' | 'email' | 'sms' | 'visit'
    reached boolean,                            -- of an attempt
    text text,
    customer_id uuid,                           -- whom it is about: their erasure empties `text`
    data jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX task_entry_customer ON task_entry (customer_id) WHERE customer_id IS NOT NULL;
CREATE INDEX task_entry_task ON task_entry (task_id, at);

CREATE TABLE change (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    title text NOT NULL,
    was_wrong text NOT NULL,
    is_different text NOT NULL,
    language text NOT NULL,
    since date,                                 -- only answers since then belong to its audience
    state text NOT NULL,                        -- 'draft' | 'published' | 'withdrawn'
    created_at timestamptz NOT NULL,
    created_by uuid REFERENCES staff,
    published_at timestamptz,
    published_by uuid REFERENCES staff,         -- null: an API key or Hearback's own command line
    published_by_name text,
    withdrawn_at timestamptz,
    audience_count integer
);
CREATE TABLE change_theme (
    change_id uuid NOT NULL REFERENCES change ON DELETE CASCADE,
    theme_id uuid NOT NULL REFERENCES theme,
    PRIMARY KEY (change_id, theme_id)
);
-- An answer that a person tied to a theme without a task (a passive's or promoter's words).
CREATE TABLE response_theme (
    response_id uuid NOT NULL,
    theme_id uuid NOT NULL REFERENCES theme,
    by uuid REFERENCES staff,
    at timestamptz NOT NULL,
    PRIMARY KEY (response_id, theme_id)
);

CREATE INDEX change_listed ON change (created_at, id);
CREATE INDEX response_theme_theme ON response_theme (theme_id);
CREATE INDEX task_theme ON task (theme_id) WHERE state = 'resolved';
-- Recent answers with words, to be searched for those that a change concerns.
CREATE INDEX response_worded ON response (answered_at, id) WHERE comment <> '';

CREATE TABLE notice (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    change_id uuid NOT NULL REFERENCES change,
    customer_id uuid NOT NULL,
    response_id uuid NOT NULL,
    quote text,
    state text NOT NULL,                        -- 'queued' | 'sent' | 'failed' | 'skipped' | 'uncertain'
    skip_reason text,                           -- also why it failed
    channel text,
    delivery_id uuid,                           -- the newest; a person's "send again" makes another
    created_at timestamptz NOT NULL,
    sent_at timestamptz,
    delivered_at timestamptz,
    helped boolean,
    helped_at timestamptz,
    reported_at timestamptz,                    -- of its last event
    UNIQUE (change_id, customer_id)
);
CREATE INDEX notice_customer ON notice (customer_id);
CREATE INDEX notice_change ON notice (change_id, id);
CREATE INDEX notice_queued ON notice (created_at) WHERE state = 'queued';
-- How hand-overs ended that survey has not been told yet: it gave the permits and wants them settled.
CREATE TABLE permit_result (
    delivery_id uuid PRIMARY KEY,
    result text NOT NULL,                       -- 'handed' | 'failed' | 'uncertain' | 'returned'
    provider_id text,
    reason text,
    at timestamptz NOT NULL
);
