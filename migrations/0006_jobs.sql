-- Scheduled jobs. Who runs one holds its lease: others take it over when the lease has run out.
CREATE TABLE jobs (
    job                text COLLATE "C" PRIMARY KEY,
    -- Cron expression, in UTC; empty: never.
    schedule           text NOT NULL,
    next_run_time      timestamptz,
    -- Names the replica and its run; nothing while nobody runs it.
    holder             text,
    lease_expire_time  timestamptz,
    last_start_time    timestamptz,
    last_finish_time   timestamptz,
    -- Empty: it went well.
    last_error         text NOT NULL DEFAULT '',
    -- What the last run did, for people.
    last_result        text NOT NULL DEFAULT '',
    run_count          bigint NOT NULL DEFAULT 0,
    failure_count      bigint NOT NULL DEFAULT 0
);

-- Client-months up to this one are closed: their rollups stay as they are, and partitions that only they need are gone.
-- '-infinity': none is.
ALTER TABLE deployment ADD COLUMN closed_through date NOT NULL DEFAULT '-infinity';

-- Keys of a backfill are kept until their month is closed, as a backfill may be sent again as long.
ALTER TABLE idempotency_keys ADD COLUMN backfill boolean NOT NULL DEFAULT false;
-- Small and cheap to keep: keys are written in the order of their time.
CREATE INDEX idempotency_keys_claim_time ON idempotency_keys USING brin (claim_time) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX create_requests_create_time ON create_requests (create_time);
