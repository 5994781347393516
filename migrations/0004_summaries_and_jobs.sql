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
    update_time           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, month)
);
CREATE INDEX monthly_summaries_cost ON monthly_summaries (month, cost DESC, client_id);

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
