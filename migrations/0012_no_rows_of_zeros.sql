-- Rebuilds used to leave rows of zeros behind where they moved all events away. `meterd verify` reports rows that no event is
-- of, so these go. Reads both tables once: some seconds for ten million rows.
DELETE FROM usage_days
WHERE (request_count, units, input_tokens, output_tokens, cached_input_tokens, cost, unpriced_event_count)
    = (0, 0, 0, 0, 0, 0, 0);
DELETE FROM usage_month_services
WHERE (request_count, units, input_tokens, output_tokens, cached_input_tokens, cost, unpriced_event_count)
    = (0, 0, 0, 0, 0, 0, 0);
