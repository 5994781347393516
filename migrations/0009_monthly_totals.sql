-- Totals over all clients of a month, as the list of its clients shows them. Adding up a hundred thousand summaries at each
-- read takes a tenth of a second; so the job that writes summaries also writes their sum, with the version that it is of.
-- Who reads both in one snapshot knows whether it holds, and adds up where it does not: a total that is shown is never stale.
CREATE TABLE monthly_totals (
    month                 date PRIMARY KEY,
    -- Of summary_versions.
    version               bigint NOT NULL,
    client_count          bigint NOT NULL,
    request_count         bigint NOT NULL,
    units                 numeric NOT NULL,
    input_tokens          bigint NOT NULL,
    output_tokens         bigint NOT NULL,
    cached_input_tokens   bigint NOT NULL,
    cost                  numeric NOT NULL,
    unpriced_event_count  bigint NOT NULL,
    messages              numeric NOT NULL,
    ai_calls              bigint NOT NULL,
    voice_minutes         numeric NOT NULL,
    last_month_cost       numeric NOT NULL
);

-- Goes up in every transaction that changes a summary of the month, or of the month before.
CREATE TABLE summary_versions (
    month    date PRIMARY KEY,
    version  bigint NOT NULL
);

-- A trigger, so that no writer can forget it, nor one of an older release that runs beside this one. Its lock, until the
-- commit, has versions in commit order, and two writers of several months never wait for each other in a circle.
CREATE FUNCTION summaries_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7882834701841596421);
    INSERT INTO summary_versions AS v (month, version)
    SELECT DISTINCT affected, 1
    FROM changed, LATERAL (VALUES (month), ((month + interval '1 month')::date)) AS months (affected)
    ON CONFLICT (month) DO UPDATE SET version = v.version + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER summaries_inserted AFTER INSERT ON monthly_summaries REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION summaries_changed();
CREATE TRIGGER summaries_updated AFTER UPDATE ON monthly_summaries REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION summaries_changed();
CREATE TRIGGER summaries_deleted AFTER DELETE ON monthly_summaries REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION summaries_changed();

-- Those that are there are added up by the job's first run.
INSERT INTO summary_versions (month, version)
SELECT DISTINCT affected, 1
FROM (SELECT DISTINCT month FROM monthly_summaries) AS there,
     LATERAL (VALUES (month), ((month + interval '1 month')::date)) AS months (affected);
