-- The mailbox is a provider's stand-in: nothing of Hearback reads these tables, it only speaks HTTP to it.
CREATE SCHEMA mailbox;
CREATE TABLE mailbox.message (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    delivery_id text,                           -- the sender's own id; not unique, a provider does not dedupe
    channel text NOT NULL CHECK (channel IN ('email', 'sms')),
    direction text NOT NULL CHECK (direction IN ('out', 'in')),  -- out: to a customer; in: a customer's reply
    recipient text NOT NULL,
    recipient_name text,
    sender text NOT NULL,
    sender_name text,
    reply_to text,
    subject text,
    text text NOT NULL,
    html text,
    headers jsonb NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL,
    read_at timestamptz,
    status text                                 -- what was reported: 'delivered' | 'bounced' | 'complained'
);
CREATE INDEX message_recipient ON mailbox.message (lower(recipient), seq DESC);
CREATE INDEX message_sms ON mailbox.message (sender, seq DESC) WHERE direction = 'in';
CREATE INDEX message_unread ON mailbox.message (channel) WHERE read_at IS NULL AND direction = 'out';
CREATE INDEX message_channel ON mailbox.message (channel, seq DESC);

-- Webhooks still to be posted back.
CREATE TABLE mailbox.webhook (
    id uuid PRIMARY KEY,
    body jsonb NOT NULL,
    due_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    last_error text
);
CREATE INDEX webhook_due ON mailbox.webhook (due_at);
