-- Plans: prices of their own, a monthly fee and credits. Which plan a client has, over time. And grants of credits.
SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(7882834701841596417); -- the versions lock: batches that price without plans end first

-- Replicas of the previous release would not pay with credits, and would charge other clients by the prices of plans.
UPDATE deployment SET previous_release_until = now() + interval '1 hour' WHERE EXISTS (SELECT FROM usage_months);

CREATE TABLE plans (
    plan_id      text COLLATE "C" PRIMARY KEY,
    display_name text NOT NULL,
    -- In the currency of the deployment.
    monthly_fee  numeric NOT NULL,
    -- Credits for each month, and the number of further months in which they can be used.
    included_credits numeric NOT NULL,
    rollover_months  integer NOT NULL,
    built_in     boolean NOT NULL,
    create_time  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE client_plans (
    client_id      text COLLATE "C" NOT NULL,
    -- The client has the plan from this time until that of its next row.
    effective_time timestamptz NOT NULL,
    -- '': no plan.
    plan_id        text COLLATE "C" NOT NULL,
    -- Those of the plan, which do not change.
    included_credits numeric NOT NULL,
    rollover_months  integer NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, effective_time)
);

-- Credits that pay for usage of the days from first_day to last_day.
CREATE TABLE credit_grants (
    client_id   text COLLATE "C" NOT NULL,
    -- 'plan-2026-11' for the credits that a plan includes in a month.
    grant_id    text COLLATE "C" NOT NULL,
    source      smallint NOT NULL,
    plan_id     text COLLATE "C" NOT NULL,
    amount      numeric NOT NULL,
    -- The sum of its rows in credit_uses.
    used        numeric NOT NULL DEFAULT 0,
    -- A grant with a lower number pays first.
    priority    integer NOT NULL,
    first_day   date NOT NULL,
    -- NULL: the grant does not expire.
    last_day    date,
    note        text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    -- From then on, the grant pays for nothing more.
    void_time   timestamptz,
    PRIMARY KEY (client_id, grant_id),
    CHECK (used BETWEEN 0 AND amount)
);

-- What a grant has paid of the cost of a month.
CREATE TABLE credit_uses (
    client_id text COLLATE "C" NOT NULL,
    month     date NOT NULL,
    grant_id  text COLLATE "C" NOT NULL,
    amount    numeric NOT NULL,
    PRIMARY KEY (client_id, month, grant_id),
    CHECK (amount >= 0)
);

-- Locks the grants that a change of usage from a day on can need, and returns them. These are the grants that have not expired before the
-- day and are not used up or voided, and all grants of plans. If may_return, also used-up and voided ones that have paid for the month of
-- the day or a later month. `clients` is sorted. The caller has locked the rows of the clients' months.
CREATE FUNCTION lock_credit_grants(clients text[], days date[], may_return boolean)
RETURNS SETOF credit_grants LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN SELECT * FROM unnest(clients, days) AS u (client_id, day) LOOP
        RETURN QUERY
            SELECT * FROM credit_grants g
            WHERE g.client_id = wanted.client_id AND (g.last_day IS NULL OR g.last_day >= wanted.day)
              AND (g.void_time IS NULL AND g.used < g.amount OR g.source = 1 OR may_return AND EXISTS (
                  SELECT FROM credit_uses u
                  WHERE u.client_id = g.client_id AND u.grant_id = g.grant_id
                    AND u.month >= date_trunc('month', wanted.day::timestamp)::date
              ))
            ORDER BY g.grant_id FOR UPDATE;
    END LOOP;
END $$;

-- Adds to what grants have paid of months, or takes from it. The caller has locked the grants and the months.
CREATE FUNCTION draw_credits(clients text[], grants text[], months date[], amounts numeric[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    drawn record;
BEGIN
    FOR drawn IN SELECT * FROM unnest(clients, grants, months, amounts) AS d (client_id, grant_id, month, amount) LOOP
        UPDATE credit_grants t SET used = t.used + drawn.amount
        WHERE t.client_id = drawn.client_id AND t.grant_id = drawn.grant_id;
        -- A negative amount must not be inserted, also if a row exists.
        UPDATE credit_uses t SET amount = t.amount + drawn.amount
        WHERE t.client_id = drawn.client_id AND t.month = drawn.month AND t.grant_id = drawn.grant_id;
        IF NOT FOUND THEN
            INSERT INTO credit_uses (client_id, month, grant_id, amount)
            VALUES (drawn.client_id, drawn.month, drawn.grant_id, drawn.amount);
        END IF;
    END LOOP;
END $$;

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
