-- Compares the sums of measures with the events. It has the parameters of differences.sql.
WITH expected AS (
    SELECT client_id, day, service, operation, model, measure, sum(quantity::numeric) AS quantity
    FROM usage_events CROSS JOIN LATERAL (
        SELECT key AS measure, value AS quantity FROM jsonb_each_text(measures)
        UNION ALL SELECT 'reported_cost', reported_cost::text WHERE reported_cost <> 0
        UNION ALL SELECT 'reported_event_count', '1' WHERE reported_cost IS NOT NULL
    ) AS each
    WHERE (measures IS NOT NULL OR reported_cost IS NOT NULL) AND void_time IS NULL AND ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND day >= COALESCE($3, '-infinity'::date)
      AND day < COALESCE($4, 'infinity'::date) AND event_time >= COALESCE($5, '-infinity'::timestamptz)
      AND event_time < COALESCE($6, 'infinity'::timestamptz)
      AND event_time >= (date_trunc('month', day::timestamp) - interval '1 day') AT TIME ZONE 'UTC'
      AND event_time < (date_trunc('month', day::timestamp) + interval '1 month 1 day') AT TIME ZONE 'UTC'
    GROUP BY client_id, day, service, operation, model, measure
), actual AS (
    SELECT client_id, day, service, operation, model, measure, quantity
    FROM usage_day_measures
    WHERE ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND day >= COALESCE($3, '-infinity'::date)
      AND day < COALESCE($4, 'infinity'::date)
)
SELECT client_id AS "client_id!", day AS "day!", service AS "service!", operation AS "operation!", model AS "model!",
    measure AS "measure!", COALESCE(e.quantity, 0) AS "expected!: Numeric", COALESCE(a.quantity, 0) AS "actual!: Numeric"
FROM expected e FULL JOIN actual a USING (client_id, day, service, operation, model, measure)
WHERE e.quantity IS DISTINCT FROM a.quantity
ORDER BY client_id, day, service, operation, model, measure
