-- The ledger of messages (survey: all to customers, followup's notices included as permits; followup: its
-- notices and mails to staff). A row is claimed, handed over and settled, each in its own transaction.
CREATE TABLE delivery (
    id uuid PRIMARY KEY,
    kind text NOT NULL,                         -- 'invitation' | 'notice' | 'reply' | 'staff'
    ref_id uuid NOT NULL,                       -- the invitation, notice, message or task it is about
    customer_id uuid,                           -- null: to staff
    channel text NOT NULL,                      -- 'email' | 'sms'
    address text,                               -- null: the permit brings it
    state text NOT NULL DEFAULT 'queued' CHECK (state IN (
        'queued', 'claimed', 'handed', 'delivered', 'bounced', 'failed', 'uncertain', 'refused')),
    reason text,
    created_at timestamptz NOT NULL,
    not_before timestamptz NOT NULL,            -- of a queued one: when it may be claimed (again)
    claimed_at timestamptz,
    handed_at timestamptz,                      -- when the hand-over was begun; before that it certainly is not out
    settled_at timestamptz,
    permit_expires_at timestamptz,              -- set while a permit is out
    provider_id text,
    data jsonb NOT NULL DEFAULT '{}',
    attempts integer NOT NULL DEFAULT 0
);
CREATE INDEX delivery_queued ON delivery (not_before, id) WHERE state = 'queued';
CREATE INDEX delivery_claimed ON delivery (claimed_at) WHERE state = 'claimed';
CREATE INDEX delivery_uncertain ON delivery (created_at, id) WHERE state = 'uncertain' AND settled_at IS NULL;
CREATE INDEX delivery_customer ON delivery (customer_id, created_at);
CREATE INDEX delivery_ref ON delivery (ref_id);
CREATE INDEX delivery_provider ON delivery (provider_id) WHERE provider_id IS NOT NULL;
