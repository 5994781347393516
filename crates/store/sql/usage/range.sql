-- The usage of a client in the days from $2 to $3, by day and by operation, and the sums of measures, whose quantities are in
-- "units". One more row has the time zone of the client.
SELECT NULL::timestamptz AS "now?", NULL::text AS "time_zone?", day AS "day?", service AS "service?",
    operation AS "operation?", NULL::text AS "measure?", sum(request_count)::bigint AS "request_count!",
    sum(units) AS "units!: Numeric", sum(input_tokens)::bigint AS "input_tokens!",
    sum(output_tokens)::bigint AS "output_tokens!", sum(cached_input_tokens)::bigint AS "cached_input_tokens!",
    sum(cost) AS "cost!: Numeric", sum(unpriced_event_count)::bigint AS "unpriced_event_count!"
FROM all_usage_days WHERE client_id = $1 AND day BETWEEN $2 AND $3 AND (request_count > 0 OR cost <> 0)
GROUP BY GROUPING SETS ((day), (service, operation))
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, measure, 0, sum(quantity), 0, 0, 0, 0, 0
FROM usage_day_measures WHERE client_id = $1 AND day BETWEEN $2 AND $3
GROUP BY measure
UNION ALL
SELECT now(), time_zone, NULL, NULL, NULL, NULL, 0::bigint, 0::numeric, 0::bigint, 0::bigint, 0::bigint, 0::numeric,
    0::bigint
FROM clients WHERE client_id = $1
