-- Limits of clients, and what is used of them.
SET LOCAL lock_timeout = '5s';

-- A limit that was deleted stays, because alerts name it.
CREATE TABLE usage_limits (
    client_id       text COLLATE "C" NOT NULL,
    limit_id        text COLLATE "C" NOT NULL,
    display_name    text NOT NULL,
    -- Which events count. Empty: any.
    services        text[] NOT NULL,
    operations      text[] NOT NULL,
    models          text[] NOT NULL,
    subjects        text[] NOT NULL,
    labels          jsonb NOT NULL,
    -- Numbers of proto enums LimitMeasure and LimitPeriod.
    measure         smallint NOT NULL,
    period          smallint NOT NULL,
    amount          numeric NOT NULL CHECK (amount >= 0),
    hard            boolean NOT NULL,
    alert_percents  integer[] NOT NULL,
    -- Increases when the filter changes.
    revision        integer NOT NULL DEFAULT 1,
    create_time     timestamptz NOT NULL DEFAULT now(),
    update_time     timestamptz NOT NULL DEFAULT now(),
    delete_time     timestamptz,
    PRIMARY KEY (client_id, limit_id)
);

-- What is used of a limit in a period. If a period has no row, or one of an earlier revision of the limit, its usage is not computed
-- yet: the next transaction that changes it computes it from the usage. Changed under the lock of the month.
CREATE TABLE limit_counters (
    client_id      text COLLATE "C" NOT NULL,
    limit_id       text COLLATE "C" NOT NULL,
    -- First day of the period.
    period_start   date NOT NULL,
    revision       integer NOT NULL,
    used           numeric NOT NULL,
    reserved       numeric NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    -- The percents whose alerts are open.
    open_percents  integer[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (client_id, limit_id, period_start)
);

-- What an alert about a limit (type 7) says about it. Its service is "<limit id>/<percent>", so that each percent has its own alert.
ALTER TABLE alerts ADD COLUMN limit_facts jsonb;

-- Replicas of the previous release neither count for limits nor read alerts of type 7. For an hour, in which they can be replaced, no
-- counter is stored and no such alert is raised.
UPDATE deployment SET previous_release_until = now() + interval '1 hour' WHERE EXISTS (SELECT FROM usage_months);
