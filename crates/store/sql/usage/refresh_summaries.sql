INSERT INTO monthly_summaries (client_id, month, request_count, units, input_tokens, output_tokens,
    cached_input_tokens, cost, unpriced_event_count, messages, ai_calls, voice_minutes, services)
SELECT client_id, month, request_count, units, input_tokens, output_tokens, cached_input_tokens, cost,
    unpriced_event_count, messages, ai_calls, voice_minutes, services
FROM unnest($1::text[], $2::date[]) AS wanted (client_id, month) JOIN live_summaries USING (client_id, month)
ON CONFLICT (client_id, month) DO UPDATE SET
    request_count = excluded.request_count, units = excluded.units, input_tokens = excluded.input_tokens,
    output_tokens = excluded.output_tokens, cached_input_tokens = excluded.cached_input_tokens,
    cost = excluded.cost, unpriced_event_count = excluded.unpriced_event_count, messages = excluded.messages,
    ai_calls = excluded.ai_calls, voice_minutes = excluded.voice_minutes, services = excluded.services,
    update_time = excluded.update_time
