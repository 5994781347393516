-- The sums of measures of the rows of query_days.sql. $5, $14, $29 and $30 exist only because query_event_measures.sql has the
-- same parameters.
-- $8 to $14 say which dimensions to group by. Only rows from $15-$21 to $22-$28.
SELECT COALESCE(day, '0001-01-01'::date) AS "day!", COALESCE(month, '0001-01-01'::date) AS "month!",
    'epoch'::timestamptz AS "hour!", '{}'::text[] AS "labels!",
    COALESCE(client_id, '') AS "client_id!", COALESCE(service, '') AS "service!",
    COALESCE(operation, '') AS "operation!", COALESCE(model, '') AS "model!", COALESCE(subject, '') AS "subject!",
    measure AS "measure!", quantity AS "quantity!: Numeric"
FROM (
    SELECT CASE WHEN $8 THEN day END AS day,
           CASE WHEN $9 THEN date_trunc('month', day::timestamp)::date END AS month,
           CASE WHEN $10 THEN client_id END AS client_id,
           CASE WHEN $11 THEN service END AS service,
           CASE WHEN $12 THEN operation END AS operation,
           CASE WHEN $13 THEN model END AS model,
           CASE WHEN $14 THEN '' END AS subject,
           measure, sum(quantity) AS quantity
    FROM usage_day_measures
    WHERE (cardinality($1::text[]) = 0 OR client_id = ANY($1))
      AND (cardinality($2::text[]) = 0 OR service = ANY($2))
      AND (cardinality($3::text[]) = 0 OR operation = ANY($3))
      AND (cardinality($4::text[]) = 0 OR model = ANY($4))
      AND (cardinality($5::text[]) = 0 OR '' = ANY($5))
      AND day BETWEEN $6 AND $7
      AND $29::timestamptz < $30::timestamptz
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    HAVING sum(quantity) <> 0
) AS grouped
WHERE (COALESCE(day, '0001-01-01'::date), COALESCE(month, '0001-01-01'::date), COALESCE(client_id, ''), COALESCE(service, ''), COALESCE(operation, ''), COALESCE(model, ''), COALESCE(subject, ''))
      BETWEEN ($15::date, $16::date, $17::text, $18::text, $19::text, $20::text, $21::text)
      AND ($22::date, $23::date, $24::text, $25::text, $26::text, $27::text, $28::text)
