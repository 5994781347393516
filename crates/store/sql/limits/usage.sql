-- Returns limits with their counters in the periods that contain days: for each client of $1, of the limit of $2 (of all limits if it is
-- empty) on the day of $3. If a period has no counter, or if $4, also returns its usage as computed from the rollups, or from the
-- events if the limit has a filter that rollups do not have.
WITH wanted AS (
    SELECT l.*,
           CASE l.period WHEN 1 THEN w.day ELSE date_trunc('month', w.day::timestamp)::date END AS period_start,
           CASE l.period WHEN 1 THEN w.day + 1
                ELSE (date_trunc('month', w.day::timestamp) + interval '1 month')::date END AS period_end,
           cardinality(l.subjects) > 0 OR l.labels <> '{}' AS of_events
    FROM unnest($1::text[], $2::text[], $3::date[]) AS w (client_id, limit_id, day)
    JOIN usage_limits l ON l.client_id = w.client_id AND (w.limit_id = '' OR l.limit_id = w.limit_id)
    WHERE l.delete_time IS NULL
)
SELECT w.client_id, w.limit_id, w.display_name, w.services, w.operations, w.models, w.subjects, w.labels AS "labels: Json<Labels>",
       w.measure, w.period, w.amount, w.hard, w.alert_percents, w.revision, w.create_time, w.update_time,
       w.period_start AS "period_start!",
       CASE WHEN c.revision = w.revision THEN c.used END AS "stored: Numeric",
       CASE WHEN $4 OR c.revision IS DISTINCT FROM w.revision THEN
           CASE WHEN w.of_events THEN of_events.used ELSE of_days.used END END AS "computed: Numeric",
       COALESCE(c.reserved, 0) AS "reserved!: Numeric", COALESCE(c.open_percents, '{}') AS "open_percents!"
FROM wanted w
LEFT JOIN limit_counters c
    ON c.client_id = w.client_id AND c.limit_id = w.limit_id AND c.period_start = w.period_start
LEFT JOIN LATERAL (
    SELECT COALESCE(sum(CASE w.measure WHEN 1 THEN d.units WHEN 2 THEN d.input_tokens::numeric + d.output_tokens
                            WHEN 3 THEN d.request_count ELSE d.cost END), 0) AS used
    FROM all_usage_days d
    WHERE ($4 OR c.revision IS DISTINCT FROM w.revision) AND NOT w.of_events
      AND d.client_id = w.client_id AND d.day >= w.period_start AND d.day < w.period_end
      AND (cardinality(w.services) = 0 OR d.service = ANY (w.services))
      AND (cardinality(w.operations) = 0 OR d.operation = ANY (w.operations))
      AND (cardinality(w.models) = 0 OR d.model = ANY (w.models))
) AS of_days ON true
LEFT JOIN LATERAL (
    -- What remains in the cost of tiers counts for voided events, too.
    SELECT COALESCE(sum(CASE WHEN w.measure = 4 THEN COALESCE(e.tier_residue, 0) ELSE 0 END
                        + CASE WHEN e.void_time IS NOT NULL THEN 0 ELSE
                              CASE w.measure WHEN 1 THEN e.units WHEN 2 THEN e.input_tokens::numeric + e.output_tokens
                                  WHEN 3 THEN 1 ELSE COALESCE(e.charge, 0) END END), 0) AS used
    FROM usage_events e
    WHERE ($4 OR c.revision IS DISTINCT FROM w.revision) AND w.of_events
      AND e.client_id = w.client_id AND e.day >= w.period_start AND e.day < w.period_end
      -- Events of other times are on other days in every time zone.
      AND e.event_time >= (w.period_start::timestamp - interval '1 day') AT TIME ZONE 'UTC'
      AND e.event_time < (w.period_end::timestamp + interval '1 day') AT TIME ZONE 'UTC'
      AND (cardinality(w.services) = 0 OR e.service = ANY (w.services))
      AND (cardinality(w.operations) = 0 OR e.operation = ANY (w.operations))
      AND (cardinality(w.models) = 0 OR e.model = ANY (w.models))
      AND (cardinality(w.subjects) = 0 OR e.subject = ANY (w.subjects))
      AND (w.labels = '{}' OR e.labels @> w.labels)
) AS of_events ON true
ORDER BY w.client_id, w.limit_id, w.period_start
