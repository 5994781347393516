//! What the clients of webhooks and of Twilio share.

use reqwest::{Client, ClientBuilder, redirect};
use std::time::Duration;

/// A client that goes where it is sent: no redirects, and no proxy that the environment happens to name.
pub fn client(timeout: Duration) -> ClientBuilder {
    // Whoever was first has installed the same.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
        .user_agent(concat!("meterd/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        // Each delivery looks the name up again, and has its addresses checked.
        .pool_max_idle_per_host(0)
        .timeout(timeout)
}

/// Why a request has failed, without its URL: that may have a token in it.
pub fn reason(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let is_cut = error.is_request() && !error.is_connect();
    let reason = super::reason(&error.without_url());
    // hyper keeps its own words for an end of the connection to itself.
    match is_cut && reason.contains("connection closed before message completed") {
        true => "the receiver closed the connection without an answer".into(),
        false => reason,
    }
}
