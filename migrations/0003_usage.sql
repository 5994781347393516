-- Who claims a key records its event. A table of its own: a unique index on the partitioned events would have to contain
-- the time. Names the event, so that a duplicate can be answered with the first one's charge.
CREATE TABLE idempotency_keys (
    client_id        text COLLATE "C" NOT NULL,
    idempotency_key  text COLLATE "C" NOT NULL,
    -- One byte version, then the first 16 bytes of SHA-256 over the canonical payload.
    payload_hash     bytea NOT NULL,
    event_time       timestamptz NOT NULL,
    event_seq        bigint NOT NULL,
    claim_time       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, idempotency_key)
);

-- One partition a UTC month of event_time, made before the first transaction that needs it. No default partition: one
-- would have to be scanned at every attach.
CREATE TABLE usage_events (
    client_id            text COLLATE "C" NOT NULL,
    event_time           timestamptz NOT NULL,
    -- Random: with the time it makes the event's id, so that one index finds an event by id and lists events by time.
    event_seq            bigint NOT NULL,
    -- The client's own day, by its time zone at the commit.
    day                  date NOT NULL,
    service              text COLLATE "C" NOT NULL,
    operation            text COLLATE "C" NOT NULL,
    model                text COLLATE "C" NOT NULL,
    units                numeric NOT NULL,
    input_tokens         bigint NOT NULL,
    output_tokens        bigint NOT NULL,
    cached_input_tokens  bigint NOT NULL,
    amount               numeric,
    charge               numeric,
    price_id             bigint,
    -- Number of proto enum UnpricedReason.
    unpriced_reason      smallint,
    subject              text COLLATE "C" NOT NULL,
    external_id          text COLLATE "C" NOT NULL,
    idempotency_key      text COLLATE "C" NOT NULL,
    metadata             jsonb,
    record_time          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, event_time, event_seq),
    CONSTRAINT usage_events_priced_or_why CHECK ((charge IS NULL) = (unpriced_reason IS NOT NULL))
) PARTITION BY RANGE (event_time);

-- What the pricing job walks along.
CREATE INDEX usage_events_unpriced ON usage_events (service, client_id, event_time, event_seq)
    WHERE unpriced_reason IS NOT NULL;

CREATE TABLE usage_days (
    client_id             text COLLATE "C" NOT NULL,
    day                   date NOT NULL,
    service               text COLLATE "C" NOT NULL,
    operation             text COLLATE "C" NOT NULL,
    model                 text COLLATE "C" NOT NULL,
    request_count         bigint NOT NULL,
    units                 numeric NOT NULL,
    input_tokens          bigint NOT NULL,
    output_tokens         bigint NOT NULL,
    cached_input_tokens   bigint NOT NULL,
    cost                  numeric NOT NULL,
    unpriced_event_count  bigint NOT NULL,
    PRIMARY KEY (client_id, day, service, operation, model)
);
-- Queries over all clients.
CREATE INDEX usage_days_day ON usage_days (day);

-- A month read from here is many times cheaper than from the days.
CREATE TABLE usage_month_services (
    client_id             text COLLATE "C" NOT NULL,
    -- First day of the month.
    month                 date NOT NULL,
    service               text COLLATE "C" NOT NULL,
    request_count         bigint NOT NULL,
    units                 numeric NOT NULL,
    input_tokens          bigint NOT NULL,
    output_tokens         bigint NOT NULL,
    cached_input_tokens   bigint NOT NULL,
    cost                  numeric NOT NULL,
    unpriced_event_count  bigint NOT NULL,
    PRIMARY KEY (client_id, month, service)
);
CREATE INDEX usage_month_services_month ON usage_month_services (month);

-- One row a client and month: what everyone who changes a client's month locks first.
CREATE TABLE usage_months (
    client_id             text COLLATE "C" NOT NULL,
    month                 date NOT NULL,
    request_count         bigint NOT NULL,
    units                 numeric NOT NULL,
    input_tokens          bigint NOT NULL,
    output_tokens         bigint NOT NULL,
    cached_input_tokens   bigint NOT NULL,
    cost                  numeric NOT NULL,
    unpriced_event_count  bigint NOT NULL,
    -- Start of the first transaction that changed the month after its summary was written. It stays the same while the
    -- summary is stale, so updates of a hot client stay heap-only.
    summary_stale_since   timestamptz,
    PRIMARY KEY (client_id, month)
);
CREATE INDEX usage_months_month ON usage_months (month);
CREATE INDEX usage_months_stale ON usage_months (month, client_id) WHERE summary_stale_since IS NOT NULL;
