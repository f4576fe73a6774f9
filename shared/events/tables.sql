-- What every service needs to publish and to consume events, in its own database.

-- Events committed with the state they report, not yet on the log. `shard` follows from the key, so all
-- events of one key have one relay. `day` is the real date of the append: duplicates of one row on the
-- log carry the same, whatever clock wrote `occurred_at`.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard smallint NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    version bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    day date NOT NULL DEFAULT current_date,
    data text,                                  -- JSON as it will travel; null is an erasure
    replay boolean NOT NULL DEFAULT false,
    trace text NOT NULL DEFAULT ''
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX outbox_key ON outbox (key, id);

-- Counts up with each relay pass under the shard's lock; the log refuses the pass of an earlier holder.
CREATE SEQUENCE outbox_epoch;

-- What has been applied. Partitioned by `day`, so that old days are dropped, not deleted.
CREATE TABLE inbox (
    consumer text NOT NULL,
    event_id uuid NOT NULL,
    day date NOT NULL,
    PRIMARY KEY (consumer, event_id, day)
) PARTITION BY RANGE (day);
CREATE TABLE inbox_other PARTITION OF inbox DEFAULT;

-- Keys that wait, and the events they wait with. Who applies or parks events of a key locks its row.
CREATE TABLE parked_key (
    consumer text NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    parked_at timestamptz NOT NULL,
    PRIMARY KEY (consumer, topic, key)
);
CREATE INDEX parked_key_time ON parked_key (consumer, parked_at);
CREATE TABLE parked (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer text NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    "partition" integer NOT NULL,
    "offset" bigint NOT NULL,
    value bytea,
    headers text NOT NULL,                      -- JSON; text, because a poison may hold what jsonb refuses
    reason text NOT NULL,
    parked_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 1,        -- 0: never tried, it waits behind an earlier one
    FOREIGN KEY (consumer, topic, key) REFERENCES parked_key ON DELETE CASCADE
);
CREATE INDEX parked_of_key ON parked (consumer, topic, key, id);

-- A consumer that stopped by itself, and why; `hearback log resume` or a restart lets it try again.
CREATE TABLE consumer_stop (
    consumer text PRIMARY KEY,
    at timestamptz NOT NULL,
    reason text NOT NULL
);

-- Customers whose data must not come back, however late or out of order an event about them arrives.
CREATE TABLE erased (
    customer_id uuid PRIMARY KEY,
    at timestamptz NOT NULL
);
