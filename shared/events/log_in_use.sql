-- Which log this service's events are on; the first start says it, `hearback log move` changes it. While
-- `moving_to` is set the relay stands still. `told`: the compacted topics have been published on this log.
CREATE TABLE log_in_use (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    log text NOT NULL,
    moving_to text,
    told boolean NOT NULL DEFAULT true
);
-- Whoever has published before there was a choice did so on the embedded log.
INSERT INTO log_in_use (log) SELECT 'embedded' FROM outbox_epoch WHERE is_called;
