-- The sums of measures of the rows of query_events.sql.
-- $8 to $14, $31 and $32 say which dimensions to group by. Only rows from $15-$21, $34, $35 to $22-$28, $36, $37.
SELECT COALESCE(day, '0001-01-01'::date) AS "day!", COALESCE(month, '0001-01-01'::date) AS "month!",
    COALESCE(hour, 'epoch'::timestamptz) AS "hour!", labels AS "labels!",
    COALESCE(client_id, '') AS "client_id!", COALESCE(service, '') AS "service!",
    COALESCE(operation, '') AS "operation!", COALESCE(model, '') AS "model!", COALESCE(subject, '') AS "subject!",
    measure AS "measure!", quantity AS "quantity!: Numeric"
FROM (
    SELECT CASE WHEN $8 THEN day END AS day,
           CASE WHEN $9 THEN date_trunc('month', day::timestamp)::date END AS month,
           CASE WHEN $31 THEN date_trunc('hour', event_time, 'UTC') END AS hour,
           CASE WHEN $10 THEN client_id END AS client_id,
           CASE WHEN $11 THEN service END AS service,
           CASE WHEN $12 THEN operation END AS operation,
           CASE WHEN $13 THEN model END AS model,
           CASE WHEN $14 THEN subject END AS subject,
           ARRAY[COALESCE(labels ->> ($32::text[])[1], '') COLLATE "C", COALESCE(labels ->> ($32::text[])[2], '') COLLATE "C",
               COALESCE(labels ->> ($32::text[])[3], '') COLLATE "C", COALESCE(labels ->> ($32::text[])[4], '') COLLATE "C",
               COALESCE(labels ->> ($32::text[])[5], '') COLLATE "C", COALESCE(labels ->> ($32::text[])[6], '') COLLATE "C",
               COALESCE(labels ->> ($32::text[])[7], '') COLLATE "C", COALESCE(labels ->> ($32::text[])[8], '') COLLATE "C"] AS labels,
           measure, sum(quantity::numeric) AS quantity
    FROM usage_events CROSS JOIN LATERAL (
        SELECT key AS measure, value AS quantity FROM jsonb_each_text(measures)
        UNION ALL SELECT 'reported_cost', reported_cost::text WHERE reported_cost <> 0
        UNION ALL SELECT 'reported_event_count', '1' WHERE reported_cost IS NOT NULL
    ) AS each
    WHERE (cardinality($1::text[]) = 0 OR client_id = ANY($1))
      AND (cardinality($2::text[]) = 0 OR service = ANY($2))
      AND (cardinality($3::text[]) = 0 OR operation = ANY($3))
      AND (cardinality($4::text[]) = 0 OR model = ANY($4))
      AND (cardinality($5::text[]) = 0 OR subject = ANY($5))
      AND ($33::jsonb IS NULL OR labels @> $33)
      AND day BETWEEN $6 AND $7
      AND (measures IS NOT NULL OR reported_cost IS NOT NULL) AND void_time IS NULL AND event_time >= $29 AND event_time < $30
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
    HAVING sum(quantity::numeric) <> 0
) AS grouped
WHERE (COALESCE(day, '0001-01-01'::date), COALESCE(month, '0001-01-01'::date), COALESCE(hour, 'epoch'::timestamptz), COALESCE(client_id, ''), COALESCE(service, ''), COALESCE(operation, ''), COALESCE(model, ''), COALESCE(subject, ''), labels)
      BETWEEN ($15::date, $16::date, $34::timestamptz, $17::text, $18::text, $19::text, $20::text, $21::text, $35::text[])
      AND ($22::date, $23::date, $36::timestamptz, $24::text, $25::text, $26::text, $27::text, $28::text, $37::text[])
