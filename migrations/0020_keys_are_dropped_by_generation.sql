-- Keys are deleted by whole generations, which needs no index of their times. Each new key was added to one of these.
SET LOCAL lock_timeout = '5s';
DROP INDEX idempotency_keys_live;
DROP INDEX idempotency_keys_backfill;
