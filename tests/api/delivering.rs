//! What goes wrong while notifications are delivered, and what it must not hold up.

use crate::harness::*;
use crate::notifying::*;
use crate::policies::try_update;
use crate::receivers::{Answer, HttpReceiver, SmtpReceiver};
use meterd::proto::*;
use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

/// What is logged in this thread, where the runtime of a test has no other.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> (Self, DefaultGuard) {
        // With one subscriber alone, tracing takes what the first thread that comes by wants of a line, and that may be one
        // without any, for what all want.
        static SECOND: OnceLock<Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish()));
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn count(&self, phrase: &str) -> usize {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(phrase).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hook_policy(client_id: &str, targets: &[String]) -> AlertPolicy {
    let channel = |target: &String| NotificationChannel {
        kind: NotificationChannelKind::Webhook.into(),
        target: target.clone(),
        ..Default::default()
    };
    AlertPolicy { client_id: client_id.into(), channels: targets.iter().map(channel).collect(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_changed_is_a_passing_failure() {
    let refusals = ["530 log in first", "534 too weak", "535 no such login", "538 encrypt first"];
    let mail = SmtpReceiver::start(refusals).await;
    let twilio = HttpReceiver::start([401, 403, 408].map(Answer::Status)).await;
    let smtp_url = format!("--smtp-url=smtp://meterd:old@{}", mail.address);
    let twilio_url = format!("--twilio-api-url=http://{}", twilio.address);
    let server = server_with(&[
        &smtp_url,
        "--smtp-from=alerts@meterd.example",
        &twilio_url,
        "--twilio-account-sid=AC123",
        "--twilio-auth-token=hunter2",
        "--twilio-from=+15550000000",
        "--notification-backoff-seconds=1",
    ])
    .await;
    let mails = (0..4).map(|n| channel(NotificationChannelKind::Email, format!("ops{n}@example.com")));
    let texts = (0..3).map(|n| channel(NotificationChannelKind::Sms, format!("+1555123456{n}")));
    set_channels(&server, "", &mails.chain(texts).collect::<Vec<_>>()).await;
    raise(&server, "acme").await;
    let told = sent(&server, 7).await;
    // Each refusal costs one attempt.
    assert_eq!(told.iter().map(|notification| notification.attempt_count).sum::<i32>(), 14);
    assert_eq!((mail.mails().len(), twilio.received().len()), (4, 6));
    server.stop().await;
}
