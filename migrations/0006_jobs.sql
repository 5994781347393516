-- Scheduled jobs. Who runs one holds its lease: others take it over when the lease has run out.
CREATE TABLE jobs (
    job                text COLLATE "C" PRIMARY KEY,
    -- Cron expression, in UTC; empty: never by itself.
    schedule           text NOT NULL,
    -- Moved on when a run begins, so that who asks for one meanwhile gets another; nothing: never.
    next_run_time      timestamptz,
    -- Names the replica and its run; nothing while nobody runs it. A run whose lease has run out is taken over. A run that
    -- was dropped leaves its lease behind, in which its last statement ends: until then nobody runs it.
    holder             text,
    lease_expire_time  timestamptz,
    last_start_time    timestamptz,
    last_finish_time   timestamptz,
    -- When the run began that ended last.
    ended_start_time   timestamptz,
    last_success_time  timestamptz,
    -- Empty: it went well.
    last_error         text NOT NULL DEFAULT '',
    -- What the last run did, for people.
    last_result        text NOT NULL DEFAULT '',
    run_count          bigint NOT NULL DEFAULT 0,
    failure_count      bigint NOT NULL DEFAULT 0,
    CONSTRAINT jobs_held_until CHECK (holder IS NULL OR lease_expire_time IS NOT NULL)
);

-- Client-months up to this one are closed: their rollups stay as they are, and partitions that only they need are gone.
-- '-infinity': none is.
ALTER TABLE deployment ADD COLUMN closed_through date NOT NULL DEFAULT '-infinity';

-- Keys of live events that were claimed before may be gone: no new event that could have had one is taken, whatever the
-- settings of a replica are or were.
ALTER TABLE deployment ADD COLUMN keys_pruned_through timestamptz NOT NULL DEFAULT '-infinity';

-- Keys of a backfill are kept until their month is closed, as a backfill may be sent again as long.
ALTER TABLE idempotency_keys ADD COLUMN backfill boolean NOT NULL DEFAULT false;
-- For pruning, each in the order that it deletes in. Live keys come in the order of the first, so that it only grows at its
-- end and costs little.
CREATE INDEX idempotency_keys_live ON idempotency_keys (claim_time) WHERE NOT backfill;
CREATE INDEX idempotency_keys_backfill ON idempotency_keys (event_time, claim_time) WHERE backfill;
-- Whoever changes a service finds the months that used it while all writers wait.
CREATE INDEX usage_month_services_service ON usage_month_services (service, client_id, month);
CREATE INDEX create_requests_create_time ON create_requests (create_time);
