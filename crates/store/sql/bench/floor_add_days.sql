-- Used only by the benchmarks.
INSERT INTO usage_days AS t (client_id, day, service, operation, model, request_count, units, input_tokens,
    output_tokens, cached_input_tokens, cost, unpriced_event_count)
SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::numeric[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::numeric[], $12::bigint[])
ON CONFLICT (client_id, day, service, operation, model) DO UPDATE SET
    request_count = t.request_count + excluded.request_count,
    units = t.units + excluded.units,
    input_tokens = t.input_tokens + excluded.input_tokens,
    output_tokens = t.output_tokens + excluded.output_tokens,
    cached_input_tokens = t.cached_input_tokens + excluded.cached_input_tokens,
    cost = t.cost + excluded.cost,
    unpriced_event_count = t.unpriced_event_count + excluded.unpriced_event_count
