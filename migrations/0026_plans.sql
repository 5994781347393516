-- Plans: prices of their own and a monthly fee. And which plan a client has, over time.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that price without plans end first

CREATE TABLE plans (
    plan_id      text COLLATE "C" PRIMARY KEY,
    display_name text NOT NULL,
    -- In the currency of the deployment.
    monthly_fee  numeric NOT NULL,
    built_in     boolean NOT NULL,
    create_time  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE client_plans (
    client_id      text COLLATE "C" NOT NULL,
    -- The client has the plan from this time until that of its next row.
    effective_time timestamptz NOT NULL,
    -- '': no plan.
    plan_id        text COLLATE "C" NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, effective_time)
);

-- The price is only for clients that have this plan at the time of the event. '': for any.
ALTER TABLE prices ADD COLUMN plan_id text COLLATE "C" NOT NULL DEFAULT '';
DROP INDEX prices_scope;
CREATE UNIQUE INDEX prices_scope
    ON prices (client_id, plan_id, service, operation, model, service_tier, above_input_tokens, effective_time)
    WHERE withdraw_time IS NULL;
-- The order of the list.
DROP INDEX prices_listed;
CREATE INDEX prices_listed
    ON prices (client_id, plan_id, service, operation, model, service_tier, above_input_tokens, effective_time, price_id);
