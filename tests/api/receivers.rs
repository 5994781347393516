//! Real receivers of notifications: an HTTP server for webhooks and for Twilio's API, and an SMTP server.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A received request.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

/// A response of an HTTP receiver. After the last one, it responds with 200.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16),
    Body(u16, &'static str),
    Redirect(String),
    /// Responds after this time.
    Late(Duration),
}

/// An HTTP server on 127.0.0.1 that stores requests.
#[derive(Clone)]
pub struct HttpReceiver {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl HttpReceiver {
    pub async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            received: Arc::default(),
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
        };
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        receiver
    }

    pub fn url(&self) -> String {
        format!("http://{}/alerts", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

async fn receive(
    State(receiver): State<HttpReceiver>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let answer = receiver.answers.lock().unwrap().pop_front();
    receiver.received.lock().unwrap().push(Received { method, path: uri.to_string(), headers, body });
    let status = |status| StatusCode::from_u16(status).unwrap();
    match answer {
        None => StatusCode::OK.into_response(),
        Some(Answer::Status(code)) => status(code).into_response(),
        Some(Answer::Body(code, body)) => (status(code), body).into_response(),
        Some(Answer::Redirect(to)) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
        Some(Answer::Late(after)) => {
            tokio::time::sleep(after).await;
            StatusCode::OK.into_response()
        }
    }
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).to_str().unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Returns whether one of the signatures is that of the key, as the Standard Webhooks specification defines it.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let signed = format!("{}.{}.{}", self.header("webhook-id"), self.header("webhook-timestamp"), self.body);
        self.header("webhook-signature").split(' ').any(|signature| {
            let signature = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(signed.as_bytes());
            mac.verify_slice(&signature).is_ok()
        })
    }
}

/// A received mail.
#[derive(Clone, Debug)]
pub struct Mail {
    /// User and password of AUTH PLAIN.
    pub login: String,
    pub from: String,
    pub to: String,
    /// Headers and body.
    pub data: String,
}

/// An SMTP server on 127.0.0.1 that stores mails.
#[derive(Clone)]
pub struct SmtpReceiver {
    pub address: SocketAddr,
    mails: Arc<Mutex<Vec<Mail>>>,
    errors: Arc<Mutex<VecDeque<&'static str>>>,
}

impl SmtpReceiver {
    /// Responds with these errors first: 53x to logins, others to recipients.
    pub async fn start(errors: impl IntoIterator<Item = &'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            mails: Arc::default(),
            errors: Arc::new(Mutex::new(errors.into_iter().collect())),
        };
        let accepting = receiver.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let receiver = accepting.clone();
                tokio::spawn(async move { drop(receiver.serve(stream).await) });
            }
        });
        receiver
    }

    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap().clone()
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut mail = Mail { login: String::new(), from: String::new(), to: String::new(), data: String::new() };
        write.write_all(b"220 test ESMTP\r\n").await?;
        while let Some(line) = lines.next_line().await? {
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_uppercase();
            let address = || line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
            let answer = match verb.as_str() {
                "EHLO" => "250-test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 AUTH PLAIN",
                "AUTH" => {
                    let login = STANDARD.decode(line.rsplit(' ').next().unwrap()).unwrap();
                    mail.login = String::from_utf8(login).unwrap().replace('\0', " ").trim().to_owned();
                    let mut errors = self.errors.lock().unwrap();
                    let refuses = errors.front().is_some_and(|error| error.starts_with("53"));
                    refuses.then(|| errors.pop_front()).flatten().unwrap_or("235 welcome")
                }
                "MAIL" => {
                    mail.from = address();
                    "250 fine"
                }
                "RCPT" => {
                    mail.to = address();
                    self.errors.lock().unwrap().pop_front().unwrap_or("250 fine")
                }
                "DATA" => {
                    write.write_all(b"354 go on\r\n").await?;
                    while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                        mail.data += &format!("{line}\n");
                    }
                    self.mails.lock().unwrap().push(mail.clone());
                    "250 taken"
                }
                "QUIT" => return write.write_all(b"221 bye\r\n").await,
                _ => "250 fine",
            };
            write.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
        Ok(())
    }
}
