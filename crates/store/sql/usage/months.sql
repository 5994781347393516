-- The usage of a client in the months from $2 to $3: rows of services, which must be added up, and rows of measures, whose
-- quantities are in "units". One more row has the time zone of the client.
--
-- Unless $4 is NULL, also what a forecast needs. The days from $4 to $5: "cost" is that of the services that are not in $6, "units" the
-- cost of those in $6, and "request_count" is 1 if there is usage of the former. In the row with the time zone, "request_count" is 1 if
-- there is such usage before $4. The alert policies that apply to the client, with the client in "service".
SELECT NULL::timestamptz AS "now?", NULL::text AS "time_zone?", NULL::text AS "policy?", NULL::date AS "day?", month AS "month?",
    service AS "service?", NULL::text AS "measure?", request_count AS "request_count!", units AS "units!: Numeric",
    input_tokens AS "input_tokens!", output_tokens AS "output_tokens!", cached_input_tokens AS "cached_input_tokens!",
    cost AS "cost!: Numeric", unpriced_event_count AS "unpriced_event_count!"
FROM all_usage_month_services WHERE client_id = $1 AND month BETWEEN $2 AND $3 AND (request_count > 0 OR cost <> 0)
UNION ALL
SELECT NULL, NULL, NULL, NULL, date_trunc('month', day::timestamp)::date, NULL, measure, 0, quantity, 0, 0, 0, 0, 0
FROM usage_day_measures
WHERE client_id = $1 AND day >= $2 AND day < ($3::date + interval '1 month')::date
UNION ALL
SELECT NULL, NULL, NULL, day, NULL, NULL, NULL, bool_or(service <> ALL ($6))::int::bigint,
    COALESCE(sum(cost) FILTER (WHERE service = ANY ($6)), 0), 0, 0, 0,
    COALESCE(sum(cost) FILTER (WHERE service <> ALL ($6)), 0), 0
FROM all_usage_days WHERE client_id = $1 AND day BETWEEN $4 AND $5 AND (request_count > 0 OR cost <> 0)
GROUP BY day
UNION ALL
SELECT NULL, NULL, policy::text, NULL, NULL, client_id, NULL, 0, 0, 0, 0, 0, 0, 0
FROM alert_policies WHERE $4::date IS NOT NULL AND client_id IN ('', $1)
UNION ALL
SELECT now(), time_zone, NULL, NULL, NULL, NULL, NULL, EXISTS (
        SELECT FROM all_usage_days
        WHERE client_id = $1 AND day < $4 AND service <> ALL ($6) AND (request_count > 0 OR cost <> 0)
    )::int::bigint, 0::numeric, 0::bigint, 0::bigint, 0::bigint, 0::numeric, 0::bigint
FROM clients WHERE client_id = $1
