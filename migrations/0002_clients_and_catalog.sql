CREATE TABLE clients (
    client_id     text COLLATE "C" PRIMARY KEY,
    display_name  text NOT NULL DEFAULT '',
    -- IANA name. Days and months are computed from it by the server, never in SQL, and stored with the event.
    time_zone     text NOT NULL,
    create_time   timestamptz NOT NULL DEFAULT now(),
    update_time   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE services (
    service               text COLLATE "C" PRIMARY KEY,
    display_name          text NOT NULL,
    -- Number of proto enum ServiceCategory.
    category              smallint NOT NULL,
    unit                  text NOT NULL,
    recurring             boolean NOT NULL,
    uncounted_operations  text[] NOT NULL,
    create_time           timestamptz NOT NULL DEFAULT now()
);

-- Prices never change and never go: events name them.
CREATE TABLE prices (
    price_id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    service             text COLLATE "C" NOT NULL,
    -- '' is any.
    operation           text COLLATE "C" NOT NULL,
    model               text COLLATE "C" NOT NULL,
    -- '-infinity' is the beginning of time.
    effective_time      timestamptz NOT NULL,
    unit                numeric,
    input_token         numeric,
    output_token        numeric,
    cached_input_token  numeric,
    percent_of_amount   numeric,
    fixed               numeric,
    built_in            boolean NOT NULL,
    create_time         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (service, operation, model, effective_time)
);

CREATE TABLE model_aliases (
    service      text COLLATE "C" NOT NULL,
    alias        text COLLATE "C" NOT NULL,
    model        text COLLATE "C" NOT NULL,
    create_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (service, alias)
);
