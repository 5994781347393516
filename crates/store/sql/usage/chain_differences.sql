-- Events whose adjustments do not lead to their charge. It has the parameters of differences.sql. Reads all events of the scope,
-- because an event that is voided without an adjustment has no other trace.
WITH links AS (
    SELECT client_id, event_time, event_seq, number, kind, new_charge, new_unpriced_reason,
           number <> row_number() OVER of_event
               OR number > 1 AND (old_charge, old_unpriced_reason)
                   IS DISTINCT FROM (lag(new_charge) OVER of_event, lag(new_unpriced_reason) OVER of_event) AS is_broken
    FROM usage_adjustments
    WHERE ($1::text IS NULL OR client_id > $1) AND ($2::text IS NULL OR client_id <= $2)
      AND ($7::text IS NULL OR client_id = $7) AND event_time >= COALESCE($5, '-infinity'::timestamptz)
      AND event_time < COALESCE($6, 'infinity'::timestamptz)
    WINDOW of_event AS (PARTITION BY client_id, event_time, event_seq ORDER BY number)
), chains AS (
    SELECT DISTINCT ON (client_id, event_time, event_seq) client_id, event_time, event_seq, kind = 1 AS voids, new_charge,
           new_unpriced_reason, bool_or(is_broken) OVER (PARTITION BY client_id, event_time, event_seq) AS is_broken
    FROM links ORDER BY client_id, event_time, event_seq, number DESC
), events AS (
    SELECT e.client_id, e.event_time, e.event_seq, e.day, e.void_time IS NOT NULL AS is_void,
           c.client_id IS NOT NULL AS is_adjusted, COALESCE(c.voids, false) AS voids, COALESCE(c.is_broken, false) AS is_broken,
           (e.charge, e.unpriced_reason) IS DISTINCT FROM (c.new_charge, c.new_unpriced_reason) AS differs
    FROM usage_events e LEFT JOIN chains c
        ON c.client_id = e.client_id AND c.event_time = e.event_time AND c.event_seq = e.event_seq
    WHERE ($1::text IS NULL OR e.client_id > $1) AND ($2::text IS NULL OR e.client_id <= $2)
      AND ($7::text IS NULL OR e.client_id = $7) AND e.event_time >= COALESCE($5, '-infinity'::timestamptz)
      AND e.event_time < COALESCE($6, 'infinity'::timestamptz)
      AND e.day >= COALESCE($3, '-infinity'::date) AND e.day < COALESCE($4, 'infinity'::date)
)
SELECT client_id, day, event_time, event_seq, is_broken AS "is_broken!", is_void <> voids AS "is_void!"
FROM events
WHERE (is_adjusted OR is_void) AND (is_void <> voids OR is_broken OR NOT is_void AND differs)
ORDER BY client_id, day, event_time, event_seq
