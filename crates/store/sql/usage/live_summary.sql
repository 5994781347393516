SELECT l.client_id AS "client_id!", COALESCE(c.display_name, '') AS "display_name!",
    COALESCE(c.time_zone, 'UTC') AS "time_zone!",
    l.request_count AS "request_count!", l.units AS "units!: Numeric", l.input_tokens AS "input_tokens!",
    l.output_tokens AS "output_tokens!", l.cached_input_tokens AS "cached_input_tokens!", l.cost AS "cost!: Numeric",
    l.unpriced_event_count AS "unpriced_event_count!", l.messages AS "messages!: Numeric", l.ai_calls AS "ai_calls!",
    l.voice_minutes AS "voice_minutes!: Numeric", l.services AS "services!: Json<Vec<ServiceJson>>",
    COALESCE(b.cost, 0) AS "last_month_cost!: Numeric"
FROM live_summaries l
LEFT JOIN clients c USING (client_id)
LEFT JOIN usage_months b ON b.client_id = l.client_id AND b.month = $3
WHERE l.client_id = $1 AND l.month = $2 AND (l.request_count > 0 OR l.cost <> 0)
