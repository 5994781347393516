-- What holds for the whole deployment, fixed at the first start.
-- All identifiers are COLLATE "C": they sort as the server sorts them, which the one lock order of every transaction
-- depends on, and they compare by bytes.

CREATE TABLE deployment (
    one           boolean PRIMARY KEY DEFAULT true CHECK (one),
    currency      text COLLATE "C" NOT NULL,
    -- Signs page tokens: in the database, so that any replica takes any replica's token.
    token_secret  bytea NOT NULL,
    create_time   timestamptz NOT NULL DEFAULT now()
);

-- Goes up by one with every change of services, prices and aliases. A batch compares it with the version that it was
-- priced by, under the shared lock that writers of the catalogue take exclusively.
CREATE TABLE catalog_version (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    version  bigint NOT NULL
);
INSERT INTO catalog_version (version) VALUES (1);

-- First answers of creates that came with a request id.
CREATE TABLE create_requests (
    request_id    text COLLATE "C" PRIMARY KEY,
    -- SHA-256 of the RPC's name and the encoded request.
    request_hash  bytea NOT NULL,
    -- The encoded response.
    response      bytea NOT NULL,
    create_time   timestamptz NOT NULL DEFAULT now()
);
