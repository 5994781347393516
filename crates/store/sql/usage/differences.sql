-- Compares the rows of days, month services and months with the events. The scope is the clients after $1 up to and including
-- $2, or the client $7, and the days from $3 to before $4, which are whole months. Events outside of $5 to before $6 are on
-- other days in every time zone. A row of a day or of a month service without any event is a difference, even if it is all
-- zeros. The row of a month without any event is a difference only if it is not all zeros. Each result row has the counts of
-- what was compared; without a difference, one result row has only these counts.
WITH event_days AS (
    SELECT client_id, day, service, operation, model, count(*) FILTER (WHERE void_time IS NULL) AS request_count,
           COALESCE(sum(units) FILTER (WHERE void_time IS NULL), 0) AS units,
           COALESCE(sum(input_tokens) FILTER (WHERE void_time IS NULL), 0) AS input_tokens,
           COALESCE(sum(output_tokens) FILTER (WHERE void_time IS NULL), 0) AS output_tokens,
           COALESCE(sum(cached_input_tokens) FILTER (WHERE void_time IS NULL), 0) AS cached_input_tokens,
           COALESCE(sum(charge) FILTER (WHERE void_time IS NULL), 0) + COALESCE(sum(tier_residue), 0) AS cost,
           count(unpriced_reason) FILTER (WHERE void_time IS NULL) AS unpriced_event_count
    FROM usage_events
    WHERE (void_time IS NULL OR tier_residue IS NOT NULL) AND ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND day >= COALESCE($3, '-infinity'::date)
      AND day < COALESCE($4, 'infinity'::date) AND event_time >= COALESCE($5, '-infinity'::timestamptz)
      AND event_time < COALESCE($6, 'infinity'::timestamptz)
      -- Leaves out events whose time is outside of the month of their day in every time zone.
      AND event_time >= (date_trunc('month', day::timestamp) - interval '1 day') AT TIME ZONE 'UTC'
      AND event_time < (date_trunc('month', day::timestamp) + interval '1 month 1 day') AT TIME ZONE 'UTC'
    GROUP BY client_id, day, service, operation, model
), expected AS (
    SELECT 'day' AS kind, * FROM event_days
    UNION ALL
    SELECT CASE WHEN GROUPING(service) = 1 THEN 'month' ELSE 'month_service' END, client_id, month, COALESCE(service, ''),
           '', '', sum(request_count), sum(units), sum(input_tokens), sum(output_tokens), sum(cached_input_tokens),
           sum(cost), sum(unpriced_event_count)
    FROM (SELECT *, date_trunc('month', day::timestamp)::date AS month FROM event_days) AS of_month
    GROUP BY GROUPING SETS ((client_id, month, service), (client_id, month))
), actual AS (
    SELECT 'day' AS kind, client_id, day, service, operation, model, sum(request_count)::bigint AS request_count, sum(units) AS units,
           sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
           sum(cached_input_tokens)::bigint AS cached_input_tokens, sum(cost) AS cost,
           sum(unpriced_event_count)::bigint AS unpriced_event_count
    FROM all_usage_days
    WHERE ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND day >= COALESCE($3, '-infinity'::date)
      AND day < COALESCE($4, 'infinity'::date)
    GROUP BY client_id, day, service, operation, model
    UNION ALL
    SELECT 'month_service', client_id, month, service, '', '', sum(request_count)::bigint, sum(units),
           sum(input_tokens)::bigint, sum(output_tokens)::bigint,
           sum(cached_input_tokens)::bigint, sum(cost),
           sum(unpriced_event_count)::bigint
    FROM all_usage_month_services
    WHERE ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND month >= COALESCE($3, '-infinity'::date)
      AND month < COALESCE($4, 'infinity'::date)
    GROUP BY client_id, month, service
    UNION ALL
    SELECT 'month', client_id, month, '', '', '', request_count, units, input_tokens, output_tokens, cached_input_tokens,
           cost, unpriced_event_count
    FROM usage_months
    WHERE ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND month >= COALESCE($3, '-infinity'::date)
      AND month < COALESCE($4, 'infinity'::date)
), joined AS (
    SELECT kind, client_id, day, service, operation, model,
           COALESCE(e.request_count, 0)::bigint AS request_count, COALESCE(e.units, 0) AS units,
           COALESCE(e.input_tokens, 0)::bigint AS input_tokens, COALESCE(e.output_tokens, 0)::bigint AS output_tokens,
           COALESCE(e.cached_input_tokens, 0)::bigint AS cached_input_tokens, COALESCE(e.cost, 0) AS cost,
           COALESCE(e.unpriced_event_count, 0)::bigint AS unpriced_event_count,
           COALESCE(a.request_count, 0) AS actual_request_count, COALESCE(a.units, 0) AS actual_units,
           COALESCE(a.input_tokens, 0) AS actual_input_tokens, COALESCE(a.output_tokens, 0) AS actual_output_tokens,
           COALESCE(a.cached_input_tokens, 0) AS actual_cached_input_tokens, COALESCE(a.cost, 0) AS actual_cost,
           COALESCE(a.unpriced_event_count, 0) AS actual_unpriced_event_count,
           e.request_count IS NULL AND kind <> 'month' AS left_over
    FROM expected e FULL JOIN actual a USING (kind, client_id, day, service, operation, model)
), compared AS (
    SELECT count(*) FILTER (WHERE kind = 'month')
               AS client_months,
           COALESCE(sum(request_count) FILTER (WHERE kind = 'month'), 0)::bigint AS events
    FROM joined
)
SELECT client_months AS "client_months!", events AS "events!", kind AS "kind?", client_id AS "client_id?", day AS "day?",
    service AS "service?", operation AS "operation?", model AS "model?", request_count AS "request_count?",
    units AS "units?: Numeric", input_tokens AS "input_tokens?", output_tokens AS "output_tokens?",
    cached_input_tokens AS "cached_input_tokens?", cost AS "cost?: Numeric",
    unpriced_event_count AS "unpriced_event_count?", actual_request_count AS "actual_request_count?",
    actual_units AS "actual_units?: Numeric", actual_input_tokens AS "actual_input_tokens?",
    actual_output_tokens AS "actual_output_tokens?", actual_cached_input_tokens AS "actual_cached_input_tokens?",
    actual_cost AS "actual_cost?: Numeric", actual_unpriced_event_count AS "actual_unpriced_event_count?"
FROM compared
LEFT JOIN joined ON (request_count, units, input_tokens, output_tokens, cached_input_tokens, cost, unpriced_event_count)
    <> (actual_request_count, actual_units, actual_input_tokens, actual_output_tokens, actual_cached_input_tokens,
        actual_cost, actual_unpriced_event_count) OR left_over
ORDER BY client_id, date_trunc('month', day::timestamp), kind, day, service, operation, model
