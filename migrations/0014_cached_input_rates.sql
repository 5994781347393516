-- The built-in prices of these models had no rate for cached input tokens, which were charged as fresh ones. Prices do not
-- change: a new one holds from now on, and what was charged before stays. Only where the built-in price is in force: an
-- operator's own price of the model stays the one that applies.
-- Waits for nobody for long, such as a rebuild of all months: every batch would wait behind it. A start that fails is repeated.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that price by the old list end first

INSERT INTO prices (service, operation, model, effective_time, input_token, output_token, cached_input_token, built_in)
SELECT p.service, p.operation, p.model, now(), p.input_token, p.output_token, new.cached_input_token, true
FROM prices p
JOIN (VALUES ('gpt-4o-mini', 0.000000075), ('gpt-4o', 0.00000125)) AS new (model, cached_input_token) USING (model)
WHERE p.service = 'openai' AND p.operation = '' AND p.built_in AND p.effective_time = '-infinity'
  AND p.cached_input_token IS NULL
  AND NOT EXISTS (
      SELECT FROM prices later
      WHERE later.service = p.service AND later.operation = p.operation AND later.model = p.model
        AND later.effective_time > p.effective_time AND later.effective_time <= now());

UPDATE catalog_version SET version = version + 1;
