WITH top AS (
    SELECT service, operation FROM all_usage_days
    WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND request_count > 0
    GROUP BY service, operation ORDER BY sum(cost) DESC, service, operation LIMIT $4
), sums AS (
    SELECT day, service, NULL AS operation, sum(request_count) AS request_count, sum(units) AS units,
        sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
        sum(cached_input_tokens) AS cached_input_tokens, sum(cost) AS cost,
        sum(unpriced_event_count) AS unpriced_event_count
    FROM all_usage_days WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND request_count > 0
    GROUP BY GROUPING SETS ((), (service), (day))
    UNION ALL
    SELECT NULL, service, operation, sum(request_count), sum(units), sum(input_tokens), sum(output_tokens),
        sum(cached_input_tokens), sum(cost), sum(unpriced_event_count)
    FROM all_usage_days JOIN top USING (service, operation)
    WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND request_count > 0
    GROUP BY service, operation
)
SELECT now() AS "now!", (SELECT time_zone FROM clients WHERE client_id = $1) AS "time_zone?",
    day AS "day?", service AS "service?", operation AS "operation?",
    COALESCE(request_count, 0)::bigint AS "request_count!", COALESCE(units, 0) AS "units!: Numeric",
    COALESCE(input_tokens, 0)::bigint AS "input_tokens!",
    COALESCE(output_tokens, 0)::bigint AS "output_tokens!",
    COALESCE(cached_input_tokens, 0)::bigint AS "cached_input_tokens!", COALESCE(cost, 0) AS "cost!: Numeric",
    COALESCE(unpriced_event_count, 0)::bigint AS "unpriced_event_count!"
FROM sums ORDER BY day, COALESCE(cost, 0) DESC, service, operation
