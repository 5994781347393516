//! A server with one of everything that requests name, and the places of fields in requests.

use crate::bad_kinds::{Case, Expected, Field, cases};
use crate::bad_requests::{fields_of_missing, fine_request, rule};
use crate::contract::*;
use crate::harness::*;
use meterd::proto::*;
use meterd_engine::clock::Clock;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use prost_types::FieldMask;

/// Messages that are read of an answer: a subscription does not end by itself.
const READ_MAX: usize = 1;

/// One server, and a connection to it.
pub struct World {
    pub server: TestServer,
    pub wire: Wire,
    pub made: usize,
    pub event_id: String,
    pub alert_id: String,
}

impl World {
    /// With alerts, a notification that was told, keys, events and clients.
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
            event_id = server.track(event(client_id, "sms", "60")).await.unwrap().event_id;
        }
        let client = Client { client_id: "gamma".into(), ..Default::default() };
        let request = CreateClientRequest { client: Some(client), request_id: "taken".into() };
        server.clients().create_client(request).await.unwrap();
        let request = UpdateMonthlySummariesRequest::default();
        server.usage().update_monthly_summaries(request).await.unwrap();
        let alert_id =
            alerts.list_alerts(ListAlertsRequest::default()).await.unwrap().into_inner().alerts[0].alert_id.clone();
        // One that is told: nobody touches it any more.
        let told = "INSERT INTO notifications (client_id, notification_id, channel_id, kind, target, alerts, state, finish_time)
            SELECT client_id, 'told', channel_id, kind, target, alerts, 2, now() FROM notifications LIMIT 1";
        assert_eq!(server.sql(told).await, 1);
        let wire = Wire::to(&server.address);
        let mut world = Self { server, wire, made: 0, event_id, alert_id };
        for _ in 0..2 {
            world.new_key().await;
        }
        world
    }

    /// Makes an API key.
    pub async fn new_key(&mut self) -> String {
        let rpc = rpc("CreateApiKey");
        let request = from_json(rpc.input(), &self.numbered(&fine_request("CreateApiKey")));
        let answer = self.call(&rpc, &request).await;
        answer.messages[0].transcode_to::<CreateApiKeyResponse>().unwrap().api_key.unwrap().key_id
    }

    /// Fills in what a request names.
    pub fn numbered(&mut self, text: &str) -> String {
        self.made += 1;
        text.replace("$EVENT", &self.event_id).replace("$ALERT", &self.alert_id).replace("$N", &self.made.to_string())
    }

    /// A fine request, like no other.
    pub async fn fine(&mut self, rpc: &MethodDescriptor) -> DynamicMessage {
        let mut text = self.numbered(&fine_request(rpc.name()));
        if text.contains("$KEY") {
            text = text.replace("$KEY", &self.new_key().await);
        }
        from_json(rpc.input(), &text)
    }

    /// Calls with one message.
    pub async fn call(&self, rpc: &MethodDescriptor, request: &DynamicMessage) -> Answer {
        self.wire.call(rpc, vec![request.encode_to_vec()], READ_MAX).await
    }

    /// Where an RPC's answer to its fine request goes on.
    pub async fn token(&mut self, rpc: &MethodDescriptor) -> String {
        let request = self.fine(rpc).await;
        let answer = self.call(rpc, &request).await;
        let field = if rpc.is_server_streaming() { "resume_token" } else { "next_page_token" };
        let message = answer.messages.first().unwrap_or_else(|| panic!("{}: {:?}", rpc.name(), answer.end));
        message.get_field_by_name(field).unwrap().as_str().unwrap().into()
    }
}

/// An RPC by its name.
pub fn rpc(name: &str) -> MethodDescriptor {
    rpcs().into_iter().find(|rpc| rpc.name() == name).unwrap()
}

/// A field somewhere in a request: the fields that lead to it, each in the first message of its list.
pub type Place = Vec<FieldDescriptor>;

/// Every field of a message, and of the messages in it.
pub fn places(descriptor: &MessageDescriptor, before: &[FieldDescriptor], found: &mut Vec<Place>) {
    for field in descriptor.fields() {
        let place: Place = before.iter().cloned().chain([field.clone()]).collect();
        found.push(place.clone());
        if let Kind::Message(inner) = field.kind()
            && inner.package_name() == descriptor.package_name()
        {
            places(&inner, &place, found);
        }
    }
}

/// A place as violations name it.
pub fn path(place: &[FieldDescriptor]) -> String {
    let (last, before) = place.split_last().unwrap();
    let step = |field: &FieldDescriptor| {
        if field.is_list() { format!("{}[0].", field.name()) } else { format!("{}.", field.name()) }
    };
    before.iter().map(step).collect::<String>() + last.name()
}

/// The message that a place's field is of; nothing, where a list on the way is empty.
pub fn parent<'a>(message: &'a mut DynamicMessage, place: &[FieldDescriptor]) -> Option<&'a mut DynamicMessage> {
    place[..place.len() - 1].iter().try_fold(message, |message, field| match message.get_field_mut(field) {
        Value::Message(inner) => Some(inner),
        Value::List(values) => values.first_mut().and_then(|value| match value {
            Value::Message(inner) => Some(inner),
            _ => None,
        }),
        other => panic!("{other:?} is no message"),
    })
}

/// The cases of a field.
pub fn cases_of(
    rpc: &MethodDescriptor,
    place: &Place,
    fine: &mut DynamicMessage,
    tokens: &[String; 2],
    unique: &str,
) -> Vec<Case> {
    let (path, field) = (path(place), place.last().unwrap());
    let message = parent(fine, place).unwrap();
    let value = message.get_field(field).into_owned();
    let name = field.parent_message().name().to_string();
    let ours = matches!(field.kind(), Kind::Message(inner) if inner.package_name() == "metering.v1");
    if ours && !field.is_list() {
        let Kind::Message(inner) = field.kind() else { unreachable!() };
        let fields: Vec<String> =
            fields_of_missing(rpc.name(), inner.name()).iter().map(|field| field.to_string()).collect();
        let missing = |kind: &str, value| Case {
            kind: kind.into(),
            value,
            beside: None,
            expected: Expected::Wrong,
            fields: Some(fields.clone()),
        };
        let empty = missing("empty message", Some(Value::Message(DynamicMessage::new(inner.clone()))));
        // An empty policy takes the default one back.
        let empty =
            Case { expected: if inner.name() == "AlertPolicy" { Expected::Fine } else { Expected::Wrong }, ..empty };
        return vec![missing("no message", None), empty];
    }
    let about = Field { descriptor: field, path: &path, fine: &value, tokens, unique };
    let mut cases = cases(rule(rpc.name(), &name, field.name()), &about);
    if field.name() == "request_id" {
        let taken = Expected::Refused("REQUEST_ID_REUSED");
        let value = Some(Value::String("taken".into()));
        cases.push(Case { kind: "id of another request".into(), value, beside: None, expected: taken, fields: None });
    }
    cases
}
