//! `meterd notifications`: lists alert notifications, retries failed ones, tests channels.

use super::chart::table;
use super::connect::{self, ConnectArgs};
use crate::proto::{
    ListNotificationsRequest, Notification, NotificationState, RetryNotificationRequest, SendTestNotificationRequest,
};
use chrono::{DateTime, SecondsFormat};
use clap::{Args, Subcommand};
use prost_types::Timestamp;
use serde_json::json;
use std::process::ExitCode;

const CALL_SECONDS: u64 = 30;
/// The server answers a test after all deliveries.
const TEST_SECONDS: u64 = 120;
/// Maximum number of notifications in one call.
const PAGE_SIZE: i32 = 1_000;
/// Maximum number of characters of a target in the table. The last column, the error, is not shortened.
const CELL_CHARS_MAX: usize = 60;

/// List alert notifications, retry failed ones, or test channels
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NotificationsArgs {
    #[command(subcommand)]
    pub command: Option<NotificationsCommand>,
    #[command(flatten)]
    pub list: ListArgs,
}

/// Subcommands of `notifications`.
#[derive(Subcommand, Clone, Debug)]
pub enum NotificationsCommand {
    /// List notifications, the newest first (the default)
    List(ListArgs),
    /// Retry a failed notification
    Retry(RetryArgs),
    /// Send a test notification to every channel of a policy and show the results
    Test(TestArgs),
}

/// Arguments of `notifications test`.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Test the channels of this client, instead of the operator's
    #[arg(long, value_name = "CLIENT")]
    pub client: Option<String>,
    /// Print JSON, one notification per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `notifications list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only failed notifications
    #[arg(long)]
    pub failed: bool,
    /// Only notifications to channels of this client
    #[arg(long, value_name = "CLIENT")]
    pub client: Option<String>,
    /// Only notifications to the operator's channels
    #[arg(long, conflicts_with = "client")]
    pub operator: bool,
    /// Maximum number of notifications
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// Print JSON, one notification per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Arguments of `notifications retry`.
#[derive(Args, Clone, Debug)]
pub struct RetryArgs {
    /// Id of the notification
    #[arg(value_name = "ID")]
    pub notification_id: String,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Runs the subcommand.
pub async fn run(args: NotificationsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(NotificationsCommand::Retry(args)) => retry(args).await,
        Some(NotificationsCommand::Test(args)) => test(args).await,
        Some(NotificationsCommand::List(args)) => list(args).await,
        None => list(args.list).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut client = connect::alerts_client(args.connect.channel().await?);
    let mut found: Vec<Notification> = vec![];
    let mut page_token = String::new();
    loop {
        let left = args.limit as usize - found.len();
        let request = ListNotificationsRequest {
            client_id: args.client.clone().unwrap_or_default(),
            operator_only: args.operator,
            states: if args.failed { vec![NotificationState::Failed.into()] } else { vec![] },
            page_size: i32::try_from(left).unwrap_or(PAGE_SIZE).min(PAGE_SIZE),
            page_token,
        };
        let answer = client.list_notifications(args.connect.request(request, CALL_SECONDS)).await;
        let page = answer.map_err(|status| connect::status_error(&status))?.into_inner();
        found.extend(page.notifications);
        page_token = page.next_page_token;
        if page_token.is_empty() || found.len() >= args.limit as usize {
            break;
        }
    }
    match args.json {
        true => found.iter().for_each(|notification| println!("{}", to_json(notification))),
        false => to_table(&found).iter().for_each(|line| println!("{line}")),
    }
    if !args.json && !page_token.is_empty() {
        println!("there are older notifications: increase --limit");
    }
    Ok(ExitCode::SUCCESS)
}

async fn retry(args: RetryArgs) -> anyhow::Result<ExitCode> {
    let mut client = connect::alerts_client(args.connect.channel().await?);
    let request = RetryNotificationRequest { notification_id: args.notification_id };
    let answer = client.retry_notification(args.connect.request(request, CALL_SECONDS)).await;
    let notification = answer.map_err(|status| connect::status_error(&status))?.into_inner().notification;
    to_table(&notification.into_iter().collect::<Vec<_>>()).iter().for_each(|line| println!("{line}"));
    Ok(ExitCode::SUCCESS)
}

/// Sends test notifications. The exit code is 1 if one fails.
async fn test(args: TestArgs) -> anyhow::Result<ExitCode> {
    let mut client = connect::alerts_client(args.connect.channel().await?);
    let request = SendTestNotificationRequest { client_id: args.client.clone().unwrap_or_default() };
    let answer = client.send_test_notification(args.connect.request(request, TEST_SECONDS)).await;
    let tests = answer.map_err(|status| connect::status_error(&status))?.into_inner().notifications;
    let whose = args.client.map_or_else(|| "the operator".into(), |client| format!("client {client}"));
    anyhow::ensure!(!tests.is_empty(), "{whose} has no channels: add channels with AlertService.UpdateAlertPolicy");
    match args.json {
        true => tests.iter().for_each(|test| println!("{}", to_json(test))),
        false => to_table(&tests).iter().for_each(|line| println!("{line}")),
    }
    let all_sent = tests.iter().all(|test| test.state() == NotificationState::Sent);
    Ok(if all_sent { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kind(notification: &Notification) -> &'static str {
    notification.kind().as_str_name().trim_start_matches("NOTIFICATION_CHANNEL_KIND_")
}

fn state(notification: &Notification) -> &'static str {
    notification.state().as_str_name().trim_start_matches("NOTIFICATION_STATE_")
}

fn time(time: Option<&Timestamp>) -> Option<String> {
    let time = time.and_then(|time| DateTime::from_timestamp(time.seconds, time.nanos as u32))?;
    Some(time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

fn to_table(notifications: &[Notification]) -> Vec<String> {
    if notifications.is_empty() {
        return vec!["no notifications".into()];
    }
    let header = ["created", "state", "of", "by", "to", "alerts", "tried", "id", "last error"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for notification in notifications {
        let cell = |text: &str| match text.chars().count() > CELL_CHARS_MAX {
            true => text.chars().take(CELL_CHARS_MAX - 1).chain(['…']).collect(),
            false => text.to_owned(),
        };
        let whose = match notification.client_id.as_str() {
            "" => "operator",
            client_id => client_id,
        };
        rows.push(vec![
            time(notification.create_time.as_ref()).unwrap_or_default(),
            state(notification).into(),
            whose.into(),
            kind(notification).into(),
            cell(&notification.target),
            notification.alert_count.to_string(),
            notification.attempt_count.to_string(),
            notification.notification_id.clone(),
            notification.last_error.clone(),
        ]);
    }
    table(&rows, &[false, false, false, false, false, true, true])
}

fn to_json(notification: &Notification) -> serde_json::Value {
    json!({
        "notification_id": notification.notification_id,
        "client_id": notification.client_id,
        "kind": kind(notification),
        "target": notification.target,
        "state": state(notification),
        "alert_ids": notification.alert_ids,
        "alert_count": notification.alert_count,
        "attempt_count": notification.attempt_count,
        "next_attempt_time": time(notification.next_attempt_time.as_ref()),
        "last_error": notification.last_error,
        "digest_id": notification.digest_id,
        "create_time": time(notification.create_time.as_ref()),
        "finish_time": time(notification.finish_time.as_ref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::NotificationChannelKind;

    #[test]
    fn a_failed_notification_is_shown_with_its_last_error() {
        let notification = Notification {
            notification_id: "n1".into(),
            kind: NotificationChannelKind::Webhook.into(),
            target: format!("https://example.com/{}", "x".repeat(100)),
            state: NotificationState::Failed.into(),
            alert_count: 1,
            attempt_count: 8,
            last_error: "the receiver answered 500".into(),
            create_time: Some(Timestamp { seconds: 1_800_000_000, nanos: 5 }),
            ..Default::default()
        };
        let lines = to_table(std::slice::from_ref(&notification));
        assert!(
            lines[1].starts_with("2027-01-15T08:00:00Z  FAILED  operator  WEBHOOK  https://example.com/x"),
            "{lines:?}"
        );
        assert!(lines[1].ends_with("x…       1      8  n1  the receiver answered 500"), "{lines:?}");
        assert_eq!(to_json(&notification)["next_attempt_time"], serde_json::Value::Null);
        assert_eq!(to_table(&[]), ["no notifications"]);
    }
}
