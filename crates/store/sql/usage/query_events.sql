-- The statement of query_days.sql on the events, because the rollups have no hours, subjects and labels. The names of the labels to
-- group by are in $29; labels has their values.
SELECT now() AS "now!",
    COALESCE(day, '0001-01-01'::date) AS "day!", COALESCE(month, '0001-01-01'::date) AS "month!",
    COALESCE(hour, 'epoch'::timestamptz) AS "hour!", labels AS "labels!", COALESCE(client_id, '') AS "client_id!", COALESCE(service, '') AS "service!", COALESCE(operation, '') AS
    "operation!", COALESCE(model, '') AS "model!", COALESCE(subject, '') AS "subject!",
    request_count AS "request_count!", units AS "units!: Numeric", input_tokens AS "input_tokens!", output_tokens AS
    "output_tokens!", cached_input_tokens AS "cached_input_tokens!", cost AS "cost!: Numeric", unpriced_event_count AS
    "unpriced_event_count!", subject_count AS "subject_count!"
FROM (
    SELECT CASE WHEN $7 THEN day END AS day,
           CASE WHEN $8 THEN date_trunc('month', day::timestamp)::date END AS month,
           CASE WHEN $28 THEN date_trunc('hour', event_time, 'UTC') END AS hour,
           CASE WHEN $9 THEN client_id END AS client_id,
           CASE WHEN $10 THEN service END AS service,
           CASE WHEN $11 THEN operation END AS operation,
           CASE WHEN $12 THEN model END AS model,
           CASE WHEN $22 THEN subject END AS subject,
           ARRAY[COALESCE(labels ->> ($29::text[])[1], '') COLLATE "C", COALESCE(labels ->> ($29::text[])[2], '') COLLATE "C",
               COALESCE(labels ->> ($29::text[])[3], '') COLLATE "C", COALESCE(labels ->> ($29::text[])[4], '') COLLATE "C",
               COALESCE(labels ->> ($29::text[])[5], '') COLLATE "C", COALESCE(labels ->> ($29::text[])[6], '') COLLATE "C",
               COALESCE(labels ->> ($29::text[])[7], '') COLLATE "C", COALESCE(labels ->> ($29::text[])[8], '') COLLATE "C"] AS labels,
           count(*) FILTER (WHERE void_time IS NULL) AS request_count,
           COALESCE(sum(units) FILTER (WHERE void_time IS NULL), 0) AS units,
           COALESCE(sum(input_tokens) FILTER (WHERE void_time IS NULL), 0)::bigint AS input_tokens,
           COALESCE(sum(output_tokens) FILTER (WHERE void_time IS NULL), 0)::bigint AS output_tokens,
           COALESCE(sum(cached_input_tokens) FILTER (WHERE void_time IS NULL), 0)::bigint AS cached_input_tokens,
           COALESCE(sum(charge) FILTER (WHERE void_time IS NULL), 0) + COALESCE(sum(tier_residue), 0) AS cost,
           count(unpriced_reason) FILTER (WHERE void_time IS NULL) AS unpriced_event_count,
           count(DISTINCT NULLIF(subject, '')) FILTER (WHERE void_time IS NULL) AS subject_count
    FROM usage_events
    WHERE (void_time IS NULL OR tier_residue IS NOT NULL)
      AND (cardinality($1::text[]) = 0 OR client_id = ANY($1))
      AND (cardinality($2::text[]) = 0 OR service = ANY($2))
      AND (cardinality($3::text[]) = 0 OR operation = ANY($3))
      AND (cardinality($4::text[]) = 0 OR model = ANY($4))
      AND (cardinality($24::text[]) = 0 OR subject = ANY($24))
      AND ($27::jsonb IS NULL OR labels @> $27)
      AND day BETWEEN $5 AND $6
      AND event_time >= $25 AND event_time < $26
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
    HAVING NOT $13 OR count(unpriced_reason) FILTER (WHERE void_time IS NULL) > 0
) AS grouped
WHERE NOT $14
   OR (COALESCE(day, '0001-01-01'::date), COALESCE(month, '0001-01-01'::date), COALESCE(hour, 'epoch'::timestamptz), COALESCE(client_id, ''), COALESCE(service, ''), COALESCE(operation, ''), COALESCE(model, ''), COALESCE(subject, ''), labels)
      > ($15::date, $16::date, $30::timestamptz, $17::text, $18::text, $19::text, $20::text, $23::text, $31::text[])
ORDER BY day, month, hour, client_id, service, operation, model, subject, labels
LIMIT $21
