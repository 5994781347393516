-- For all clients: $1 is empty, and exists only because query_client_days.sql has the same parameters. $7 to $12 say which
-- dimensions to group by. The other dimensions are the same in all rows, so one order serves all groupings.
SELECT now() AS "now!",
    COALESCE(day, '0001-01-01'::date) AS "day!", COALESCE(month, '0001-01-01'::date) AS "month!",
    'epoch'::timestamptz AS "hour!", '{}'::text[] AS "labels!",
    COALESCE(client_id, '') AS "client_id!", COALESCE(service, '') AS "service!", COALESCE(operation, '') AS
    "operation!", COALESCE(model, '') AS "model!", '' AS "subject!",
    request_count AS "request_count!", units AS "units!: Numeric", input_tokens AS "input_tokens!", output_tokens AS
    "output_tokens!", cached_input_tokens AS "cached_input_tokens!", cost AS "cost!: Numeric", unpriced_event_count AS
    "unpriced_event_count!", 0::bigint AS "subject_count!"
FROM (
    SELECT CASE WHEN $7 THEN day END AS day,
           CASE WHEN $8 THEN date_trunc('month', day::timestamp)::date END AS month,
           CASE WHEN $9 THEN client_id END AS client_id,
           CASE WHEN $10 THEN service END AS service,
           CASE WHEN $11 THEN operation END AS operation,
           CASE WHEN $12 THEN model END AS model,
           COALESCE(sum(request_count), 0)::bigint AS request_count,
           COALESCE(sum(units), 0) AS units,
           COALESCE(sum(input_tokens), 0)::bigint AS input_tokens,
           COALESCE(sum(output_tokens), 0)::bigint AS output_tokens,
           COALESCE(sum(cached_input_tokens), 0)::bigint AS cached_input_tokens,
           COALESCE(sum(cost), 0) AS cost,
           COALESCE(sum(unpriced_event_count), 0)::bigint AS unpriced_event_count
    FROM all_usage_days
    WHERE cardinality($1::text[]) = 0
      AND (cardinality($2::text[]) = 0 OR service = ANY($2))
      AND (cardinality($3::text[]) = 0 OR operation = ANY($3))
      AND (cardinality($4::text[]) = 0 OR model = ANY($4))
      AND day BETWEEN $5 AND $6
      -- A row has zeros if all its events moved to another day; it is not usage.
      AND (request_count > 0 OR cost <> 0)
    GROUP BY 1, 2, 3, 4, 5, 6
    HAVING NOT $13 OR sum(unpriced_event_count) > 0
) AS grouped
WHERE NOT $14
   OR (COALESCE(day, '0001-01-01'::date), COALESCE(month, '0001-01-01'::date), COALESCE(client_id, ''), COALESCE(service, ''), COALESCE(operation, ''), COALESCE(model, ''))
      > ($15::date, $16::date, $17::text, $18::text, $19::text, $20::text)
ORDER BY day, month, client_id, service, operation, model
LIMIT $21
