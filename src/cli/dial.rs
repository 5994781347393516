//! How a connection comes about: TCP, TLS, and the first bytes of HTTP/2. What answers and is no gRPC server is named.

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

/// For the name and TCP, and again for TLS.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to say that it speaks HTTP/2. One that is slow is believed.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Header of a frame: what a server says first is one of SETTINGS.
const FRAME_HEADER_BYTES: usize = 9;

/// Makes connections to one server.
pub struct Dialer {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    ca: Option<PathBuf>,
    shows_certificate: bool,
}

/// What a connection is to HTTP/2.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// What was found to speak at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http2,
    Http1,
    Tls,
    /// Something that is none of these.
    Other,
    /// Nothing, or not enough to tell.
    Unknown,
}

impl Dialer {
    /// For this address. Reads the files of TLS.
    pub fn new(address: Address, args: &TlsArgs) -> anyhow::Result<Self> {
        let tls = match address.tls {
            true => Some(trust::config(args)?),
            false => {
                args.check_unused(&address.to_string())?;
                None
            }
        };
        Ok(Self { address, tls, ca: args.tls_ca.clone(), shows_certificate: args.tls_client_cert.is_some() })
    }

    /// A connection on which HTTP/2 can begin.
    pub async fn dial(&self) -> anyhow::Result<Box<dyn Wire>> {
        let tcp = self.tcp().await?;
        let Some(config) = &self.tls else { return self.greet(tcp).await };
        let name = ServerName::try_from(self.address.host.clone());
        let name = name.map_err(|_| anyhow!("--server: {:?} is no name that TLS knows", self.address.host))?;
        let handshake = TlsConnector::from(config.clone()).connect(name, tcp);
        let tls = match timeout(STEP_TIMEOUT, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return Err(self.tls_error(&error).await),
            Err(_) => bail!("the server at {} does not answer over TLS within 5 s: does it speak TLS?", self.address),
        };
        if tls.get_ref().1.alpn_protocol() != Some(trust::ALPN) {
            return Err(self.other_protocol(Speaks::Http1));
        }
        self.greet(tls).await
    }

    /// The first address that answers; a name such as localhost has several.
    async fn tcp(&self) -> anyhow::Result<TcpStream> {
        let Address { host, port, .. } = &self.address;
        let give_up = Instant::now() + STEP_TIMEOUT;
        let found = timeout(STEP_TIMEOUT, tokio::net::lookup_host((host.as_str(), *port))).await;
        let addresses: Vec<_> = match found {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => bail!("--server: the name {host:?} cannot be resolved: {error}"),
            Err(_) => bail!("--server: the name {host:?} cannot be resolved within 5 s"),
        };
        let mut cause = "the name has no address".to_owned();
        for (index, address) in addresses.iter().enumerate() {
            // An address that nobody answers for leaves time for the others.
            let left = (addresses.len() - index) as u32;
            let share = give_up.saturating_duration_since(Instant::now()) / left;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    tcp.set_nodelay(true)?;
                    return Ok(tcp);
                }
                Ok(Err(error)) => cause = error.to_string(),
                Err(_) => cause = format!("{address} does not answer: is a firewall in between?"),
            }
        }
        let assumed = match self.address.port_is_default {
            true => format!(" (the port {PORT_DEFAULT} was assumed)"),
            false => String::new(),
        };
        bail!(
            "no server answers at {}{assumed}: {cause}\nis it running? start it with `meterd serve`, or name another with \
             --server or METERD_SERVER",
            self.address
        )
    }

    /// Says what a client of HTTP/2 says first, and looks at the answer before anything is sent.
    async fn greet<S: Wire + 'static>(&self, mut stream: S) -> anyhow::Result<Box<dyn Wire>> {
        let mut answer = vec![];
        let exchange = async {
            stream.write_all(PREFACE).await?;
            stream.flush().await?;
            while answer.len() < FRAME_HEADER_BYTES && stream.read_buf(&mut answer).await? > 0 {}
            io::Result::Ok(())
        };
        let ended = match timeout(GREETING_TIMEOUT, exchange).await {
            Ok(Ok(())) => answer.is_empty(),
            Ok(Err(error)) => {
                if let Some(alert) = alert_of(&error) {
                    bail!("the server at {}: {}", self.address, trust::alert_text(alert, self.shows_certificate));
                }
                true
            }
            Err(_) => false,
        };
        let speaks = match (what_speaks(&answer), ended && !self.address.tls) {
            // One that only hangs up may speak something else, or have no place left.
            (Speaks::Unknown, true) => self.probe().await,
            (speaks, _) => speaks,
        };
        match speaks {
            Speaks::Other if !answer.is_empty() => {
                let said = String::from_utf8_lossy(&answer).into_owned();
                bail!("the server at {} is no gRPC server: it begins with {said:?}", self.address.authority())
            }
            Speaks::Http2 | Speaks::Other | Speaks::Unknown => {
                Ok(Box::new(Greeted { stream, answer: answer.into(), preface_left: PREFACE.len() }))
            }
            other => Err(self.other_protocol(other)),
        }
    }

    /// What is there instead, and what to write instead.
    fn other_protocol(&self, speaks: Speaks) -> anyhow::Error {
        let address = &self.address;
        let place = address.authority();
        match speaks {
            Speaks::Tls => anyhow!(
                "the server at {place} speaks TLS: use --server {}, and --tls-ca FILE unless this system trusts its certificate",
                address.with_tls(true)
            ),
            Speaks::Http2 => {
                anyhow!("the server at {place} does not speak TLS: use --server {}", address.with_tls(false))
            }
            _ => {
                let grpc = match address.port {
                    PORT_DEFAULT => "a proxy may stand before it that does not pass on HTTP/2".to_owned(),
                    _ => format!("the gRPC port is that of --listen: try --server {}", address.with_port(PORT_DEFAULT)),
                };
                anyhow!(
                    "the server at {place} answers HTTP/1.1, not gRPC, as the port of /healthz and /metrics does; {grpc}"
                )
            }
        }
    }

    /// Why there is no TLS.
    async fn tls_error(&self, error: &io::Error) -> anyhow::Error {
        let address = &self.address;
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(certificate)) => {
                let why = trust::certificate_text(certificate, &address.host, self.ca.as_deref());
                anyhow!("the server at {address} is not trusted: {why}")
            }
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                self.other_protocol(Speaks::Http1)
            }
            Some(rustls::Error::AlertReceived(alert)) => {
                anyhow!("the server at {address}: {}", trust::alert_text(*alert, self.shows_certificate))
            }
            // What came is no TLS, or the other side hung up on what is none to it.
            cause => match self.probe().await {
                Speaks::Http2 => self.other_protocol(Speaks::Http2),
                Speaks::Http1 => {
                    let hint = self.other_protocol(Speaks::Http1);
                    anyhow!("{hint}; and it does not speak TLS: use http://")
                }
                _ => match cause {
                    Some(cause) => anyhow!("TLS fails with the server at {address}: {cause}"),
                    None => anyhow!("the server at {address} broke off the TLS handshake: {error}"),
                },
            },
        }
    }

    /// Finds out over connections of their own what speaks there: HTTP/2, HTTP/1 or TLS.
    async fn probe(&self) -> Speaks {
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
                anyhow::Ok(what_speaks(&answer))
            };
            match timeout(GREETING_TIMEOUT, ask).await {
                Ok(Ok(speaks)) if speaks != Speaks::Unknown => return speaks,
                _ => {}
            }
        }
        Speaks::Unknown
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

/// By the first bytes of an answer.
fn what_speaks(answer: &[u8]) -> Speaks {
    const SETTINGS: u8 = 4;
    match answer {
        [b'H', b'T', b'T', b'P', b'/', ..] => Speaks::Http1,
        // A handshake message or an alert, of any version of TLS.
        [0x15 | 0x16, 3, ..] => Speaks::Tls,
        [_, _, _, SETTINGS, ..] => Speaks::Http2,
        [_, _, _, _, ..] => Speaks::Other,
        _ => Speaks::Unknown,
    }
}

fn alert_of(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// A stream whose preface is sent already, and of whose answer some is read already.
struct Greeted<S> {
    stream: S,
    answer: Bytes,
    preface_left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
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
    fn the_first_bytes_tell_what_speaks() {
        assert_eq!(what_speaks(b"HTTP/1.1 400 Bad Request"), Speaks::Http1);
        assert_eq!(what_speaks(&[0x15, 3, 3, 0, 2, 2, 70]), Speaks::Tls);
        assert_eq!(what_speaks(&[0, 0, 18, 4, 0, 0, 0, 0, 0]), Speaks::Http2);
        assert_eq!(what_speaks(b""), Speaks::Unknown);
        assert_eq!(what_speaks(b"SSH-2.0-OpenSSH"), Speaks::Other);
    }

    #[tokio::test]
    async fn the_preface_is_sent_once_and_the_answer_is_read_whole() {
        let (stream, mut server) = tokio::io::duplex(1_024);
        let mut greeted = Greeted { stream, answer: Bytes::from_static(b"settings"), preface_left: PREFACE.len() };
        greeted.write_all(PREFACE).await.unwrap();
        greeted.write_all(b"next").await.unwrap();
        let mut sent = [0; 4];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(&sent, b"next");
        server.write_all(b" and more").await.unwrap();
        drop(server);
        let mut read = String::new();
        greeted.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "settings and more");
    }
}
