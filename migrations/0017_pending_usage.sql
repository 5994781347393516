-- New events change the row of their month at once. The sums that they add to the rows of services and days are appended to
-- pending_usage_days, and applied to these rows later: one update of a row then covers many events. Readers use the views below,
-- which include pending rows.
SET LOCAL lock_timeout = '5s';

-- Sums of new events that are not yet in usage_days and usage_month_services. Several rows may belong to the same row of usage_days.
CREATE TABLE pending_usage_days (
    client_id             text COLLATE "C" NOT NULL,
    day                   date NOT NULL,
    service               text COLLATE "C" NOT NULL,
    operation             text COLLATE "C" NOT NULL,
    model                 text COLLATE "C" NOT NULL,
    request_count         bigint NOT NULL,
    units                 numeric NOT NULL,
    input_tokens          bigint NOT NULL,
    output_tokens         bigint NOT NULL,
    cached_input_tokens   bigint NOT NULL,
    cost                  numeric NOT NULL,
    unpriced_event_count  bigint NOT NULL
) WITH (
    -- All rows are deleted soon. To truncate the table afterwards would block readers and writers.
    vacuum_truncate = false, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000
);
CREATE INDEX pending_usage_days_client ON pending_usage_days (client_id);
-- A plan that is made while the table has a few pages scans all of it, and may still be used when the table has grown. With
-- these pages, which the table keeps unless it is written anew, every plan for a client uses the index.
INSERT INTO pending_usage_days SELECT '', '-infinity', '', '', '', 0, 0, 0, 0, 0, 0, 0 FROM generate_series(1, 5000);
DELETE FROM pending_usage_days;

-- The sums of days, with pending rows: add the rows of the same day, service, operation and model.
CREATE VIEW all_usage_days AS
SELECT client_id, day, service, operation, model, request_count, units, input_tokens, output_tokens, cached_input_tokens,
       cost, unpriced_event_count
FROM usage_days
UNION ALL
SELECT client_id, day, service, operation, model, request_count, units, input_tokens, output_tokens, cached_input_tokens,
       cost, unpriced_event_count
FROM pending_usage_days;

-- The sums of the services of months, with pending rows: add the rows of the same month and service.
CREATE VIEW all_usage_month_services AS
SELECT client_id, month, service, request_count, units, input_tokens, output_tokens, cached_input_tokens, cost,
       unpriced_event_count
FROM usage_month_services
UNION ALL
SELECT client_id, date_trunc('month', day::timestamp)::date, service, request_count, units, input_tokens, output_tokens,
       cached_input_tokens, cost, unpriced_event_count
FROM pending_usage_days;

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
        WHERE a.client_id = m.client_id AND a.month = m.month AND a.request_count > 0
        GROUP BY a.service
    ) AS s
) AS services;

-- Replicas of the previous release do not read pending rows. For an hour, in which they can be replaced, no row is appended.
ALTER TABLE deployment ADD COLUMN usage_pends_from timestamptz NOT NULL DEFAULT '-infinity';
UPDATE deployment SET usage_pends_from = now() + interval '1 hour' WHERE EXISTS (SELECT FROM usage_months);

ALTER FUNCTION add_usage(month_change[], month_service_delta[], day_delta[], new_event[]) RENAME TO change_usage;

-- For replicas of the previous release. After the hour, their corrections would count pending rows twice.
CREATE FUNCTION add_usage(
    months month_change[], month_services month_service_delta[], days day_delta[], events new_event[]
)
RETURNS TABLE (
    client_id text, month date, cost numeric, raised_alerts integer, open_alerts integer, alert_bound numeric
)
LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(days) + cardinality(month_services) > 0 AND (SELECT now() >= d.usage_pends_from FROM deployment d) THEN
        RAISE EXCEPTION 'this replica has an older release of meterd than the database: replace it';
    END IF;
    RETURN QUERY SELECT * FROM change_usage(months, month_services, days, events);
END $$;

-- Returns the sums of the services of months, sorted.
CREATE FUNCTION month_services_of(days day_delta[])
RETURNS month_service_delta[] LANGUAGE sql AS $$
    SELECT array_agg(ROW(client_id, month, service, request_count, units, input_tokens, output_tokens,
               cached_input_tokens, cost, unpriced_event_count)::month_service_delta ORDER BY client_id, month, service)
    FROM (
        SELECT client_id COLLATE "C" AS client_id, date_trunc('month', day::timestamp)::date AS month,
               service COLLATE "C" AS service, sum(request_count)::bigint AS request_count, sum(units) AS units,
               sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
               sum(cached_input_tokens)::bigint AS cached_input_tokens, sum(cost) AS cost,
               sum(unpriced_event_count)::bigint AS unpriced_event_count
        FROM unnest(days) GROUP BY 1, 2, 3
    ) AS sums
$$;

-- Adds new events to the sums of their months, appends pending rows for their days, and inserts the events. Returns the changed
-- months, as change_usage does.
CREATE FUNCTION add_new_usage(months month_change[], days day_delta[], events new_event[])
RETURNS TABLE (
    client_id text, month date, cost numeric, raised_alerts integer, open_alerts integer, alert_bound numeric
)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM change_usage(months, '{}', '{}', events);
    IF (SELECT now() >= d.usage_pends_from FROM deployment d) THEN
        INSERT INTO pending_usage_days SELECT * FROM unnest(days);
    ELSE
        PERFORM FROM change_usage('{}', month_services_of(days), days, '{}');
    END IF;
END $$;

-- Records a batch of new events. Returns false, and writes nothing, if one of the versions is not the current one or is
-- being changed. Fails with a unique violation if a key is taken, and with MT002 if a month reaches its alert bound; the
-- transaction is then rolled back. In each case the caller writes the batch in a transaction of several statements, which
-- takes the same locks in the same order.
CREATE FUNCTION record_usage(
    expected_catalog bigint, expected_client_settings bigint, expected_closed_through date, expected_keys_pruned_through timestamptz,
    expected_generation integer, keys new_key[], months month_change[], days day_delta[], events new_event[]
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
    FROM add_new_usage(months, days, events);
    IF changed < cardinality(months) THEN
        RAISE EXCEPTION 'a row of usage_months was neither inserted nor updated';
    END IF;
    IF reached > 0 THEN
        RAISE EXCEPTION 'the cost of a month has reached its alert bound' USING ERRCODE = 'MT002';
    END IF;
    RETURN true;
END $$;

-- Applies the pending usage of clients to the rows of services and days, and returns the number of pending rows. Only one
-- transaction at a time does this. The sums of the views do not change.
CREATE FUNCTION apply_pending_usage(clients text[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    row_count bigint;
    sums day_delta[];
BEGIN
    PERFORM pg_advisory_xact_lock(7882834701841596422);
    WITH applied AS (
        DELETE FROM pending_usage_days WHERE client_id = ANY (clients) RETURNING *
    ), summed AS (
        SELECT client_id, day, service, operation, model, sum(request_count)::bigint AS request_count, sum(units) AS units,
               sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
               sum(cached_input_tokens)::bigint AS cached_input_tokens, sum(cost) AS cost,
               sum(unpriced_event_count)::bigint AS unpriced_event_count, count(*) AS row_count
        FROM applied GROUP BY 1, 2, 3, 4, 5
    )
    SELECT COALESCE(sum(s.row_count), 0)::bigint, array_agg(
               ROW(client_id, day, service, operation, model, request_count, units, input_tokens, output_tokens,
                   cached_input_tokens, cost, unpriced_event_count)::day_delta
               ORDER BY client_id, day, service, operation, model)
    INTO row_count, sums FROM summed s;
    IF row_count > 0 THEN
        PERFORM FROM change_usage('{}', month_services_of(sums), sums, '{}');
    END IF;
    RETURN row_count;
END $$;
