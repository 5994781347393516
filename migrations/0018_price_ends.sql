-- Prices can end or be withdrawn, and say where they come from.
SET LOCAL lock_timeout = '5s';

ALTER TABLE prices
    -- The price is not in force from this time on. NULL: it is in force until a later price of its scope begins.
    ADD COLUMN end_time timestamptz CHECK (end_time > effective_time),
    -- The price was withdrawn at this time: it applies to no event that is recorded or priced afterwards.
    ADD COLUMN withdraw_time timestamptz,
    ADD COLUMN source text NOT NULL DEFAULT '',
    ADD COLUMN note text NOT NULL DEFAULT '';

-- A withdrawn price leaves room for another one.
ALTER TABLE prices DROP CONSTRAINT prices_service_operation_model_effective_time_key;
CREATE UNIQUE INDEX prices_scope ON prices (service, operation, model, effective_time) WHERE withdraw_time IS NULL;
-- The order of the list.
CREATE INDEX prices_listed ON prices (service, operation, model, effective_time, price_id);
