-- Used only by the benchmarks.
INSERT INTO usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
    output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
    idempotency_key, metadata)
SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens, output_tokens,
    cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id, idempotency_key,
    metadata::jsonb
FROM unnest($1::text[], $2::timestamptz[], $3::bigint[], $4::date[], $5::text[], $6::text[], $7::text[],
    $8::numeric[], $9::bigint[], $10::bigint[], $11::bigint[], $12::numeric[], $13::numeric[], $14::bigint[],
    $15::smallint[], $16::text[], $17::text[], $18::text[], $19::text[])
    AS sent (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
        output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
        idempotency_key, metadata)
