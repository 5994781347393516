-- Claims keys in generation $6, adds to months, and, once these are locked, adds to the rows below them. Writes nothing but the free keys if a
-- key was already taken.
WITH claimed AS (
    INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, backfill, generation)
    SELECT *, $6::integer FROM unnest($1::new_key[])
    ON CONFLICT DO NOTHING
    RETURNING event_seq
), months AS (
    INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
        cached_input_tokens, cost, unpriced_event_count, summary_stale_since)
    SELECT *, now() FROM unnest($2::month_delta[])
    WHERE (SELECT count(*) FROM claimed) = cardinality($1)
    ON CONFLICT (client_id, month) DO UPDATE SET
        request_count = t.request_count + excluded.request_count,
        units = t.units + excluded.units,
        input_tokens = t.input_tokens + excluded.input_tokens,
        output_tokens = t.output_tokens + excluded.output_tokens,
        cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
        cost = t.cost + excluded.cost,
        unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count,
        summary_stale_since = COALESCE(t.summary_stale_since, now())
    RETURNING client_id, month, cost, raised_alerts, open_alerts
), month_services AS (
    INSERT INTO usage_month_services AS t (client_id, month, service, request_count, units, input_tokens,
        output_tokens, cached_input_tokens, cost, unpriced_event_count)
    SELECT * FROM unnest($3::month_service_delta[])
    WHERE (SELECT count(*) FROM months) = cardinality($2)
    ON CONFLICT (client_id, month, service) DO UPDATE SET
        request_count = t.request_count + excluded.request_count,
        units = t.units + excluded.units,
        input_tokens = t.input_tokens + excluded.input_tokens,
        output_tokens = t.output_tokens + excluded.output_tokens,
        cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
        cost = t.cost + excluded.cost,
        unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count
), days AS (
    INSERT INTO usage_days AS t (client_id, day, service, operation, model, request_count, units, input_tokens,
        output_tokens, cached_input_tokens, cost, unpriced_event_count)
    SELECT * FROM unnest($4::day_delta[])
    WHERE (SELECT count(*) FROM months) = cardinality($2)
    ON CONFLICT (client_id, day, service, operation, model) DO UPDATE SET
        request_count = t.request_count + excluded.request_count,
        units = t.units + excluded.units,
        input_tokens = t.input_tokens + excluded.input_tokens,
        output_tokens = t.output_tokens + excluded.output_tokens,
        cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
        cost = t.cost + excluded.cost,
        unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count
), events AS (
    INSERT INTO usage_events (client_id, event_time, event_seq, day, service, operation, model, units,
        input_tokens, output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject,
        external_id, idempotency_key, metadata)
    SELECT * FROM unnest($5::new_event[])
    WHERE (SELECT count(*) FROM claimed) = cardinality($1)
)
SELECT claims.all_free AS "all_free!",
       CASE WHEN claims.all_free THEN '{}' ELSE ARRAY(SELECT event_seq FROM claimed) END AS "claimed!",
       m.client_id AS "client_id?", m.month AS "month?", m.cost AS "cost?: Numeric",
       m.raised_alerts AS "raised_alerts?", m.open_alerts AS "open_alerts?"
FROM (SELECT count(*) = cardinality($1) AS all_free FROM claimed) AS claims LEFT JOIN months m ON true
