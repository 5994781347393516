INSERT INTO alerts AS t (client_id, alert_id, type, severity, service, period, current_value, previous_value,
    threshold, percent, projected, message, limit_facts, raise_time)
SELECT client_id, alert_id, type, severity, service, period, current_value, previous_value, threshold, percent, projected, message,
    limit_facts::jsonb, clock_timestamp() FROM unnest($1::text[], $2::text[], $3::smallint[], $4::smallint[], $5::text[], $6::date[],
    $7::numeric[], $8::numeric[], $9::numeric[], $10::numeric[], $11::numeric[], $12::text[], $13::text[])
    AS new (client_id, alert_id, type, severity, service, period, current_value, previous_value, threshold, percent, projected,
    message, limit_facts)
WHERE new.type <= 4 OR now() >= (SELECT previous_release_until FROM deployment)
ON CONFLICT (client_id, type, service, severity, period) DO UPDATE SET
    current_value = excluded.current_value, previous_value = excluded.previous_value,
    threshold = excluded.threshold, percent = excluded.percent, projected = excluded.projected,
    message = excluded.message, limit_facts = excluded.limit_facts, raise_time = excluded.raise_time, raise_count = t.raise_count + 1, acknowledge_time = NULL,
    acknowledged_by = '', resolve_time = NULL
    WHERE t.resolve_time IS NOT NULL
RETURNING client_id, alert_id, type AS kind, severity, service, period, current_value, previous_value, threshold,
    percent, projected, message, raise_time, raise_count, acknowledge_time, acknowledged_by, resolve_time,
    limit_facts AS "limit_facts: Json<LimitFinding>"
