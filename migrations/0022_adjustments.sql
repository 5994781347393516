-- Recorded events can be voided, corrected, and charged by another price. Each of these changes leaves an adjustment.
SET LOCAL lock_timeout = '5s';

-- A voided event counts in no sum. NULL: the event counts.
ALTER TABLE usage_events ADD COLUMN void_time timestamptz;

CREATE TABLE usage_adjustments (
    client_id            text COLLATE "C" NOT NULL,
    event_time           timestamptz NOT NULL,
    event_seq            bigint NOT NULL,
    -- From 1 for each event.
    number               integer NOT NULL,
    -- 1: void, 2: correction, 3: other price, 4: a price that was created later.
    kind                 smallint NOT NULL,
    -- The charge before the change: a charge with its price, or the reason why there was none.
    old_charge           numeric,
    old_price_id         bigint,
    old_unpriced_reason  smallint,
    -- The charge after the change. All are NULL if the event was voided.
    new_charge           numeric,
    new_price_id         bigint,
    new_unpriced_reason  smallint,
    -- The fields that a correction has changed: {"units": ["1", "3"]}.
    changes              jsonb,
    reason               text NOT NULL,
    -- Who made the change: the principal of the caller, or 'meterd'.
    actor                text NOT NULL,
    -- The run that made the change.
    run_id               bigint,
    adjust_time          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (client_id, event_time, event_seq, number)
);
CREATE INDEX usage_adjustments_listed ON usage_adjustments (client_id, adjust_time, event_time, event_seq, number);

-- Runs that charge recorded events by the present prices.
CREATE TABLE reprice_runs (
    run_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    start_month     date NOT NULL,
    end_month       date NOT NULL,
    client_ids      text[] NOT NULL,
    services        text[] NOT NULL,
    models          text[] NOT NULL,
    -- A dry run only computes the differences.
    is_dry          boolean NOT NULL,
    reason          text NOT NULL,
    actor           text NOT NULL,
    -- The last event that was examined.
    client_id       text COLLATE "C" NOT NULL DEFAULT '',
    event_time      timestamptz NOT NULL DEFAULT '-infinity',
    event_seq       bigint NOT NULL DEFAULT 0,
    event_count     bigint NOT NULL,
    examined_count  bigint NOT NULL DEFAULT 0,
    changed_count   bigint NOT NULL DEFAULT 0,
    create_time     timestamptz NOT NULL DEFAULT now(),
    cancel_time     timestamptz,
    finish_time     timestamptz
);
CREATE INDEX reprice_runs_open ON reprice_runs (run_id) WHERE finish_time IS NULL;

-- What a run changes, or a dry run would change.
CREATE TABLE reprice_differences (
    run_id       bigint NOT NULL,
    client_id    text COLLATE "C" NOT NULL,
    service      text COLLATE "C" NOT NULL,
    model        text COLLATE "C" NOT NULL,
    event_count  bigint NOT NULL,
    old_cost     numeric NOT NULL,
    new_cost     numeric NOT NULL,
    PRIMARY KEY (run_id, client_id, service, model)
);
