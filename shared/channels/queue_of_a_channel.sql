-- A sender claims the messages of one channel, however many of the other wait before them.
CREATE INDEX delivery_queued_channel ON delivery (channel, not_before, id) WHERE state = 'queued';
