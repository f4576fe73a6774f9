-- The embedded log: topics in a database of their own.

CREATE TABLE log_topic (
    name text PRIMARY KEY,
    partitions integer NOT NULL,
    compacted boolean NOT NULL
);

-- Who appends locks the partition's row and hands out offsets in the same transaction: what is visible
-- is always a gapless beginning.
CREATE TABLE log_partition (
    topic text NOT NULL REFERENCES log_topic ON DELETE CASCADE,
    "partition" integer NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (topic, "partition")
) WITH (fillfactor = 20);

CREATE TABLE log_record (
    topic text NOT NULL,
    "partition" integer NOT NULL,
    "offset" bigint NOT NULL,
    key text NOT NULL,
    value bytea,
    headers json NOT NULL,
    appended_at timestamptz NOT NULL,
    PRIMARY KEY (topic, "partition", "offset")
);

-- The next offset a group will read. A source keeps its row locked from poll to commit; `turn` lets
-- the partition that waited longest come first.
CREATE TABLE log_offset (
    consumer text NOT NULL,
    topic text NOT NULL REFERENCES log_topic ON DELETE CASCADE,
    "partition" integer NOT NULL,
    "offset" bigint NOT NULL DEFAULT 0,
    turn bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer, topic, "partition")
) WITH (fillfactor = 20);
CREATE SEQUENCE log_turn;

-- The latest pass of each relay shard; an earlier one that wakes up late is refused.
CREATE TABLE log_producer (
    name text PRIMARY KEY,
    epoch bigint NOT NULL
) WITH (fillfactor = 20);
