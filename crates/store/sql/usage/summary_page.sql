SELECT s.client_id, COALESCE(c.display_name, '') AS "display_name!",
    COALESCE(c.time_zone, 'UTC') AS "time_zone!", s.request_count,
    s.units AS "units: Numeric", s.input_tokens, s.output_tokens, s.cached_input_tokens, s.cost AS "cost: Numeric",
    s.unpriced_event_count, s.messages AS "messages: Numeric", s.ai_calls,
    s.voice_minutes AS "voice_minutes: Numeric", s.services AS "services: Json<Vec<ServiceJson>>",
    COALESCE(b.cost, 0) AS "last_month_cost!: Numeric"
FROM monthly_summaries s
LEFT JOIN clients c USING (client_id)
LEFT JOIN usage_months b ON b.client_id = s.client_id AND b.month = $2
WHERE s.month = $1 AND (s.request_count > 0 OR s.cost <> 0)
  AND ($3::numeric IS NULL OR s.cost < $3 OR (s.cost = $3 AND s.client_id > $4))
ORDER BY s.cost DESC, s.client_id LIMIT $5
