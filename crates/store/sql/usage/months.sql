-- The usage of a client in the months from $2 to $3: rows of services, which must be added up, and rows of measures, whose
-- quantities are in "units". One more row has the time zone of the client.
SELECT NULL::timestamptz AS "now?", NULL::text AS "time_zone?", month AS "month?", service AS "service?",
    NULL::text AS "measure?", request_count AS "request_count!", units AS "units!: Numeric",
    input_tokens AS "input_tokens!", output_tokens AS "output_tokens!", cached_input_tokens AS "cached_input_tokens!",
    cost AS "cost!: Numeric", unpriced_event_count AS "unpriced_event_count!"
FROM all_usage_month_services WHERE client_id = $1 AND month BETWEEN $2 AND $3 AND (request_count > 0 OR cost <> 0)
UNION ALL
SELECT NULL, NULL, date_trunc('month', day::timestamp)::date, NULL, measure, 0, quantity, 0, 0, 0, 0, 0
FROM usage_day_measures
WHERE client_id = $1 AND day >= $2 AND day < ($3::date + interval '1 month')::date
UNION ALL
SELECT now(), time_zone, NULL, NULL, NULL, 0::bigint, 0::numeric, 0::bigint, 0::bigint, 0::bigint, 0::numeric, 0::bigint
FROM clients WHERE client_id = $1
