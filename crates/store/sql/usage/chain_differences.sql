-- Events whose adjustments do not lead to their charge. The parameters are those of differences.sql. Reads the adjusted and the
-- voided events only.
WITH chain AS (
    SELECT client_id, event_time, event_seq, number, kind,
           (old_charge, old_unpriced_reason) IS DISTINCT FROM (
               lag(new_charge) OVER of_event, lag(new_unpriced_reason) OVER of_event
           ) AND number > 1 OR number <> row_number() OVER of_event AS is_broken,
           number = max(number) OVER (PARTITION BY client_id, event_time, event_seq) AS is_last,
           new_charge, new_price_id, new_unpriced_reason
    FROM usage_adjustments
    WHERE ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND event_time >= COALESCE($5, '-infinity'::timestamptz)
      AND event_time < COALESCE($6, 'infinity'::timestamptz)
    WINDOW of_event AS (PARTITION BY client_id, event_time, event_seq ORDER BY number)
), ends AS (
    SELECT client_id, event_time, event_seq, bool_or(is_broken) AS is_broken, bool_or(is_last AND kind = 1) AS voids,
           max(new_charge) FILTER (WHERE is_last) AS charge,
           max(new_unpriced_reason) FILTER (WHERE is_last) AS unpriced_reason
    FROM chain GROUP BY client_id, event_time, event_seq
), events AS (
    SELECT client_id, event_time, event_seq, e.day, e.void_time IS NOT NULL AS is_void,
           COALESCE(a.voids, false) AS voids, COALESCE(a.is_broken, false) AS is_broken, a.client_id IS NOT NULL AS adjusted,
           (e.charge, e.unpriced_reason) IS DISTINCT FROM (a.charge, a.unpriced_reason) AS differs
    FROM usage_events e JOIN ends a USING (client_id, event_time, event_seq)
    WHERE event_time >= COALESCE($5, '-infinity'::timestamptz) AND event_time < COALESCE($6, 'infinity'::timestamptz)
      AND ($7::text IS NULL OR client_id = $7)
    UNION ALL
    SELECT client_id, event_time, event_seq, e.day, true, false, false, false, false
    FROM usage_events e
    WHERE e.void_time IS NOT NULL AND ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND event_time >= COALESCE($5, '-infinity'::timestamptz)
      AND event_time < COALESCE($6, 'infinity'::timestamptz)
      AND NOT EXISTS (
          SELECT FROM usage_adjustments a
          WHERE a.client_id = e.client_id AND a.event_time = e.event_time AND a.event_seq = e.event_seq)
)
SELECT client_id AS "client_id!", day AS "day!", event_time AS "event_time!", event_seq AS "event_seq!",
    is_broken AS "is_broken!", is_void <> voids AS "is_void!"
FROM events
WHERE day >= COALESCE($3, '-infinity'::date) AND day < COALESCE($4, 'infinity'::date)
  AND (is_void <> voids OR is_broken OR (NOT is_void AND differs))
ORDER BY client_id, day, event_time, event_seq
