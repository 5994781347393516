//! The HTTP client that webhooks and Twilio share.

use reqwest::{Client, ClientBuilder, redirect};
use std::time::Duration;

/// Returns a client builder without redirects, and without the proxy of the environment.
pub fn client(timeout: Duration) -> ClientBuilder {
    // Fails if a provider is installed already. It is always the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
        .user_agent(concat!("meterd/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        // Without idle connections, each delivery resolves the host name again, so that the addresses are checked.
        .pool_max_idle_per_host(0)
        .timeout(timeout)
}

/// Returns why a request failed, without its URL, which may contain a token.
pub fn reason(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let is_closed = error.is_request() && !error.is_connect();
    let reason = super::reason(&error.without_url());
    // The error type of hyper is private, so its text is compared.
    match is_closed && reason.contains("connection closed before message completed") {
        true => "the receiver closed the connection without an answer".into(),
        false => reason,
    }
}
