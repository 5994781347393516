-- Goes up by one with every change of a time zone or an alert policy: what writers remember of clients holds while it stays.
-- Triggers count, so that no way of changing them can forget to. Who changes one holds the versions lock.
ALTER TABLE deployment ADD COLUMN client_settings_version bigint NOT NULL DEFAULT 1;

CREATE FUNCTION client_settings_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE deployment SET client_settings_version = client_settings_version + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER time_zone_changed AFTER UPDATE ON clients
    FOR EACH ROW WHEN (OLD.time_zone IS DISTINCT FROM NEW.time_zone) EXECUTE FUNCTION client_settings_changed();
CREATE TRIGGER clients_removed AFTER DELETE OR TRUNCATE ON clients
    FOR EACH STATEMENT EXECUTE FUNCTION client_settings_changed();
CREATE TRIGGER alert_policy_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON alert_policies
    FOR EACH STATEMENT EXECUTE FUNCTION client_settings_changed();
