-- Most small batches are written by one call of record_usage, without BEGIN and COMMIT. So the database itself must
-- know when the alert rules have to be evaluated: the row of each month has a bound, and a batch that reaches it is
-- written in a transaction of several statements instead.
SET LOCAL lock_timeout = '5s';

ALTER TABLE usage_months
    -- Below this cost, no alert is raised. NULL: no alert is raised at any cost. Valid only on alert_day, a day of the
    -- client, and for alert_version, which combines the version of policies and time zones with the version of the
    -- alert rules.
    ADD COLUMN alert_bound    numeric DEFAULT 0,
    ADD COLUMN alert_day      date NOT NULL DEFAULT '-infinity',
    ADD COLUMN alert_version  bigint NOT NULL DEFAULT -1;

-- What is added to the row of a month. The type month_delta remains for replicas of the previous release.
CREATE TYPE month_change AS (
    client_id             text,
    month                 date,
    request_count         bigint,
    units                 numeric,
    input_tokens          bigint,
    output_tokens         bigint,
    cached_input_tokens   bigint,
    cost                  numeric,
    unpriced_event_count  bigint,
    -- A bound that is valid for any content of the row.
    alert_bound           numeric,
    alert_day             date,
    alert_version         bigint
);

-- Adds to sums and inserts events, one statement for each table. The rows below a month are changed after the row of the month is
-- locked. Returns the changed months. A bound of another day or version is replaced.
CREATE FUNCTION add_usage(
    months month_change[], month_services month_service_delta[], days day_delta[], events new_event[]
)
RETURNS TABLE (
    client_id text, month date, cost numeric, raised_alerts integer, open_alerts integer, alert_bound numeric
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
        cached_input_tokens, cost, unpriced_event_count, alert_bound, alert_day, alert_version, summary_stale_since)
    SELECT *, now() FROM unnest(months)
    ON CONFLICT (client_id, month) DO UPDATE SET
        request_count = t.request_count + excluded.request_count,
        units = t.units + excluded.units,
        input_tokens = t.input_tokens + excluded.input_tokens,
        output_tokens = t.output_tokens + excluded.output_tokens,
        cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
        cost = t.cost + excluded.cost,
        unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count,
        alert_bound = CASE WHEN t.alert_day = excluded.alert_day AND t.alert_version = excluded.alert_version
                           THEN t.alert_bound ELSE excluded.alert_bound END,
        alert_day = excluded.alert_day,
        alert_version = excluded.alert_version,
        summary_stale_since = COALESCE(t.summary_stale_since, excluded.summary_stale_since)
    RETURNING t.client_id, t.month, t.cost, t.raised_alerts, t.open_alerts, t.alert_bound;

    IF cardinality(month_services) > 0 THEN
        INSERT INTO usage_month_services AS t (client_id, month, service, request_count, units, input_tokens,
            output_tokens, cached_input_tokens, cost, unpriced_event_count)
        SELECT * FROM unnest(month_services)
        ON CONFLICT (client_id, month, service) DO UPDATE SET
            request_count = t.request_count + excluded.request_count,
            units = t.units + excluded.units,
            input_tokens = t.input_tokens + excluded.input_tokens,
            output_tokens = t.output_tokens + excluded.output_tokens,
            cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
            cost = t.cost + excluded.cost,
            unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count;
    END IF;
    IF cardinality(days) > 0 THEN
        INSERT INTO usage_days AS t (client_id, day, service, operation, model, request_count, units, input_tokens,
            output_tokens, cached_input_tokens, cost, unpriced_event_count)
        SELECT * FROM unnest(days)
        ON CONFLICT (client_id, day, service, operation, model) DO UPDATE SET
            request_count = t.request_count + excluded.request_count,
            units = t.units + excluded.units,
            input_tokens = t.input_tokens + excluded.input_tokens,
            output_tokens = t.output_tokens + excluded.output_tokens,
            cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
            cost = t.cost + excluded.cost,
            unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count;
    END IF;
    IF cardinality(events) > 0 THEN
        INSERT INTO usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
            output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
            idempotency_key, metadata)
        SELECT * FROM unnest(events);
    END IF;
END $$;

-- Claims keys in a generation, and returns the sequence numbers of the events whose keys were free.
CREATE FUNCTION claim_keys(in_generation integer, keys new_key[])
RETURNS TABLE (event_seq bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    INSERT INTO idempotency_keys AS k (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill, generation)
    SELECT *, in_generation FROM unnest(keys)
    ON CONFLICT DO NOTHING
    RETURNING k.event_seq;
END $$;

-- Records a batch of new events. Returns false, and writes nothing, if one of the versions is not the current one or is
-- being changed. Fails with MT001 if a key is taken, and with MT002 if a month reaches its alert bound; the transaction
-- is then rolled back. In each case the caller writes the batch in a transaction of several statements, which takes the
-- same locks in the same order.
CREATE FUNCTION record_usage(
    expected_catalog bigint, expected_client_settings bigint, expected_closed_through date, expected_keys_pruned_through timestamptz,
    expected_generation integer, keys new_key[], months month_change[], month_services month_service_delta[],
    days day_delta[], events new_event[]
)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    claimed bigint;
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
    -- Not ROW_COUNT: in a distributed database, it would also count the rows that were in conflict.
    SELECT count(*) INTO claimed FROM claim_keys(expected_generation, keys);
    IF claimed < cardinality(keys) THEN
        RAISE EXCEPTION 'an idempotency key is taken' USING ERRCODE = 'MT001';
    END IF;
    SELECT count(*), count(*) FILTER (WHERE cost >= alert_bound) INTO changed, reached
    FROM add_usage(months, month_services, days, events);
    IF changed < cardinality(months) THEN
        RAISE EXCEPTION 'a row of usage_months was neither inserted nor updated';
    END IF;
    IF reached > 0 THEN
        RAISE EXCEPTION 'the cost of a month has reached its alert bound' USING ERRCODE = 'MT002';
    END IF;
    RETURN true;
END $$;

-- Returns whether Citus distributes this table over several servers. False if there is no such table.
CREATE FUNCTION is_distributed(table_name text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    -- Without Citus this catalog does not exist, and a statement that names it cannot run.
    IF to_regclass('pg_catalog.pg_dist_partition') IS NULL THEN
        RETURN false;
    END IF;
    RETURN EXISTS (SELECT 1 FROM pg_catalog.pg_dist_partition WHERE logicalrelid = to_regclass(table_name));
END $$;

-- Returns the bytes that a table takes on the disks of all servers, with its indexes. NULL if there is no such table.
CREATE FUNCTION disk_bytes(table_name text)
RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF is_distributed(table_name) THEN
        RETURN citus_total_relation_size(to_regclass(table_name));
    END IF;
    RETURN pg_total_relation_size(to_regclass(table_name));
END $$;

-- Locks the rows of months in order of client and month. Months without a row are left out.
CREATE FUNCTION lock_months(clients text[], months date[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
BEGIN
    IF NOT is_distributed('usage_months') THEN
        PERFORM FROM usage_months JOIN unnest(clients, months) AS wanted (client_id, month) USING (client_id, month)
        ORDER BY client_id, month FOR UPDATE OF usage_months;
        RETURN;
    END IF;
    -- In a distributed database, one statement can lock the rows of only one client.
    FOR wanted IN
        SELECT u.client_id, array_agg(u.month) AS months FROM unnest(clients, months) AS u (client_id, month)
        GROUP BY u.client_id ORDER BY u.client_id COLLATE "C"
    LOOP
        PERFORM FROM usage_months t WHERE t.client_id = wanted.client_id AND t.month = ANY (wanted.months)
        ORDER BY t.month FOR UPDATE;
    END LOOP;
END $$;
