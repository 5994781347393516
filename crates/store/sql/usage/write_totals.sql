INSERT INTO monthly_totals AS t (month, version, client_count, request_count, units, input_tokens, output_tokens,
    cached_input_tokens, cost, unpriced_event_count, messages, ai_calls, voice_minutes, last_month_cost)
SELECT $1, COALESCE((SELECT version FROM summary_versions WHERE month = $1), 0), client_count, request_count, units,
    input_tokens, output_tokens, cached_input_tokens, s.cost, unpriced_event_count, messages, ai_calls, voice_minutes, b.cost
FROM (
    SELECT count(*) AS client_count, COALESCE(sum(request_count), 0) AS request_count, COALESCE(sum(units), 0) AS units,
        COALESCE(sum(input_tokens), 0) AS input_tokens, COALESCE(sum(output_tokens), 0) AS output_tokens,
        COALESCE(sum(cached_input_tokens), 0) AS cached_input_tokens, COALESCE(sum(cost), 0) AS cost,
        COALESCE(sum(unpriced_event_count), 0) AS unpriced_event_count, COALESCE(sum(messages), 0) AS messages,
        COALESCE(sum(ai_calls), 0) AS ai_calls, COALESCE(sum(voice_minutes), 0) AS voice_minutes
    FROM monthly_summaries WHERE month = $1 AND (request_count > 0 OR cost <> 0)
) AS s
CROSS JOIN (
    SELECT COALESCE(sum(b.cost), 0) AS cost FROM usage_months b JOIN monthly_summaries s USING (client_id)
    WHERE b.month = $2 AND s.month = $1 AND (s.request_count > 0 OR s.cost <> 0)
) AS b
ON CONFLICT (month) DO UPDATE SET
    version = excluded.version, client_count = excluded.client_count, request_count = excluded.request_count,
    units = excluded.units, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
    cached_input_tokens = excluded.cached_input_tokens, cost = excluded.cost,
    unpriced_event_count = excluded.unpriced_event_count, messages = excluded.messages,
    ai_calls = excluded.ai_calls, voice_minutes = excluded.voice_minutes,
    last_month_cost = excluded.last_month_cost
WHERE excluded.version > t.version
