-- Measures of events that have no column, rates for them, and prices for service tiers and for events with many input tokens.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that price without them end first

ALTER TABLE prices
    -- The price is only for events of this service tier. '': of any.
    ADD COLUMN service_tier text COLLATE "C" NOT NULL DEFAULT '',
    -- The price is only for events with more input tokens than this. -1: with any number.
    ADD COLUMN above_input_tokens bigint NOT NULL DEFAULT -1 CHECK (above_input_tokens >= -1),
    -- Rates for measures that have no column: {"pages": "0.01"}.
    ADD COLUMN measure_rates jsonb NOT NULL DEFAULT '{}';
DROP INDEX prices_scope;
CREATE UNIQUE INDEX prices_scope ON prices (service, operation, model, service_tier, above_input_tokens, effective_time)
    WHERE withdraw_time IS NULL;
-- The order of the list.
DROP INDEX prices_listed;
CREATE INDEX prices_listed
    ON prices (service, operation, model, service_tier, above_input_tokens, effective_time, price_id);

ALTER TABLE usage_events
    -- NULL if the event has none.
    ADD COLUMN service_tier text COLLATE "C",
    -- The measures that have no column: {"pages": "3"}. NULL if the event has none.
    ADD COLUMN measures jsonb;

-- Sums of the measures that have no column. New events change them at once, because few events have such measures.
CREATE TABLE usage_day_measures (
    client_id  text COLLATE "C" NOT NULL,
    day        date NOT NULL,
    service    text COLLATE "C" NOT NULL,
    operation  text COLLATE "C" NOT NULL,
    model      text COLLATE "C" NOT NULL,
    measure    text COLLATE "C" NOT NULL,
    quantity   numeric NOT NULL,
    PRIMARY KEY (client_id, day, service, operation, model, measure)
);

CREATE TYPE day_measure_delta AS (
    client_id  text,
    day        date,
    service    text,
    operation  text,
    model      text,
    measure    text,
    quantity   numeric
);

-- A row of usage_events. The type new_event, and the functions that take it, remain for replicas of the previous release.
CREATE TYPE event_row AS (
    client_id            text,
    event_time           timestamptz,
    event_seq            bigint,
    day                  date,
    service              text,
    operation            text,
    model                text,
    units                numeric,
    input_tokens         bigint,
    output_tokens        bigint,
    cached_input_tokens  bigint,
    amount               numeric,
    charge               numeric,
    price_id             bigint,
    unpriced_reason      smallint,
    subject              text,
    external_id          text,
    idempotency_key      text,
    metadata             jsonb,
    service_tier         text,
    measures             jsonb
);

-- Adds to the sums of measures. The rows of their months are locked.
CREATE FUNCTION add_day_measures(measures day_measure_delta[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(measures) > 0 THEN
        INSERT INTO usage_day_measures AS t (client_id, day, service, operation, model, measure, quantity)
        SELECT * FROM unnest(measures)
        ON CONFLICT (client_id, day, service, operation, model, measure) DO UPDATE SET
            quantity = t.quantity + excluded.quantity;
    END IF;
END $$;

-- Changes sums other than by new events. Returns the changed months, as change_usage does.
CREATE FUNCTION correct_usage(
    months month_change[], month_services month_service_delta[], days day_delta[], measures day_measure_delta[]
)
RETURNS TABLE (
    client_id text, month date, cost numeric, raised_alerts integer, open_alerts integer, alert_bound numeric
)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM change_usage(months, month_services, days, '{}');
    PERFORM add_day_measures(measures);
END $$;

-- Adds new events to the sums of their months, appends pending rows for their days, adds their measures, and inserts the events.
-- Returns the changed months, as change_usage does.
CREATE FUNCTION add_new_usage(
    months month_change[], days day_delta[], measures day_measure_delta[], events event_row[]
)
RETURNS TABLE (
    client_id text, month date, cost numeric, raised_alerts integer, open_alerts integer, alert_bound numeric
)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM change_usage(months, '{}', '{}', '{}');
    IF (SELECT now() >= d.usage_pends_from FROM deployment d) THEN
        INSERT INTO pending_usage_days SELECT * FROM unnest(days);
    ELSE
        PERFORM FROM change_usage('{}', month_services_of(days), days, '{}');
    END IF;
    PERFORM add_day_measures(measures);
    IF cardinality(events) > 0 THEN
        INSERT INTO usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
            output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
            idempotency_key, metadata, service_tier, measures)
        SELECT * FROM unnest(events);
    END IF;
END $$;

-- Records a batch of new events. Returns false, and writes nothing, if one of the versions is not the current one or is
-- being changed. Fails with a unique violation if a key is taken, and with MT002 if a month reaches its alert bound; the
-- transaction is then rolled back. In each case the caller writes the batch in a transaction of several statements, which
-- takes the same locks in the same order.
CREATE FUNCTION record_events(
    expected_catalog bigint, expected_client_settings bigint, expected_closed_through date, expected_keys_pruned_through timestamptz,
    expected_generation integer, keys new_key[], months month_change[], days day_delta[], measures day_measure_delta[],
    events event_row[]
)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    changed bigint;
    reached bigint;
BEGIN
    -- The versions lock. It is not available while a transaction changes a version.
    IF NOT pg_try_advisory_xact_lock_shared(7882834701841596417) THEN
        RETURN false;
    END IF;
    PERFORM FROM catalog_version c, deployment d
    WHERE c.version = expected_catalog AND d.client_settings_version = expected_client_settings
      AND NULLIF(d.closed_through, '-infinity') IS NOT DISTINCT FROM expected_closed_through
      AND NULLIF(d.keys_pruned_through, '-infinity') IS NOT DISTINCT FROM expected_keys_pruned_through
      AND d.key_generation = expected_generation;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- Without ON CONFLICT, which would search the index twice for each key.
    INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill, generation)
    SELECT *, expected_generation FROM unnest(keys);
    SELECT count(*), count(*) FILTER (WHERE cost >= alert_bound) INTO changed, reached
    FROM add_new_usage(months, days, measures, events);
    IF changed < cardinality(months) THEN
        RAISE EXCEPTION 'a row of usage_months was neither inserted nor updated';
    END IF;
    IF reached > 0 THEN
        RAISE EXCEPTION 'the cost of a month has reached its alert bound' USING ERRCODE = 'MT002';
    END IF;
    RETURN true;
END $$;
