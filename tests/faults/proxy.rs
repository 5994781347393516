//! A TCP proxy whose connections can be cut in every way that networks have.

use rand::RngExt;
use rand::rngs::StdRng;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const BUFFER_BYTES: usize = 64 * 1024;
/// What a trickle lets through at once, and how often.
const TRICKLE_BYTES: usize = 7;
const TRICKLE_EVERY: Duration = Duration::from_millis(2);

/// Directions of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
    Both,
}

impl Way {
    fn has(self, way: Way) -> bool {
        self == Self::Both || self == way
    }
}

/// What happens to all connections, those that are there and new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Closed, in order.
    Drop,
    /// Bytes are held.
    Stall(Way),
    /// One side is told that the other has sent everything.
    HalfClose(Way),
    /// Cut with RST.
    Reset,
    /// A few bytes at a time.
    Trickle,
}

/// How many modes there are beside passing.
pub const MODES: usize = 5;

impl Mode {
    /// The mode of this number, in one of its forms.
    pub fn of(number: usize, dice: &mut StdRng) -> Self {
        let way = [Way::Up, Way::Down, Way::Both][dice.random_range(0..3)];
        match number % MODES {
            0 => Self::Drop,
            1 => Self::Stall(way),
            2 => Self::HalfClose(way),
            3 => Self::Reset,
            _ => Self::Trickle,
        }
    }
}

/// Where a proxy leads.
#[derive(Clone, Debug)]
pub enum Target {
    Nowhere,
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A listening proxy.
pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    target: Arc<Mutex<Target>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, target) = (watch::Sender::new(Mode::Pass), Arc::new(Mutex::new(target)));
        let task = tokio::spawn(accept(listener, mode.subscribe(), target.clone()));
        Self { address, mode, target, task }
    }

    /// New connections lead here.
    pub fn lead_to(&self, target: Target) {
        *self.target.lock().unwrap() = target;
    }

    /// Applies a mode for a while, then lets everything pass again.
    pub async fn apply(&self, mode: Mode, time: Duration) {
        self.mode.send_replace(mode);
        tokio::time::sleep(time).await;
        self.mode.send_replace(Mode::Pass);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, mode: watch::Receiver<Mode>, target: Arc<Mutex<Target>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                let target = target.lock().unwrap().clone();
                connections.spawn(connect(client, target, mode.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(client: TcpStream, target: Target, mode: watch::Receiver<Mode>) -> io::Result<()> {
    client.set_nodelay(true)?;
    match target {
        Target::Nowhere => Ok(()),
        Target::Tcp(address) => {
            let server = TcpStream::connect(address).await?;
            server.set_nodelay(true)?;
            serve(client, server, mode, TcpStream::set_zero_linger).await
        }
        Target::Unix(path) => serve(client, UnixStream::connect(path).await?, mode, |_| Ok(())).await,
    }
}

/// Serves a connection until both sides have ended, or it is cut.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: TcpStream,
    mut server: S,
    mode: watch::Receiver<Mode>,
    reset: fn(&S) -> io::Result<()>,
) -> io::Result<()> {
    let mut cut = mode.clone();
    let was_reset = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = tokio::io::split(&mut server);
        let up = pump(client_read, server_write, Way::Up, mode.clone());
        let down = pump(server_read, client_write, Way::Down, mode);
        tokio::select! {
            // An error on one side ends both.
            _ = async { tokio::try_join!(up, down) } => false,
            cut = cut.wait_for(|mode| matches!(mode, Mode::Drop | Mode::Reset)) => {
                cut.is_ok_and(|mode| *mode == Mode::Reset)
            }
        }
    };
    if was_reset {
        client.set_zero_linger()?;
        reset(&server)?;
    }
    Ok(())
}

/// Carries bytes one way, as the mode lets it.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let now = *mode.borrow_and_update();
        let room = match now {
            Mode::Stall(ways) if ways.has(way) => {
                mode.changed().await.map_err(io::Error::other)?;
                continue;
            }
            Mode::HalfClose(ways) if ways.has(way) => return to.shutdown().await,
            Mode::Trickle => TRICKLE_BYTES,
            _ => BUFFER_BYTES,
        };
        let read = tokio::select! {
            read = from.read(&mut buffer[..room]) => read?,
            _ = mode.changed() => continue,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        if now == Mode::Trickle {
            tokio::time::sleep(TRICKLE_EVERY).await;
        }
    }
}
