WITH due AS (
    (SELECT notification_id, counted, create_time FROM notifications
     WHERE client_id = $1 AND channel_id = $2 AND state = 1 AND next_attempt_time <= now() AND counted
     ORDER BY create_time, notification_id LIMIT $4)
    UNION ALL
    (SELECT notification_id, counted, create_time FROM notifications
     WHERE client_id = $1 AND channel_id = $2 AND state = 1 AND next_attempt_time <= now() AND NOT counted
     ORDER BY create_time, notification_id LIMIT least($3::bigint, $4))
), taken AS (
    SELECT notification_id, counted FROM due ORDER BY create_time, notification_id LIMIT $4
)
UPDATE notifications n SET attempt_count = n.attempt_count + 1, counted = true,
    next_attempt_time = now() + make_interval(secs => $5)
FROM taken WHERE n.client_id = $1 AND n.notification_id = taken.notification_id AND n.state = 1
RETURNING n.notification_id, n.alerts AS "alerts: Json<Vec<Alert>>", n.alert_count, n.attempt_count,
    n.create_time, NOT taken.counted AS "first!"
