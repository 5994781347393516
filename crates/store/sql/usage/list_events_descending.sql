SELECT client_id, event_time, event_seq, day, service, operation, model, units, input_tokens,
    output_tokens, cached_input_tokens, amount, charge, price_id, unpriced_reason, subject, external_id,
    idempotency_key, metadata::text AS metadata, service_tier, measures::text AS measures, reported_cost, labels::text AS labels, tier_month, tier_charge, tier_uses::text AS tier_uses,
               tier_residue, void_time, record_time
FROM usage_events
WHERE client_id = $1
  AND event_time >= COALESCE($2, '-infinity'::timestamptz) AND event_time < COALESCE($3, 'infinity'::timestamptz)
  AND (cardinality($4::text[]) = 0 OR service = ANY($4))
  AND (cardinality($5::text[]) = 0 OR operation = ANY($5))
  AND (cardinality($6::text[]) = 0 OR model = ANY($6))
  AND (cardinality($7::text[]) = 0 OR subject = ANY($7))
  AND ($12::jsonb IS NULL OR labels @> $12)
  AND ($13::bigint IS NULL OR price_id = $13)
  AND (NOT $8 OR unpriced_reason IS NOT NULL AND void_time IS NULL)
  AND (event_time, event_seq) < (COALESCE($9, 'infinity'::timestamptz), COALESCE($10::bigint, 0))
ORDER BY event_time DESC, event_seq DESC LIMIT $11
