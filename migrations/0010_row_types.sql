-- Rows on their way into tables, as the statement that writes a batch takes them: one array a table. An array a column takes
-- the database longer than the rows themselves, where they are few.

CREATE TYPE new_key AS (
    client_id        text,
    idempotency_key  text,
    payload_hash     bytea,
    event_time       timestamptz,
    event_seq        bigint,
    backfill         boolean
);

CREATE TYPE new_event AS (
    client_id            text,
    event_time           timestamptz,
    event_seq            bigint,
    day                  date,
    service              text,
    operation            text,
    model                text,
    units                numeric,
    input_tokens         bigint,
    output_tokens        bigint,
    cached_input_tokens  bigint,
    amount               numeric,
    charge               numeric,
    price_id             bigint,
    unpriced_reason      smallint,
    subject              text,
    external_id          text,
    idempotency_key      text,
    metadata             jsonb
);

-- What is added to a row.

CREATE TYPE month_delta AS (
    client_id             text,
    month                 date,
    request_count         bigint,
    units                 numeric,
    input_tokens          bigint,
    output_tokens         bigint,
    cached_input_tokens   bigint,
    cost                  numeric,
    unpriced_event_count  bigint
);

CREATE TYPE month_service_delta AS (
    client_id             text,
    month                 date,
    service               text,
    request_count         bigint,
    units                 numeric,
    input_tokens          bigint,
    output_tokens         bigint,
    cached_input_tokens   bigint,
    cost                  numeric,
    unpriced_event_count  bigint
);

CREATE TYPE day_delta AS (
    client_id             text,
    day                   date,
    service               text,
    operation             text,
    model                 text,
    request_count         bigint,
    units                 numeric,
    input_tokens          bigint,
    output_tokens         bigint,
    cached_input_tokens   bigint,
    cost                  numeric,
    unpriced_event_count  bigint
);
