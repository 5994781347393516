-- A read model: what the list of all clients of a month shows, ordered by cost. Written from the rollups by
-- UpdateMonthlySummaries and its job. The month before is joined at the read, so it is never stale.
CREATE TABLE monthly_summaries (
    client_id             text COLLATE "C" NOT NULL,
    month                 date NOT NULL,
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
    -- As in the view live_summaries.
    services              jsonb NOT NULL,
    update_time           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, month)
);
CREATE INDEX monthly_summaries_cost ON monthly_summaries (month, cost DESC, client_id);

-- What a summary says of a client's month, computed from its rollups. Categories are the numbers of proto enum
-- ServiceCategory: 1 AI, 2 messaging, 3 voice. Decimals inside JSON are texts: they stay exact in any reader.
CREATE VIEW live_summaries AS
SELECT m.client_id, m.month, m.request_count, m.units, m.input_tokens, m.output_tokens, m.cached_input_tokens, m.cost,
       m.unpriced_event_count, counts.messages, counts.ai_calls, counts.voice_minutes, services.services
FROM usage_months m
CROSS JOIN LATERAL (
    SELECT COALESCE(sum(d.units) FILTER (WHERE s.category = 2), 0) AS messages,
           COALESCE(sum(d.request_count) FILTER (WHERE s.category = 1), 0)::bigint AS ai_calls,
           COALESCE(sum(d.units) FILTER (WHERE s.category = 3), 0) AS voice_minutes
    FROM usage_days d JOIN services s USING (service)
    WHERE d.client_id = m.client_id AND d.day >= m.month AND d.day < (m.month + interval '1 month')::date
      AND d.operation <> ALL (s.uncounted_operations)
) AS counts
CROSS JOIN LATERAL (
    SELECT COALESCE(jsonb_agg(jsonb_build_object(
               'service', s.service, 'request_count', s.request_count, 'units', s.units::text,
               'input_tokens', s.input_tokens, 'output_tokens', s.output_tokens,
               'cached_input_tokens', s.cached_input_tokens, 'cost', s.cost::text,
               'unpriced_event_count', s.unpriced_event_count) ORDER BY s.cost DESC, s.service), '[]') AS services
    FROM usage_month_services s
    WHERE s.client_id = m.client_id AND s.month = m.month AND s.request_count > 0
) AS services;

-- One row for each change of the catalogue that may price waiting events of a service. The row says how far it is: a
-- killed job goes on from there.
CREATE TABLE pricing_tasks (
    task_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    service         text COLLATE "C" NOT NULL,
    -- The last event that was looked at, in the order of the index usage_events_unpriced.
    client_id       text COLLATE "C" NOT NULL DEFAULT '',
    event_time      timestamptz NOT NULL DEFAULT '-infinity',
    event_seq       bigint NOT NULL DEFAULT 0,
    examined_count  bigint NOT NULL DEFAULT 0,
    priced_count    bigint NOT NULL DEFAULT 0,
    create_time     timestamptz NOT NULL DEFAULT now(),
    finish_time     timestamptz
);
CREATE INDEX pricing_tasks_open ON pricing_tasks (task_id) WHERE finish_time IS NULL;
