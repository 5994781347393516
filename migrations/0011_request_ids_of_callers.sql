-- A request id belongs to who sent it: another caller cannot find out whether it was used.
-- The number of a proto enum ActorKind and the id of a key or a token's subject, such as '2:9f86d081…'; '' is a caller without
-- credentials. Rows from before have '': a repeat of exactly the same request is still answered from them.
ALTER TABLE create_requests ADD COLUMN principal text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE create_requests DROP CONSTRAINT create_requests_pkey, ADD PRIMARY KEY (principal, request_id);
