WITH held AS (
    SELECT notification_id, alerts, alert_count, create_time FROM notifications
    WHERE client_id = $1 AND channel_id = $2 AND state = 1 AND NOT counted AND alert_count = 1
      AND next_attempt_time <= now() AND next_attempt_time > create_time
    ORDER BY create_time, notification_id LIMIT $6
), told AS (
    SELECT alert, row_number() OVER (ORDER BY create_time, notification_id, number) AS place
    FROM held, jsonb_array_elements(held.alerts) WITH ORDINALITY AS of_one (alert, number)
), digest AS (
    INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts, alert_count, create_time)
    SELECT $1, $3, $2, $4, $5, (SELECT jsonb_agg(alert ORDER BY place) FROM told WHERE place <= $7),
        sum(alert_count), min(create_time)
    FROM held HAVING count(*) > 1
    RETURNING notification_id
)
UPDATE notifications n SET state = 4, digest_id = digest.notification_id, finish_time = now()
FROM held, digest
WHERE n.client_id = $1 AND n.notification_id = held.notification_id AND n.state = 1
