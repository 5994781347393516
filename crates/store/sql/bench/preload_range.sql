-- Used only by the benchmarks. Event n of the range belongs to client n mod $2. In each round, a client uses the next of its
-- $7 kinds. The keys are in generation $17.
WITH picked AS (
    SELECT $3::timestamptz + ($4::bigint * n) * interval '1 microsecond' AS event_time,
           -- Spread like random bits, but always the same for the same n.
           hashint8extended(n, $2) & 9223372036854775807 AS event_seq,
           $1 || '-' || lpad((n % $2)::text, 6, '0') AS client_id,
           (1 + (n % $2 + n / $2 % $7) % cardinality($8::text[]))::int AS kind
    FROM generate_series($5::bigint, $6::bigint - 1) AS n
), identified AS (
    SELECT *, lpad(to_hex((extract(epoch FROM event_time) * 1000000)::bigint), 16, '0') || lpad(to_hex(event_seq), 16, '0')
               AS idempotency_key, (event_time AT TIME ZONE 'UTC')::date AS day
    FROM picked
), recorded AS (
    INSERT INTO usage_events (client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
        output_tokens, cached_input_tokens, charge, price_id, subject, external_id, idempotency_key, record_time)
    SELECT client_id, event_time, event_seq, day, ($8::text[])[kind], ($9::text[])[kind], ($10::text[])[kind],
        ($11::numeric[])[kind], ($12::bigint[])[kind], ($13::bigint[])[kind], 0, ($14::numeric[])[kind],
        ($15::bigint[])[kind], '', '', idempotency_key, event_time
    FROM identified
), claimed AS (
    INSERT INTO idempotency_keys (client_id, idempotency_key, payload_hash, event_time, event_seq, claim_time,
        generation)
    SELECT client_id, idempotency_key, ($16::bytea[])[kind], event_time, event_seq, event_time, $17::integer FROM identified
)
INSERT INTO usage_days (client_id, day, service, operation, model, request_count, units, input_tokens, output_tokens,
    cached_input_tokens, cost, unpriced_event_count)
SELECT client_id, day, ($8::text[])[kind], ($9::text[])[kind], ($10::text[])[kind], count(*),
    count(*) * ($11::numeric[])[kind], count(*) * ($12::bigint[])[kind], count(*) * ($13::bigint[])[kind], 0,
    count(*) * ($14::numeric[])[kind], 0
FROM identified GROUP BY client_id, day, kind
