//! The reason of a failed delivery, as the list of notifications shows it: the root cause in plain words, without addresses.

use super::address::REFUSED;
use rustls::CertificateError as Wrong;
use std::error::Error;
use std::io::{self, ErrorKind};

/// Maximum number of characters of a stored error.
const ERROR_CHARS_MAX: usize = 500;
/// Part of the error of the system's resolver for an unknown name.
const UNKNOWN_NAME: &str = "lookup address information";

/// Returns the cause of an error in plain words if it is known, otherwise the error with its causes.
pub fn reason(error: &(dyn Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(known) = known(error) {
            return known;
        }
        cause = error.source();
    }
    whole(error)
}

/// Returns the texts of an error and its causes. Repeated texts are left out.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text += &format!(": {next_text}");
        }
        cause = next.source();
    }
    cleaned(&text)
}

/// Returns the part of a text that is stored. Control characters are replaced, because PostgreSQL rejects NUL.
pub fn cleaned(text: &str) -> String {
    let cleaned = |character: char| if character.is_control() { ' ' } else { character };
    let mut cleaned: String = text.chars().map(cleaned).take(ERROR_CHARS_MAX + 1).collect();
    if cleaned.chars().count() > ERROR_CHARS_MAX {
        cleaned = cleaned.chars().take(ERROR_CHARS_MAX - 1).chain(['…']).collect();
    }
    cleaned
}

/// Returns the plain words for an error that is a known cause.
fn known(error: &(dyn Error + 'static)) -> Option<String> {
    let text = error.to_string();
    if error.source().is_none() && text.contains(REFUSED) {
        return Some(format!("the host {REFUSED}"));
    }
    if error.source().is_none() && text.contains(UNKNOWN_NAME) {
        return Some("the host name is not known".into());
    }
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(tls(error));
    }
    let error = error.downcast_ref::<io::Error>()?;
    if let Some(inner) = error.get_ref()
        && let Some(known) = known(inner)
    {
        return Some(known);
    }
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => "the connection was refused: nothing listens at that port".into(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            "the receiver closed the connection without an answer".into()
        }
        ErrorKind::UnexpectedEof => "the receiver closed the connection without an answer".into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "there is no route to the host".into(),
        ErrorKind::TimedOut => "no answer in time".into(),
        _ => return None,
    })
}

fn tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(wrong) => format!("the receiver's certificate {}", certificate(wrong)),
        rustls::Error::InvalidMessage(_) => "the receiver does not speak TLS at that port".into(),
        rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) => {
            "the receiver refused the TLS handshake".into()
        }
        _ => "the TLS handshake failed".into(),
    }
}

fn certificate(wrong: &Wrong) -> &'static str {
    match wrong {
        Wrong::Expired | Wrong::ExpiredContext { .. } => "has expired",
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => "is not valid yet",
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => "is for another host name",
        Wrong::UnknownIssuer => "is signed by an authority that this server does not trust",
        Wrong::Revoked => "was revoked",
        Wrong::BadEncoding => "cannot be read",
        Wrong::BadSignature => "has a wrong signature",
        // Such as a certificate of `openssl req -x509`.
        Wrong::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
            "is that of an authority, as self-signed ones are, and this server does not trust it"
        }
        _ => "cannot be trusted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that wraps another one, as HTTP libraries do.
    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Wrapped(#[source] Box<dyn Error + Send + Sync>);

    fn wrapped(error: impl Into<Box<dyn Error + Send + Sync>>) -> String {
        reason(&Wrapped(Box::new(Wrapped(error.into()))))
    }

    #[test]
    fn a_known_cause_is_described_in_plain_words_only() {
        let tls = |error: rustls::Error| io::Error::new(ErrorKind::InvalidData, error);
        let certificate = |wrong| tls(rustls::Error::InvalidCertificate(wrong));
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure);
        for (error, expected) in [
            (io::Error::from(ErrorKind::ConnectionRefused), "the connection was refused: nothing listens at that port"),
            (io::Error::from(ErrorKind::ConnectionReset), "the receiver closed the connection without an answer"),
            (io::Error::from(ErrorKind::HostUnreachable), "there is no route to the host"),
            (
                io::Error::other("failed to lookup address information: Name or service not known"),
                "the host name is not known",
            ),
            (certificate(Wrong::Expired), "the receiver's certificate has expired"),
            (
                certificate(Wrong::UnknownIssuer),
                "the receiver's certificate is signed by an authority that this server does not trust",
            ),
            (certificate(Wrong::NotValidForName), "the receiver's certificate is for another host name"),
            (certificate(Wrong::ApplicationVerificationFailure), "the receiver's certificate cannot be trusted"),
            (tls(alert), "the receiver refused the TLS handshake"),
            (tls(rustls::Error::DecryptError), "the TLS handshake failed"),
        ] {
            assert_eq!(wrapped(error), expected);
        }
        assert_eq!(wrapped(REFUSED), format!("the host {REFUSED}"));
    }

    #[test]
    fn an_unknown_error_is_shown_with_its_causes_and_truncated_with_an_ellipsis() {
        assert_eq!(wrapped("550 no such user\0"), "client error (Connect): 550 no such user ");
        let cut = cleaned(&"x".repeat(600));
        assert!(cut.chars().count() == ERROR_CHARS_MAX && cut.ends_with('…'));
    }
}
