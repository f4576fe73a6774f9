-- Reporting owns nothing: every table here can be emptied and filled again from the log (`hearback rebuild
-- reporting`). Facts keep what a figure or the row behind it needs, and no more; a row with version 0 is a
-- stub, there to be locked by events of different topics that concern the same thing. A `day` is a day in
-- the company's zone.

CREATE TABLE company (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL,
    name text NOT NULL,
    time_zone text NOT NULL,
    business_hours jsonb NOT NULL DEFAULT '{}',
    first_contact_hours integer
);

CREATE TABLE program (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    name text NOT NULL,
    touchpoint text,
    state text
);

CREATE TABLE customer (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    name text,                                  -- else the external id or the address: what people call them
    account_id uuid,
    account_name text
);

-- One row per invitation that was handed over, and how far it came round the loop. The columns from
-- `asked` on are derived from the other facts (store/journey.py) and never written by a handler.
CREATE TABLE invitation (
    id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,
    customer_id uuid,
    program_id uuid,
    touchpoint text,
    channel text,
    account_id uuid,
    sent_at timestamptz,
    expires_at timestamptz,
    expired_at timestamptz,
    test boolean NOT NULL DEFAULT false,
    day date,
    asked boolean NOT NULL DEFAULT false,
    delivered boolean NOT NULL DEFAULT false,
    answered boolean NOT NULL DEFAULT false,
    tasked boolean NOT NULL DEFAULT false,
    tried_in_time boolean NOT NULL DEFAULT false,
    in_time boolean NOT NULL DEFAULT false,
    resolved boolean NOT NULL DEFAULT false,
    told boolean NOT NULL DEFAULT false,
    helped boolean NOT NULL DEFAULT false,
    not_helped boolean NOT NULL DEFAULT false,
    response_id uuid,
    task_id uuid,
    notice_id uuid
) WITH (fillfactor = 80);
CREATE INDEX invitation_day ON invitation (day, id) WHERE asked;
CREATE INDEX invitation_tasked ON invitation (day, id) WHERE tasked;
CREATE INDEX invitation_told ON invitation (day, id) WHERE told;
CREATE INDEX invitation_customer ON invitation (customer_id);
CREATE INDEX invitation_sent ON invitation USING brin (sent_at);
CREATE STATISTICS invitation_groups ON day, program_id, touchpoint FROM invitation;

CREATE TABLE skip (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    customer_id uuid NOT NULL,
    invitation_id uuid,
    program_id uuid,
    touchpoint text,
    account_id uuid,
    reason text NOT NULL,
    at timestamptz NOT NULL,
    day date NOT NULL
);
CREATE INDEX skip_day ON skip (day, id) INCLUDE (program_id, touchpoint, reason);
CREATE INDEX skip_customer ON skip (customer_id);

CREATE TABLE response (
    id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,
    invitation_id uuid,
    customer_id uuid,
    program_id uuid,
    touchpoint text,
    channel text,
    account_id uuid,
    account_name text,
    score smallint,
    band text,                                  -- 'detractor' | 'passive' | 'promoter'
    comment text,
    callback text,
    answered_at timestamptz,
    revised_at timestamptz,
    source text,
    state text,                                 -- 'counted' | 'quarantined' | 'excluded'
    reason text,
    day date
);
CREATE INDEX response_day ON response (day, id) WHERE version > 0;
CREATE INDEX response_apart ON response (day, id) WHERE state <> 'counted';
CREATE INDEX response_account ON response (account_id, answered_at) INCLUDE (score, state);
CREATE INDEX response_invitation ON response (invitation_id);
CREATE INDEX response_customer ON response (customer_id);
CREATE INDEX response_answered ON response USING brin (answered_at);
CREATE STATISTICS response_groups ON day, program_id, touchpoint FROM response;

CREATE TABLE unconfirmed (
    invitation_id uuid PRIMARY KEY,
    version bigint NOT NULL,
    customer_id uuid NOT NULL,
    program_id uuid,
    touchpoint text,
    channel text,
    account_id uuid,
    account_name text,
    score smallint,
    band text,
    clicked_at timestamptz NOT NULL,
    day date NOT NULL
);
CREATE INDEX unconfirmed_day ON unconfirmed (day, invitation_id);
CREATE INDEX unconfirmed_customer ON unconfirmed (customer_id);

CREATE TABLE delivery (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    kind text NOT NULL,                         -- 'invitation' | 'notice' | 'reply'
    ref_id uuid,
    customer_id uuid,
    channel text,
    state text NOT NULL,                        -- 'delivered' | 'bounced' | 'complained' | 'failed'
    reason text,
    at timestamptz NOT NULL
);
CREATE INDEX delivery_ref ON delivery (ref_id);
CREATE INDEX delivery_customer ON delivery (customer_id);

CREATE TABLE task (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    state text NOT NULL,                        -- 'open' | 'resolved' | 'withdrawn'
    account_id uuid,
    customer_id uuid,
    owner_id uuid,
    owner_name text,
    opened_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    first_contact_at timestamptz,               -- first attempt, reached or not
    contacted_at timestamptz,                   -- first attempt that reached the customer
    lowest_score smallint,
    theme_id uuid,
    theme text,
    outcome text,
    resolved_at timestamptz,
    escalated_at timestamptz
);
CREATE INDEX task_due ON task (due_at) WHERE state = 'open' AND first_contact_at IS NULL;
CREATE TABLE task_response (
    task_id uuid NOT NULL REFERENCES task ON DELETE CASCADE,
    response_id uuid NOT NULL,
    PRIMARY KEY (response_id, task_id)
);
CREATE INDEX task_response_task ON task_response (task_id);

CREATE TABLE change (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    title text NOT NULL,
    themes jsonb NOT NULL DEFAULT '[]',
    published_at timestamptz,
    withdrawn_at timestamptz,
    audience_count integer
);

CREATE TABLE notice (
    id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,
    change_id uuid,
    customer_id uuid,
    response_id uuid,
    state text,                                 -- 'sent' | 'skipped'
    channel text,
    reason text,
    sent_at timestamptz,
    helped boolean,
    helped_at timestamptz
);
CREATE INDEX notice_response ON notice (response_id);
CREATE INDEX notice_customer ON notice (customer_id);

-- Rollups, fed with differences in the transaction that applies the events. `queries/recount.py` counts the
-- same from the facts.
CREATE TABLE nps_day (
    day date NOT NULL,                          -- of the answer
    program_id uuid NOT NULL,
    touchpoint text NOT NULL,
    promoters integer NOT NULL DEFAULT 0,
    passives integer NOT NULL DEFAULT 0,
    detractors integer NOT NULL DEFAULT 0,
    quarantined integer NOT NULL DEFAULT 0,
    excluded integer NOT NULL DEFAULT 0,
    PRIMARY KEY (day, program_id, touchpoint)
) WITH (fillfactor = 70);
CREATE TABLE funnel_day (
    day date NOT NULL,                          -- of the invitation's hand-over
    program_id uuid NOT NULL,
    touchpoint text NOT NULL,
    asked integer NOT NULL DEFAULT 0,
    delivered integer NOT NULL DEFAULT 0,
    answered integer NOT NULL DEFAULT 0,
    tasked integer NOT NULL DEFAULT 0,
    tried_in_time integer NOT NULL DEFAULT 0,
    in_time integer NOT NULL DEFAULT 0,
    resolved integer NOT NULL DEFAULT 0,
    told integer NOT NULL DEFAULT 0,
    helped integer NOT NULL DEFAULT 0,
    not_helped integer NOT NULL DEFAULT 0,
    PRIMARY KEY (day, program_id, touchpoint)
) WITH (fillfactor = 70);
