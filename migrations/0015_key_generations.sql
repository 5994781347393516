-- Idempotency keys in generations. New keys go into the current generation only, so the index that they are added to stays
-- small, however many keys there are. A closed generation gets no more keys; replicas look for a key in it only if its filter,
-- which they keep in memory, may contain the key.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that claim keys end first

ALTER TABLE idempotency_keys RENAME TO idempotency_keys_0;
ALTER INDEX idempotency_keys_pkey RENAME TO idempotency_keys_0_pkey;
ALTER INDEX idempotency_keys_live RENAME TO idempotency_keys_0_live;
ALTER INDEX idempotency_keys_backfill RENAME TO idempotency_keys_0_backfill;
ALTER TABLE idempotency_keys_0 ADD COLUMN generation integer NOT NULL DEFAULT 0;

-- A key is unique within its generation, by the primary key of the partition. Writers look for it in the other generations.
CREATE TABLE idempotency_keys (LIKE idempotency_keys_0 INCLUDING DEFAULTS) PARTITION BY LIST (generation);
CREATE INDEX idempotency_keys_live ON ONLY idempotency_keys (claim_time) WHERE NOT backfill;
CREATE INDEX idempotency_keys_backfill ON ONLY idempotency_keys (event_time, claim_time) WHERE backfill;
ALTER TABLE idempotency_keys ATTACH PARTITION idempotency_keys_0 FOR VALUES IN (0);

ALTER TABLE deployment ADD COLUMN key_generation integer NOT NULL DEFAULT 0;
-- Replicas of an earlier release write every key to generation 0. Their batches fail when it is closed, so there is time to replace
-- them.
ALTER TABLE deployment ADD COLUMN keys_stay_until timestamptz NOT NULL DEFAULT '-infinity';
UPDATE deployment SET keys_stay_until = now() + interval '1 hour' WHERE EXISTS (SELECT FROM idempotency_keys);

-- The closed generations.
CREATE TABLE key_generations (
    generation     integer PRIMARY KEY,
    close_time     timestamptz NOT NULL DEFAULT now(),
    -- NULL until the filter is built. The format tells whether a release of meterd can read it.
    key_count      bigint,
    filter_format  smallint,
    filter         bytea
);
-- Its bits are as good as random.
ALTER TABLE key_generations ALTER COLUMN filter SET STORAGE EXTERNAL;
