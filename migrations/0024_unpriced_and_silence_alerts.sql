-- Alerts about events that have no charge (type 5), and about clients that no longer send events (type 6).
SET LOCAL lock_timeout = '5s';

-- Until then, replicas of the previous release may run. They cannot read alerts of these types, so none is raised. They do not know
-- client_id, reported_cost and tiers of prices, plans and credits, so none of these is created. An hour is enough to replace them.
ALTER TABLE deployment ADD COLUMN previous_release_until timestamptz NOT NULL DEFAULT '-infinity';
UPDATE deployment SET previous_release_until = now() + interval '1 hour' WHERE EXISTS (SELECT FROM usage_months);

-- The clients whose silence is known.
CREATE INDEX alerts_open_silences ON alerts (client_id) WHERE type = 6 AND resolve_time IS NULL;

-- Fails with MT002 if an alert about unpriced events must be raised: if it is not open, and the service has at least the minimum
-- number of such events in the month. A call of record_events with unpriced events is followed by this one, in the same statement.
-- The months are locked, so no other transaction resolves their alerts until the commit.
CREATE FUNCTION check_unpriced_alerts(clients text[], months date[], services text[], minimums bigint[])
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
BEGIN
    IF (SELECT now() < d.previous_release_until FROM deployment d) THEN
        RETURN true;
    END IF;
    FOR wanted IN
        SELECT w.client_id, w.month, w.service, w.minimum
        FROM unnest(clients, months, services, minimums) AS w (client_id, month, service, minimum)
        WHERE NOT EXISTS (
            SELECT FROM alerts a WHERE a.client_id = w.client_id AND a.type = 5 AND a.service = w.service AND a.severity = 1
              AND a.period = w.month AND a.resolve_time IS NULL
        )
    LOOP
        IF wanted.minimum <= 1 OR (
            SELECT sum(u.unpriced_event_count) FROM all_usage_month_services u
            WHERE u.client_id = wanted.client_id AND u.month = wanted.month AND u.service = wanted.service
        ) >= wanted.minimum THEN
            RAISE EXCEPTION 'an alert about unpriced events must be raised' USING ERRCODE = 'MT002';
        END IF;
    END LOOP;
    RETURN true;
END $$;
