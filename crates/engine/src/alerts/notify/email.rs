//! E-mail over SMTP.

use super::Failure;
use super::config::SmtpConfig;
use super::text::Told;
use anyhow::Context;
use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::time::{Duration, SystemTime};

/// Replies of RFC 4954 by which a server does not take the login, or wants one. A password that was changed is set here too,
/// sooner or later.
const LOGIN_REPLIES: [u16; 4] = [530, 534, 535, 538];

/// A server and the sender that it sends for.
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Mailer {
    /// By settings that are looked at now and used later: the server need not be there.
    pub fn new(config: &SmtpConfig, timeout: Duration) -> anyhow::Result<Self> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(config.url.reveal()).map_err(|error| {
            if error.is_tls() {
                return anyhow::anyhow!("--smtp-url: TLS cannot be set up: {}", super::reason(&error));
            }
            // Without the cause, which may have a part of the URL, and so the password, in it.
            anyhow::anyhow!(
                "--smtp-url is not one of smtps://user:password@host:465, smtp://host:587?tls=required and smtp://host:25, \
                 with special characters of user and password percent-encoded"
            )
        })?;
        let from = config.from.parse().context("--smtp-from is no address such as \"meterd <alerts@example.com>\"")?;
        Ok(Self { transport: transport.timeout(Some(timeout)).build(), from })
    }

    /// Sends one, with a message id that is the same at every attempt.
    pub async fn send(&self, id: &str, target: &str, told: &Told<'_>, time: SystemTime) -> Result<(), Failure> {
        let to: Address = target.parse().map_err(|_| Failure::Final("the target is no e-mail address".into()))?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(told.subject())
            .date(time)
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .header(ContentType::TEXT_PLAIN)
            .body(told.mail())
            .map_err(|error| Failure::Final(error.to_string()))?;
        match self.transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_permanent() && !is_of_login(&error) => Err(Failure::Final(super::reason(&error))),
            Err(error) => Err(Failure::Passing(super::reason(&error))),
        }
    }
}

fn is_of_login(error: &smtp::Error) -> bool {
    error.status().is_some_and(|code| LOGIN_REPLIES.contains(&code.into()))
}
