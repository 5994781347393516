-- API keys. A row is never deleted: the audit log names it.
CREATE TABLE api_keys (
    key_id               text COLLATE "C" PRIMARY KEY,
    -- SHA-256 of the secret, which has 256 random bits: nothing to guess, so nothing slow is needed.
    secret_hash          bytea NOT NULL CHECK (length(secret_hash) = 32),
    name                 text NOT NULL,
    -- The clients of each scope. Nothing: the key has not this scope. All clients are {""}, and no client has that id: a list
    -- that has lost its clients is for nobody.
    ingest_clients       text[] COLLATE "C" CHECK (cardinality(ingest_clients) > 0),
    read_clients         text[] COLLATE "C" CHECK (cardinality(read_clients) > 0),
    admin_clients        text[] COLLATE "C" CHECK (cardinality(admin_clients) > 0),
    -- 0: what the replica's setting says.
    requests_per_second  integer NOT NULL DEFAULT 0,
    create_time          timestamptz NOT NULL DEFAULT now(),
    -- Nothing: never.
    expire_time          timestamptz,
    revoke_time          timestamptz,
    last_used_time       timestamptz,
    rotated_from         text COLLATE "C" REFERENCES api_keys,
    -- Of the last change, in the order of the commits: replicas read what is above the one they have seen.
    version              bigint NOT NULL
);
CREATE INDEX api_keys_version ON api_keys (version);
CREATE INDEX api_keys_create_time ON api_keys (create_time, key_id);

-- Goes up by one with every change of a key. Its row is locked until the commit, so versions are in commit order.
CREATE TABLE key_version (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    version  bigint NOT NULL
);
INSERT INTO key_version (version) VALUES (0);

-- What admins did, or tried to: written, and committed, before a call acts.
CREATE TABLE audit_log (
    entry_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time        timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor_kind  smallint NOT NULL,
    actor_id    text COLLATE "C" NOT NULL,
    actor_name  text NOT NULL,
    method      text COLLATE "C" NOT NULL,
    -- JSON; as text, because a request may have U+0000 in it, and be refused for that.
    request     text NOT NULL,
    request_id  text COLLATE "C" NOT NULL,
    address     text NOT NULL
);
CREATE INDEX audit_log_actor ON audit_log (actor_id, entry_id);
CREATE INDEX audit_log_time ON audit_log (time);
CREATE INDEX audit_log_method ON audit_log (method, entry_id);

-- How they ended. A table of its own, because entries do not change.
CREATE TABLE audit_outcomes (
    entry_id  bigint PRIMARY KEY REFERENCES audit_log,
    time      timestamptz NOT NULL DEFAULT clock_timestamp(),
    code      integer NOT NULL,
    reason    text COLLATE "C" NOT NULL
);

-- Append-only, for everybody who does not own the tables and take the triggers away.
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();
