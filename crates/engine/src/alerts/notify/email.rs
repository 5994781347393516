//! E-mail over SMTP.

use super::Failure;
use super::config::SmtpConfig;
use super::text::Content;
use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::time::{Duration, SystemTime};

/// Replies of RFC 4954 that reject or require a login. They are transient, because an operator can correct the password.
const LOGIN_REPLIES: [u16; 4] = [530, 534, 535, 538];

/// Sends e-mail over an SMTP server.
pub struct EmailSender {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl EmailSender {
    /// Checks the settings. The server need not be reachable.
    pub fn new(config: &SmtpConfig, timeout: Duration) -> anyhow::Result<Self> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(config.url.reveal()).map_err(|error| {
            if error.is_tls() {
                return anyhow::anyhow!("--smtp-url: TLS cannot be set up: {}", super::reason(&error));
            }
            // Without the cause, which may contain a part of the URL with the password.
            anyhow::anyhow!(
                "--smtp-url: must be a URL such as smtps://user:password@host:465, smtp://host:587?tls=required or \
                 smtp://host:25; percent-encode special characters of the user and the password"
            )
        })?;
        let from = config.from.parse().map_err(|_| {
            anyhow::anyhow!(
                "--smtp-from: must be an address such as \"meterd <alerts@example.com>\", got {:?}",
                config.from
            )
        })?;
        Ok(Self { transport: transport.timeout(Some(timeout)).build(), from })
    }

    /// Sends one notification. Its message id is the same for every attempt.
    pub async fn send(&self, id: &str, target: &str, content: &Content<'_>, time: SystemTime) -> Result<(), Failure> {
        let to: Address = target.parse().map_err(|_| Failure::Permanent("the target is no e-mail address".into()))?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(content.subject())
            .date(time)
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .header(ContentType::TEXT_PLAIN)
            .body(content.mail())
            .map_err(|error| Failure::Permanent(error.to_string()))?;
        match self.transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_permanent() && !is_of_login(&error) => {
                Err(Failure::Permanent(super::reason(&error)))
            }
            Err(error) => Err(Failure::Transient(super::reason(&error))),
        }
    }
}

fn is_of_login(error: &smtp::Error) -> bool {
    error.status().is_some_and(|code| LOGIN_REPLIES.contains(&code.into()))
}
