//! Connects to a server: TCP, TLS, and the first bytes of HTTP/2. Detects servers that do not speak gRPC.

use super::address::{Address, PORT_DEFAULT};
use super::connect::TlsArgs;
use super::trust;
use anyhow::{anyhow, bail};
use bytes::{Buf, Bytes};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// Timeout for name resolution and TCP together, and for the TLS handshake.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for the first bytes of the server. After it, the server is assumed to speak HTTP/2.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(1);
/// The first bytes of an HTTP/2 client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Size of a frame header. The first frame of an HTTP/2 server is SETTINGS.
const FRAME_HEADER_BYTES: usize = 9;

/// Connects to one server.
pub struct Dialer {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    ca: Option<PathBuf>,
    has_client_cert: bool,
}

/// A byte stream for HTTP/2.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http2,
    Http1,
    Tls,
    /// Another protocol.
    Other,
    /// The server sent too few bytes.
    Unknown,
}

impl Dialer {
    /// Creates a dialer and reads the TLS files.
    pub fn new(address: Address, args: &TlsArgs) -> anyhow::Result<Self> {
        let tls = match address.tls {
            true => Some(trust::config(args)?),
            false => {
                args.check_unused(&address.to_string())?;
                None
            }
        };
        Ok(Self { address, tls, ca: args.tls_ca.clone(), has_client_cert: args.tls_client_cert.is_some() })
    }

    /// Connects to the server.
    pub async fn dial(&self) -> anyhow::Result<Box<dyn Stream>> {
        let tcp = self.tcp().await?;
        let Some(config) = &self.tls else { return self.exchange_preface(tcp).await };
        let name = ServerName::try_from(self.address.host.clone());
        let name = name.map_err(|_| anyhow!("--server: {:?} is not a valid host name for TLS", self.address.host))?;
        let handshake = TlsConnector::from(config.clone()).connect(name, tcp);
        let tls = match timeout(STEP_TIMEOUT, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return Err(self.tls_error(&error).await),
            Err(_) => bail!("no TLS answer from the server at {} within 5 s: does it use TLS?", self.address),
        };
        if tls.get_ref().1.alpn_protocol() != Some(trust::ALPN) {
            return Err(self.other_protocol(Protocol::Http1));
        }
        self.exchange_preface(tls).await
    }

    /// Connects to the first address that answers. A name such as localhost has several addresses.
    async fn tcp(&self) -> anyhow::Result<TcpStream> {
        let Address { host, port, .. } = &self.address;
        let deadline = Instant::now() + STEP_TIMEOUT;
        let resolved = timeout(STEP_TIMEOUT, tokio::net::lookup_host((host.as_str(), *port))).await;
        let addresses: Vec<_> = match resolved {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => bail!("--server: cannot resolve the host name {host:?}: {error}"),
            Err(_) => bail!("--server: cannot resolve the host name {host:?} within 5 s"),
        };
        let mut cause = "the host name has no address".to_owned();
        for (index, address) in addresses.iter().enumerate() {
            // Divide the time among the addresses, so that one without an answer leaves time for the others.
            let left = (addresses.len() - index) as u32;
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    tcp.set_nodelay(true)?;
                    return Ok(tcp);
                }
                Ok(Err(error)) => cause = error.to_string(),
                Err(_) => cause = format!("{address} does not answer; a firewall may block it"),
            }
        }
        let assumed = match self.address.port_is_default {
            true => format!(" (default port {PORT_DEFAULT})"),
            false => String::new(),
        };
        bail!(
            "no server answers at {}{assumed}: {cause}\nstart the server with `meterd serve`, or set its address with \
             --server or METERD_SERVER",
            self.address
        )
    }

    /// Sends the HTTP/2 preface and checks the first bytes of the answer.
    async fn exchange_preface<S: Stream + 'static>(&self, mut stream: S) -> anyhow::Result<Box<dyn Stream>> {
        let mut answer = vec![];
        let exchange = async {
            stream.write_all(PREFACE).await?;
            stream.flush().await?;
            while answer.len() < FRAME_HEADER_BYTES && stream.read_buf(&mut answer).await? > 0 {}
            io::Result::Ok(())
        };
        let ended = match timeout(PREFACE_TIMEOUT, exchange).await {
            Ok(Ok(())) => answer.is_empty(),
            Ok(Err(error)) => {
                if let Some(alert) = alert_of(&error) {
                    bail!("the server at {}: {}", self.address, trust::alert_text(alert, self.has_client_cert));
                }
                true
            }
            Err(_) => false,
        };
        let protocol = match (protocol_of(&answer), ended && !self.address.tls) {
            // A server that closes the connection may use another protocol, or have too many connections.
            (Protocol::Unknown, true) => self.probe().await,
            (protocol, _) => protocol,
        };
        match protocol {
            Protocol::Other if !answer.is_empty() => {
                let start = String::from_utf8_lossy(&answer).into_owned();
                bail!(
                    "the server at {} is not a gRPC server: its answer begins with {start:?}",
                    self.address.authority()
                )
            }
            Protocol::Http2 | Protocol::Other | Protocol::Unknown => {
                Ok(Box::new(PrefacedStream { stream, answer: answer.into(), preface_left: PREFACE.len() }))
            }
            other => Err(self.other_protocol(other)),
        }
    }

    /// The error for a server with another protocol, with the right address if possible.
    fn other_protocol(&self, protocol: Protocol) -> anyhow::Error {
        let address = &self.address;
        let authority = address.authority();
        match protocol {
            Protocol::Tls => anyhow!(
                "the server at {authority} uses TLS: use --server {}, and add --tls-ca FILE unless this system trusts its \
                 certificate",
                address.with_tls(true)
            ),
            Protocol::Http2 => {
                anyhow!("the server at {authority} does not use TLS: use --server {}", address.with_tls(false))
            }
            _ => {
                let grpc = match address.port {
                    PORT_DEFAULT => "a proxy in front of it may not forward HTTP/2".to_owned(),
                    _ => format!("use the gRPC port (--listen), such as --server {}", address.with_port(PORT_DEFAULT)),
                };
                anyhow!(
                    "the server at {authority} answers HTTP/1.1, not gRPC, like the port of /healthz and /metrics; {grpc}"
                )
            }
        }
    }

    /// The error for a failed TLS handshake.
    async fn tls_error(&self, error: &io::Error) -> anyhow::Error {
        let address = &self.address;
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(certificate)) => {
                let why = trust::certificate_text(certificate, &address.host, self.ca.as_deref());
                anyhow!("the server at {address} is not trusted: {why}")
            }
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                self.other_protocol(Protocol::Http1)
            }
            Some(rustls::Error::AlertReceived(alert)) => {
                anyhow!("the server at {address}: {}", trust::alert_text(*alert, self.has_client_cert))
            }
            // The answer is not TLS, or the server closed the connection because it does not speak TLS.
            cause => match self.probe().await {
                Protocol::Http2 => self.other_protocol(Protocol::Http2),
                Protocol::Http1 => {
                    let hint = self.other_protocol(Protocol::Http1);
                    anyhow!("{hint}; it does not use TLS either: use http://")
                }
                _ => match cause {
                    Some(cause) => anyhow!("the TLS handshake with the server at {address} failed: {cause}"),
                    None => anyhow!("the server at {address} closed the connection during the TLS handshake: {error}"),
                },
            },
        }
    }

    /// Finds the protocol of the server with separate connections: HTTP/2, HTTP/1 or TLS.
    async fn probe(&self) -> Protocol {
        let mut http2 = PREFACE.to_vec();
        // An empty SETTINGS frame.
        http2.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        let http1 = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address.authority());
        for question in [http2, http1.into_bytes(), client_hello().unwrap_or_default()] {
            let ask = async {
                let mut tcp = self.tcp().await?;
                tcp.write_all(&question).await?;
                let mut answer = vec![];
                while answer.len() < FRAME_HEADER_BYTES && tcp.read_buf(&mut answer).await? > 0 {}
                anyhow::Ok(protocol_of(&answer))
            };
            match timeout(PREFACE_TIMEOUT, ask).await {
                Ok(Ok(protocol)) if protocol != Protocol::Unknown => return protocol,
                _ => {}
            }
        }
        Protocol::Unknown
    }
}

/// The first message of a TLS client.
fn client_hello() -> anyhow::Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    let mut hello = vec![];
    connection.write_tls(&mut hello)?;
    Ok(hello)
}

/// Detects the protocol from the first bytes of an answer.
fn protocol_of(answer: &[u8]) -> Protocol {
    const SETTINGS: u8 = 4;
    match answer {
        [b'H', b'T', b'T', b'P', b'/', ..] => Protocol::Http1,
        // A handshake message or an alert, of any version of TLS.
        [0x15 | 0x16, 3, ..] => Protocol::Tls,
        [_, _, _, SETTINGS, ..] => Protocol::Http2,
        [_, _, _, _, ..] => Protocol::Other,
        _ => Protocol::Unknown,
    }
}

fn alert_of(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// A stream on which the preface is already sent and the start of the answer is already read.
struct PrefacedStream<S> {
    stream: S,
    answer: Bytes,
    preface_left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefacedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.answer.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.answer.len().min(buf.remaining());
        buf.put_slice(&self.answer[..count]);
        self.answer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefacedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.preface_left > 0 && !buf.is_empty() {
            let count = self.preface_left.min(buf.len());
            self.preface_left -= count;
            return Poll::Ready(Ok(count));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.preface_left > 0 {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_detected_from_the_first_bytes() {
        assert_eq!(protocol_of(b"HTTP/1.1 400 Bad Request"), Protocol::Http1);
        assert_eq!(protocol_of(&[0x15, 3, 3, 0, 2, 2, 70]), Protocol::Tls);
        assert_eq!(protocol_of(&[0, 0, 18, 4, 0, 0, 0, 0, 0]), Protocol::Http2);
        assert_eq!(protocol_of(b""), Protocol::Unknown);
        assert_eq!(protocol_of(b"SSH-2.0-OpenSSH"), Protocol::Other);
    }

    #[tokio::test]
    async fn the_preface_is_sent_once_and_the_whole_answer_is_read() {
        let (stream, mut server) = tokio::io::duplex(1_024);
        let mut prefaced =
            PrefacedStream { stream, answer: Bytes::from_static(b"settings"), preface_left: PREFACE.len() };
        prefaced.write_all(PREFACE).await.unwrap();
        prefaced.write_all(b"next").await.unwrap();
        let mut sent = [0; 4];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(&sent, b"next");
        server.write_all(b" and more").await.unwrap();
        drop(server);
        let mut read = String::new();
        prefaced.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "settings and more");
    }
}
