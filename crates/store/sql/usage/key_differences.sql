-- Finds keys and events that do not refer to each other. The scope is the clients after $1 up to and including $2, or the
-- client $7, the events on days from $3 to before $4, and the keys of events from $5 to before $6. Keys of live events that
-- were claimed before $8 may have been pruned, and may have been used again since. Both sides of each join have the
-- condition on the client, because the planner does not derive a range condition of one side from the other, and would
-- read whole tables.
SELECT CASE WHEN k.client_id IS NULL THEN 'key_missing' ELSE 'key_of_another' END AS "kind!", e.client_id AS "client_id!",
    e.day AS "day!", e.idempotency_key AS "idempotency_key!", e.event_time AS "event_time!", e.event_seq AS "event_seq!"
FROM usage_events e LEFT JOIN idempotency_keys k
    ON k.client_id = e.client_id AND k.idempotency_key = e.idempotency_key
    AND ($1::text IS NULL OR k.client_id > $1) AND ($2::text IS NULL OR k.client_id <= $2)
    AND ($7::text IS NULL OR k.client_id = $7)
WHERE ($1::text IS NULL OR e.client_id > $1) AND ($2::text IS NULL OR e.client_id <= $2)
  AND ($7::text IS NULL OR e.client_id = $7) AND e.day >= COALESCE($3, '-infinity'::date)
  AND e.day < COALESCE($4, 'infinity'::date) AND e.event_time >= COALESCE($5, '-infinity'::timestamptz)
  AND e.event_time < COALESCE($6, 'infinity'::timestamptz) AND e.record_time >= COALESCE($8, '-infinity'::timestamptz)
  AND (k.event_time, k.event_seq) IS DISTINCT FROM (e.event_time, e.event_seq)
UNION ALL
SELECT 'event_missing', k.client_id, (k.event_time AT TIME ZONE 'UTC')::date, k.idempotency_key, k.event_time, k.event_seq
FROM idempotency_keys k LEFT JOIN usage_events e
    ON e.client_id = k.client_id AND e.event_time = k.event_time AND e.event_seq = k.event_seq
    AND ($1::text IS NULL OR e.client_id > $1) AND ($2::text IS NULL OR e.client_id <= $2)
    AND ($7::text IS NULL OR e.client_id = $7)
    AND e.event_time >= COALESCE($5, '-infinity'::timestamptz) AND e.event_time < COALESCE($6, 'infinity'::timestamptz)
WHERE ($1::text IS NULL OR k.client_id > $1) AND ($2::text IS NULL OR k.client_id <= $2)
  AND ($7::text IS NULL OR k.client_id = $7) AND k.event_time >= COALESCE($5, '-infinity'::timestamptz)
  AND k.event_time < COALESCE($6, 'infinity'::timestamptz) AND e.client_id IS NULL
ORDER BY 2, 5, 6
