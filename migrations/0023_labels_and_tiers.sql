-- Labels and reported costs of events, prices for one client, and rates with tiers.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that price without them end first

ALTER TABLE prices
    -- The price is only for this client. '': for any.
    ADD COLUMN client_id text COLLATE "C" NOT NULL DEFAULT '',
    -- Factor of the cost that the provider reports.
    ADD COLUMN reported_cost numeric,
    -- Rates with tiers: [{"component": "unit", "mode": 1, "package_size": "1", "tiers": [{"above": "0", "rate": "0.01", "flat_fee": "0"}]}].
    ADD COLUMN tiers jsonb NOT NULL DEFAULT '[]';
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
    ADD COLUMN labels jsonb,
    -- The month in whose tiers the event counts, or counted. It stays if the event moves to another month. NULL: in none so far.
    ADD COLUMN tier_month date,
    -- The part of the charge that is computed by tiers. NULL if the charge has none, or the event is voided.
    ADD COLUMN tier_charge numeric,
    -- The quantities that the month had before the event, and those of the event: {"unit": ["100", "50"]}. NULL as tier_charge.
    ADD COLUMN tier_uses jsonb,
    -- What remains in the cost of tiers that the event does not count in any more. NULL: nothing. Part of the cost of the event's
    -- day in addition to the charge, also if the event is voided.
    ADD COLUMN tier_residue numeric;

-- The quantities of months that are charged by tiers.
CREATE TABLE usage_tiers (
    client_id  text COLLATE "C" NOT NULL,
    month      date NOT NULL,
    price_id   bigint NOT NULL,
    component  text COLLATE "C" NOT NULL,
    quantity   numeric NOT NULL,
    PRIMARY KEY (client_id, month, price_id, component)
);

-- What a change of an event adds to the cost in addition to the difference of the charges. NULL: nothing.
ALTER TABLE usage_adjustments ADD COLUMN tier_residue numeric;

-- The quantities of usage_tiers as a dry run has changed them.
CREATE TABLE reprice_tiers (
    run_id     bigint NOT NULL,
    client_id  text COLLATE "C" NOT NULL,
    month      date NOT NULL,
    price_id   bigint NOT NULL,
    component  text COLLATE "C" NOT NULL,
    quantity   numeric NOT NULL,
    PRIMARY KEY (run_id, client_id, month, price_id, component)
);

-- Locks the rows of months in order, and creates those that do not exist. The content of the others stays.
CREATE FUNCTION lock_or_create_months(clients text[], months date[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
BEGIN
    PERFORM lock_months(clients, months);
    FOR wanted IN SELECT * FROM unnest(clients, months) AS u (client_id, month) LOOP
        PERFORM FROM usage_months t WHERE t.client_id = wanted.client_id AND t.month = wanted.month;
        IF NOT FOUND THEN
            -- Another transaction may create the row at the same time. Then this one waits for it, and locks the row.
            INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
                cached_input_tokens, cost, unpriced_event_count)
            VALUES (wanted.client_id, wanted.month, 0, 0, 0, 0, 0, 0, 0)
            ON CONFLICT (client_id, month) DO UPDATE SET request_count = t.request_count;
        END IF;
    END LOOP;
END $$;

-- A service whose events are all voided may have a cost that remains in its tiers.
CREATE OR REPLACE VIEW live_summaries AS
SELECT m.client_id, m.month, m.request_count, m.units, m.input_tokens, m.output_tokens, m.cached_input_tokens, m.cost,
       m.unpriced_event_count, counts.messages, counts.ai_calls, counts.voice_minutes, services.services
FROM usage_months m
CROSS JOIN LATERAL (
    SELECT COALESCE(sum(d.units) FILTER (WHERE s.category = 2), 0) AS messages,
           COALESCE(sum(d.request_count) FILTER (WHERE s.category = 1), 0)::bigint AS ai_calls,
           COALESCE(sum(d.units) FILTER (WHERE s.category = 3), 0) AS voice_minutes
    FROM all_usage_days d JOIN services s USING (service)
    WHERE d.client_id = m.client_id AND d.day >= m.month AND d.day < (m.month + interval '1 month')::date
      AND d.operation <> ALL (s.uncounted_operations)
) AS counts
CROSS JOIN LATERAL (
    SELECT COALESCE(jsonb_agg(jsonb_build_object(
               'service', s.service, 'request_count', s.request_count, 'units', s.units::text,
               'input_tokens', s.input_tokens, 'output_tokens', s.output_tokens,
               'cached_input_tokens', s.cached_input_tokens, 'cost', s.cost::text,
               'unpriced_event_count', s.unpriced_event_count) ORDER BY s.cost DESC, s.service), '[]') AS services
    FROM (
        SELECT a.service, sum(a.request_count)::bigint AS request_count, sum(a.units) AS units,
               sum(a.input_tokens)::bigint AS input_tokens, sum(a.output_tokens)::bigint AS output_tokens,
               sum(a.cached_input_tokens)::bigint AS cached_input_tokens, sum(a.cost) AS cost,
               sum(a.unpriced_event_count)::bigint AS unpriced_event_count
        FROM all_usage_month_services a
        WHERE a.client_id = m.client_id AND a.month = m.month AND (a.request_count > 0 OR a.cost <> 0)
        GROUP BY a.service
    ) AS s
) AS services;

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
    labels               jsonb,
    tier_month           date,
    tier_charge          numeric,
    tier_uses            jsonb
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
            idempotency_key, metadata, service_tier, measures, reported_cost, labels, tier_month, tier_charge, tier_uses)
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
