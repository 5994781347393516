-- Labels and reported costs of events, and prices for one client.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that price without them end first

ALTER TABLE prices
    -- The price is only for this client. '': for any.
    ADD COLUMN client_id text COLLATE "C" NOT NULL DEFAULT '',
    -- Factor of the cost that the provider reports.
    ADD COLUMN reported_cost numeric;
DROP INDEX prices_scope;
CREATE UNIQUE INDEX prices_scope
    ON prices (client_id, service, operation, model, service_tier, above_input_tokens, effective_time)
    WHERE withdraw_time IS NULL;
-- The order of the list.
DROP INDEX prices_listed;
CREATE INDEX prices_listed
    ON prices (client_id, service, operation, model, service_tier, above_input_tokens, effective_time, price_id);

ALTER TABLE usage_events
    -- What the provider charges by its own report. Its sums, and the number of events that have one, are in usage_day_measures.
    ADD COLUMN reported_cost numeric,
    -- What the event can be grouped by: {"project": "apollo"}. NULL if it has no label.
    ADD COLUMN labels jsonb;

-- A row of usage_events. The type event_row, and the functions that take it, remain for replicas of the previous release.
CREATE TYPE recorded_event AS (
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
    measures             jsonb,
    reported_cost        numeric,
    labels               jsonb
);

-- Adds new events to the sums of their months, appends pending rows for their days, adds their measures, and inserts the events.
-- Returns the changed months, as change_usage does.
CREATE FUNCTION add_new_usage(
    months month_change[], days day_delta[], measures day_measure_delta[], events recorded_event[]
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
            idempotency_key, metadata, service_tier, measures, reported_cost, labels)
        SELECT * FROM unnest(events);
    END IF;
END $$;

-- The function record_events of migration 0021, for events with labels and reported costs.
CREATE FUNCTION record_events(
    expected_catalog bigint, expected_client_settings bigint, expected_closed_through date, expected_keys_pruned_through timestamptz,
    expected_generation integer, keys new_key[], months month_change[], days day_delta[], measures day_measure_delta[],
    events recorded_event[]
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

-- Replicas of the release before the previous one do not run any more.
DROP FUNCTION add_new_usage(month_change[], day_delta[], new_event[]);
