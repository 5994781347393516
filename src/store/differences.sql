-- Rows of days, month services and months that do not equal the events of client $1 in the month from $2 to before $3.
-- Events outside $4 to before $5 are in another month in any time zone. A row of zeros equals no row.
WITH event_days AS (
    SELECT day, service, operation, model, count(*) AS request_count, sum(units) AS units, sum(input_tokens) AS input_tokens,
           sum(output_tokens) AS output_tokens, sum(cached_input_tokens) AS cached_input_tokens,
           COALESCE(sum(charge), 0) AS cost, count(unpriced_reason) AS unpriced_event_count
    FROM usage_events
    WHERE client_id = $1 AND day >= $2 AND day < $3 AND event_time >= $4 AND event_time < $5
    GROUP BY day, service, operation, model
), expected AS (
    SELECT 'day' AS kind, * FROM event_days
    UNION ALL
    SELECT CASE WHEN GROUPING(service) = 1 THEN 'month' ELSE 'month_service' END, $2, COALESCE(service, ''), '', '',
           sum(request_count), sum(units), sum(input_tokens), sum(output_tokens), sum(cached_input_tokens), sum(cost),
           sum(unpriced_event_count)
    FROM event_days GROUP BY GROUPING SETS ((service), ())
), actual AS (
    SELECT 'day' AS kind, day, service, operation, model, request_count, units, input_tokens, output_tokens,
           cached_input_tokens, cost, unpriced_event_count
    FROM usage_days WHERE client_id = $1 AND day >= $2 AND day < $3
    UNION ALL
    SELECT 'month_service', month, service, '', '', request_count, units, input_tokens, output_tokens,
           cached_input_tokens, cost, unpriced_event_count
    FROM usage_month_services WHERE client_id = $1 AND month = $2
    UNION ALL
    SELECT 'month', month, '', '', '', request_count, units, input_tokens, output_tokens, cached_input_tokens, cost,
           unpriced_event_count
    FROM usage_months WHERE client_id = $1 AND month = $2
), joined AS (
    SELECT kind, day, service, operation, model,
           COALESCE(e.request_count, 0)::bigint AS request_count, COALESCE(e.units, 0) AS units,
           COALESCE(e.input_tokens, 0)::bigint AS input_tokens, COALESCE(e.output_tokens, 0)::bigint AS output_tokens,
           COALESCE(e.cached_input_tokens, 0)::bigint AS cached_input_tokens, COALESCE(e.cost, 0) AS cost,
           COALESCE(e.unpriced_event_count, 0)::bigint AS unpriced_event_count,
           COALESCE(a.request_count, 0) AS actual_request_count, COALESCE(a.units, 0) AS actual_units,
           COALESCE(a.input_tokens, 0) AS actual_input_tokens, COALESCE(a.output_tokens, 0) AS actual_output_tokens,
           COALESCE(a.cached_input_tokens, 0) AS actual_cached_input_tokens, COALESCE(a.cost, 0) AS actual_cost,
           COALESCE(a.unpriced_event_count, 0) AS actual_unpriced_event_count
    FROM expected e FULL JOIN actual a USING (kind, day, service, operation, model)
)
SELECT kind AS "kind!", day AS "day!", service AS "service!", operation AS "operation!", model AS "model!",
    request_count AS "request_count!", units AS "units!", input_tokens AS "input_tokens!",
    output_tokens AS "output_tokens!", cached_input_tokens AS "cached_input_tokens!", cost AS "cost!",
    unpriced_event_count AS "unpriced_event_count!", actual_request_count AS "actual_request_count!",
    actual_units AS "actual_units!", actual_input_tokens AS "actual_input_tokens!",
    actual_output_tokens AS "actual_output_tokens!", actual_cached_input_tokens AS "actual_cached_input_tokens!",
    actual_cost AS "actual_cost!", actual_unpriced_event_count AS "actual_unpriced_event_count!"
FROM joined
WHERE (request_count, units, input_tokens, output_tokens, cached_input_tokens, cost, unpriced_event_count)
   <> (actual_request_count, actual_units, actual_input_tokens, actual_output_tokens, actual_cached_input_tokens,
       actual_cost, actual_unpriced_event_count)
ORDER BY kind, day, service, operation, model
