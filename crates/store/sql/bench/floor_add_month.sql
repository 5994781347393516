-- Used only by the benchmarks.
INSERT INTO usage_months AS t (client_id, month, request_count, units, input_tokens, output_tokens,
    cached_input_tokens, cost, unpriced_event_count, summary_stale_since)
VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, now())
ON CONFLICT (client_id, month) DO UPDATE SET
    request_count = t.request_count + 1,
    units = t.units + excluded.units,
    input_tokens = t.input_tokens + excluded.input_tokens,
    output_tokens = t.output_tokens + excluded.output_tokens,
    cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
    cost = t.cost + excluded.cost,
    unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count,
    summary_stale_since = COALESCE(t.summary_stale_since, excluded.summary_stale_since)
