//! A server with one object of each kind that requests can name, and the paths of fields in requests.

use crate::bad_requests::{fields_of_missing, rule, valid_request};
use crate::bad_values::{Case, Expected, Field, cases};
use crate::contract::*;
use crate::harness::*;
use meterd::proto::billing_service_client::BillingServiceClient;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use prost_types::FieldMask;

/// Maximum number of response messages to read, because a subscription does not end.
const READ_MAX: usize = 1;

/// A server and a connection to it.
pub struct TestData {
    pub server: TestServer,
    pub connection: RawConnection,
    pub requests_made: usize,
    pub event_id: String,
    pub alert_id: String,
    /// A run with several differences, which has ended.
    pub run_id: String,
    /// A grant of credits to acme.
    pub grant_id: String,
}

impl TestData {
    /// Starts a server with alerts, a sent notification, keys, events and clients.
    pub async fn start() -> Self {
        let server = TestServer::start_with(&[], Clock::fixed(time("2026-11-21T12:00:00Z"))).await;
        let mut alerts = server.alerts();
        let channel = NotificationChannel {
            kind: NotificationChannelKind::Webhook.into(),
            target: "https://hooks.invalid/".into(),
            ..Default::default()
        };
        let policy = AlertPolicy {
            monthly_warning: Some("0.001".into()),
            monthly_critical: Some("0.002".into()),
            channels: vec![channel],
            ..Default::default()
        };
        let paths = ["monthly_warning", "monthly_critical", "channels"].map(String::from).into();
        let request = UpdateAlertPolicyRequest { policy: Some(policy), update_mask: Some(FieldMask { paths }) };
        alerts.update_alert_policy(request).await.unwrap();
        let mut event_id = String::new();
        for client_id in ["beta", "acme", "acme"] {
            let labels = [("project".to_owned(), "p".to_owned())].into();
            event_id = server.track(UsageEvent { labels, ..event(client_id, "sms", "60") }).await.unwrap().event_id;
        }
        let client = Client { client_id: "gamma".into(), ..Default::default() };
        let request = CreateClientRequest { client: Some(client), request_id: "taken".into() };
        server.clients().create_client(request).await.unwrap();
        let request = UpdateMonthlySummariesRequest::default();
        server.usage().update_monthly_summaries(request).await.unwrap();
        let alert_id =
            alerts.list_alerts(ListAlertsRequest::default()).await.unwrap().into_inner().alerts[0].alert_id.clone();
        // A sent notification, which no worker changes any more.
        let sent = "INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts, state, finish_time)
            SELECT client_id, 'sent', channel_id, kind, target, alerts, 2, now() FROM notifications LIMIT 1";
        assert_eq!(server.sql(sent).await, 1);
        for units in ["59", "60"] {
            let labels = [("project".to_owned(), "p".to_owned())].into();
            let corrected = UsageEvent { client_id: String::new(), labels, ..event("acme", "sms", units) };
            let reference = EventReference { event_id: event_id.clone(), ..Default::default() };
            let correction = UsageCorrection { event: Some(reference), corrected: Some(corrected) };
            let (client_id, reason) = ("acme".into(), "r".into());
            let request =
                CorrectUsageRequest { client_id, corrections: vec![correction], reason, ..Default::default() };
            server.usage().correct_usage(request).await.unwrap();
        }
        let price = Price { effective_time: Some(timestamp("2026-01-02T00:00:00Z")), ..unit_price("sms", "", "0.01") };
        let request = CreatePriceRequest { price: Some(price), ..Default::default() };
        server.catalog().create_price(request).await.unwrap();
        for model in ["a", "b"] {
            let price = Price { client_id: "acme".into(), ..unit_price("sms", model, "0.01") };
            let request = CreatePriceRequest { price: Some(price), ..Default::default() };
            server.catalog().create_price(request).await.unwrap();
        }
        let mut billing = BillingServiceClient::new(server.channel());
        let mut grant_id = String::new();
        for day in ["2026-11-01", "2026-11-02"] {
            let request = SetClientPlanRequest {
                client_id: "acme".into(),
                plan_id: "trial".into(),
                effective_time: Some(timestamp(&format!("{day}T00:00:00Z"))),
            };
            billing.set_client_plan(request).await.unwrap();
            let grant = CreditGrant {
                client_id: "acme".into(),
                amount: "1".into(),
                source: CreditSource::Purchase.into(),
                ..Default::default()
            };
            let request = CreateCreditGrantRequest { grant: Some(grant), ..Default::default() };
            grant_id = billing.create_credit_grant(request).await.unwrap().into_inner().grant.unwrap().grant_id;
        }
        let month = "2026-11".to_owned();
        let request = RepriceUsageRequest {
            start_month: month.clone(),
            end_month: month,
            validate_only: true,
            ..Default::default()
        };
        let run_id = server.catalog().reprice_usage(request).await.unwrap().into_inner().run.unwrap().run_id;
        let open = "SELECT count(*) FROM reprice_runs WHERE finish_time IS NULL";
        wait_until(async || sqlx::query_scalar::<_, i64>(open).fetch_one(&server.pool).await.unwrap() == 0).await;
        let limit = Limit {
            client_id: "acme".into(),
            limit_id: "limit".into(),
            measure: LimitMeasure::Units.into(),
            period: LimitPeriod::Month.into(),
            amount: "1000".into(),
            ..Default::default()
        };
        let of_beta = Limit { client_id: "beta".into(), ..limit.clone() };
        let second = Limit { limit_id: "limit-2".into(), ..limit.clone() };
        let mut billing = BillingServiceClient::new(server.channel());
        for limit in [limit, of_beta, second] {
            let request = CreateLimitRequest { limit: Some(limit), ..Default::default() };
            billing.create_limit(request).await.unwrap();
        }
        let connection = RawConnection::to(&server.address);
        let mut data = Self { server, connection, requests_made: 0, event_id, alert_id, run_id, grant_id };
        for _ in 0..2 {
            data.new_key().await;
        }
        data
    }

    /// Creates an API key.
    pub async fn new_key(&mut self) -> String {
        self.create::<CreateApiKeyResponse>("CreateApiKey").await.api_key.unwrap().key_id
    }

    async fn new_price(&mut self) -> String {
        self.create::<CreatePriceResponse>("CreatePrice").await.price.unwrap().price_id
    }

    /// Creates something with the valid request of an RPC.
    async fn create<T: Message + Default>(&mut self, name: &str) -> T {
        let rpc = rpc(name);
        let request = from_json(rpc.input(), &self.fill_placeholders(&valid_request(name)));
        let answer = self.call(&rpc, &request).await;
        answer.messages[0].transcode_to().unwrap()
    }

    /// Replaces the placeholders of a request.
    pub fn fill_placeholders(&mut self, text: &str) -> String {
        self.requests_made += 1;
        text.replace("$EVENT", &self.event_id)
            .replace("$ALERT", &self.alert_id)
            .replace("$RUN", &self.run_id)
            .replace("$GRANT", &self.grant_id)
            .replace("$N", &self.requests_made.to_string())
    }

    /// Returns a unique valid request.
    pub async fn valid(&mut self, rpc: &MethodDescriptor) -> DynamicMessage {
        let mut text = self.fill_placeholders(&valid_request(rpc.name()));
        if text.contains("$KEY") {
            text = text.replace("$KEY", &self.new_key().await);
        }
        if text.contains("$FRESH") {
            let event_id = self.server.track(event("acme", "sms", "1")).await.unwrap().event_id;
            text = text.replace("$FRESH", &event_id);
        }
        if text.contains("$LIMIT") {
            let limit_id = self.create::<CreateLimitResponse>("CreateLimit").await.limit.unwrap().limit_id;
            text = text.replace("$LIMIT", &limit_id);
        }
        if rpc.name() == "CreateLimit" {
            // A client can only have a hundred.
            self.server.sql("DELETE FROM usage_limits WHERE limit_id NOT LIKE 'limit%'").await;
        }
        if text.contains("$PRICE") {
            text = text.replace("$PRICE", &self.new_price().await);
        }
        from_json(rpc.input(), &text)
    }

    /// Calls an RPC with one message.
    pub async fn call(&self, rpc: &MethodDescriptor, request: &DynamicMessage) -> Answer {
        self.connection.call(rpc, vec![request.encode_to_vec()], READ_MAX).await
    }

    /// Returns the token for the next page or the rest of a stream in the response to the valid request.
    pub async fn token(&mut self, rpc: &MethodDescriptor) -> String {
        let request = self.valid(rpc).await;
        let answer = self.call(rpc, &request).await;
        let field = if rpc.is_server_streaming() { "resume_token" } else { "next_page_token" };
        let message = answer.messages.first().unwrap_or_else(|| panic!("{}: {:?}", rpc.name(), answer.end));
        message.get_field_by_name(field).unwrap().as_str().unwrap().into()
    }
}

/// Returns the RPC with this name.
pub fn rpc(name: &str) -> MethodDescriptor {
    rpcs().into_iter().find(|rpc| rpc.name() == name).unwrap()
}

/// The path of a field in a request: all fields on the way to it. For lists, it leads through the first message.
pub type FieldPath = Vec<FieldDescriptor>;

/// Collects the paths of all fields of a message and of its nested messages.
pub fn field_paths(descriptor: &MessageDescriptor, before: &[FieldDescriptor], found: &mut Vec<FieldPath>) {
    for field in descriptor.fields() {
        let path: FieldPath = before.iter().cloned().chain([field.clone()]).collect();
        found.push(path.clone());
        if let Kind::Message(inner) = field.kind()
            && inner.package_name() == descriptor.package_name()
            && !field.is_map()
        {
            field_paths(&inner, &path, found);
        }
    }
}

/// Returns the path as it is written in errors.
pub fn path_text(path: &[FieldDescriptor]) -> String {
    let (last, before) = path.split_last().unwrap();
    let step = |field: &FieldDescriptor| {
        if field.is_list() { format!("{}[0].", field.name()) } else { format!("{}.", field.name()) }
    };
    before.iter().map(step).collect::<String>() + last.name()
}

/// Returns the message that contains the field of a path, or `None` if a list on the way is empty.
pub fn parent<'a>(message: &'a mut DynamicMessage, path: &[FieldDescriptor]) -> Option<&'a mut DynamicMessage> {
    path[..path.len() - 1].iter().try_fold(message, |message, field| match message.get_field_mut(field) {
        Value::Message(inner) => Some(inner),
        Value::List(values) => values.first_mut().and_then(|value| match value {
            Value::Message(inner) => Some(inner),
            _ => None,
        }),
        other => panic!("{other:?} is not a message"),
    })
}

/// Returns the cases of a field.
pub fn cases_of_field(
    rpc: &MethodDescriptor,
    path: &FieldPath,
    valid: &mut DynamicMessage,
    tokens: &[String; 2],
    unique: &str,
) -> Vec<Case> {
    let (path_text, field) = (path_text(path), path.last().unwrap());
    let message = parent(valid, path).unwrap();
    let value = message.get_field(field).into_owned();
    let name = field.parent_message().name().to_string();
    let ours = matches!(field.kind(), Kind::Message(inner) if inner.package_name() == "metering.v1");
    if ours && !field.is_list() && !field.is_map() {
        let Kind::Message(inner) = field.kind() else { unreachable!() };
        let fields: Vec<String> =
            fields_of_missing(rpc.name(), inner.name()).iter().map(|field| field.to_string()).collect();
        let missing = |kind: &str, value| Case {
            kind: kind.into(),
            value,
            sibling: None,
            expected: if fields.is_empty() { Expected::Valid } else { Expected::Invalid },
            fields: Some(fields.clone()),
        };
        let empty = missing("empty message", Some(Value::Message(DynamicMessage::new(inner.clone()))));
        // An empty policy resets the default policy.
        let empty =
            Case { expected: if inner.name() == "AlertPolicy" { Expected::Valid } else { empty.expected }, ..empty };
        return vec![missing("no message", None), empty];
    }
    let about = Field { descriptor: field, path_text: &path_text, valid: &value, tokens, unique };
    let mut cases = cases(rule(rpc.name(), &name, field.name()), &about);
    if field.name() == "request_id" {
        let taken = Expected::Refused("REQUEST_ID_REUSED");
        let value = Some(Value::String("taken".into()));
        cases.push(Case { kind: "id of another request".into(), value, sibling: None, expected: taken, fields: None });
    }
    cases
}
