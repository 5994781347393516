-- What a client's alerts go by. Row '' is everybody's; a client's row has what it overrides, with decimals as texts, and no
-- key where the default holds. Read in the statement that claims a batch's keys, changed under the versions lock: so a
-- policy holds for every commit after its own.
CREATE TABLE alert_policies (
    client_id    text COLLATE "C" PRIMARY KEY,
    policy       jsonb NOT NULL,
    update_time  timestamptz NOT NULL DEFAULT now()
);

-- Which alerts a month has had, and which of them are open: bits of domain::alert::AlertSet. What the rules need to know is
-- so in the row that every change of the month locks, and comes back from the statement that changes it.
ALTER TABLE usage_months
    ADD COLUMN raised_alerts  integer NOT NULL DEFAULT 0,
    ADD COLUMN open_alerts    integer NOT NULL DEFAULT 0;

CREATE TABLE alerts (
    client_id         text COLLATE "C" NOT NULL,
    alert_id          text COLLATE "C" NOT NULL,
    -- Numbers of proto enums AlertType and AlertSeverity.
    type              smallint NOT NULL,
    severity          smallint NOT NULL,
    -- Whose units an anomaly is of; '' is the total cost.
    service           text COLLATE "C" NOT NULL,
    -- First day of the month; of an anomaly, the day.
    period            date NOT NULL,
    current_value     numeric NOT NULL,
    previous_value    numeric,
    threshold         numeric NOT NULL,
    percent           numeric,
    projected         numeric,
    message           text NOT NULL,
    raise_time        timestamptz NOT NULL,
    -- Goes up when a resolved alert is raised again.
    raise_count       integer NOT NULL DEFAULT 1,
    acknowledge_time  timestamptz,
    acknowledged_by   text NOT NULL DEFAULT '',
    resolve_time      timestamptz,
    PRIMARY KEY (client_id, alert_id),
    -- Once a rule, level and period, however many writers and replicas there are.
    UNIQUE (client_id, type, service, severity, period)
);
CREATE INDEX alerts_id ON alerts (alert_id);
CREATE INDEX alerts_time ON alerts (raise_time, alert_id);
CREATE INDEX alerts_client_time ON alerts (client_id, raise_time, alert_id);

-- The last number that a change of an alert was given, and the last one that retention has removed. Taken as the last write
-- of a transaction, and held until its commit: numbers have no gaps and are in the order of the commits, so who asks for
-- those after n misses nothing. A sequence could do neither.
CREATE TABLE alert_feed_counter (
    one              boolean PRIMARY KEY DEFAULT true CHECK (one),
    sequence         bigint NOT NULL,
    pruned_sequence  bigint NOT NULL
);
INSERT INTO alert_feed_counter (sequence, pruned_sequence) VALUES (0, 0);

-- Every change of an alert, never changed itself.
CREATE TABLE alert_feed (
    sequence     bigint PRIMARY KEY,
    client_id    text COLLATE "C" NOT NULL,
    type         smallint NOT NULL,
    severity     smallint NOT NULL,
    -- Number of proto enum AlertChange.
    change       smallint NOT NULL,
    -- The alert as it was then: domain::alert::Alert.
    alert        jsonb NOT NULL,
    change_time  timestamptz NOT NULL
);
CREATE INDEX alert_feed_client ON alert_feed (client_id, sequence);

-- Where notifications go. client_id '' is the operator: told of every client's alerts.
CREATE TABLE notification_channels (
    channel_id         bigint GENERATED ALWAYS AS IDENTITY,
    client_id          text COLLATE "C" NOT NULL,
    -- Number of proto enum NotificationChannelKind.
    kind               smallint NOT NULL,
    -- E-mail address, phone number or URL.
    target             text NOT NULL,
    min_severity       smallint NOT NULL,
    -- Of a webhook, "whsec_…", the newest first: each message is signed with all of them.
    secrets            text[] NOT NULL,
    -- The hour that the cap counts in, and how many notifications were begun in it.
    hour_start_time    timestamptz NOT NULL DEFAULT '-infinity',
    hour_count         integer NOT NULL DEFAULT 0,
    create_time        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, channel_id),
    UNIQUE (client_id, kind, target)
);

-- The outbox: written with the alert, in its transaction.
CREATE TABLE notifications (
    -- The channel's, not the alert's.
    client_id            text COLLATE "C" NOT NULL,
    -- Stable over all tries: who receives one twice knows by it.
    notification_id      text COLLATE "C" NOT NULL,
    channel_id           bigint NOT NULL,
    kind                 smallint NOT NULL,
    target               text NOT NULL,
    -- domain::alert::Alert, one, or those of a digest.
    alerts               jsonb NOT NULL,
    -- How many alerts it tells of: of a large digest more than it spells out.
    alert_count          integer NOT NULL DEFAULT 1,
    -- Number of proto enum NotificationState.
    state                smallint NOT NULL DEFAULT 1,
    attempt_count        integer NOT NULL DEFAULT 0,
    -- Whether it has had its place in an hour of its channel: then the cap holds it up no more.
    counted              boolean NOT NULL DEFAULT false,
    -- While a worker has it: when others may take it for lost. While the channel's hour is full: when that is over.
    next_attempt_time    timestamptz NOT NULL DEFAULT now(),
    last_error           text NOT NULL DEFAULT '',
    -- The digest that took this one in.
    digest_id            text COLLATE "C",
    create_time          timestamptz NOT NULL DEFAULT now(),
    finish_time          timestamptz,
    PRIMARY KEY (client_id, notification_id)
);
CREATE INDEX notifications_due ON notifications (next_attempt_time) WHERE state = 1;
CREATE INDEX notifications_pending ON notifications (client_id, channel_id) WHERE state = 1;
CREATE INDEX notifications_failed ON notifications (create_time, notification_id) WHERE state = 3;
CREATE INDEX notifications_finished ON notifications (finish_time) WHERE state <> 1;
CREATE INDEX notifications_id ON notifications (notification_id);
CREATE INDEX notifications_time ON notifications (create_time, notification_id);
CREATE INDEX notifications_client_time ON notifications (client_id, create_time, notification_id);
