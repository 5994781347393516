//! A TCP proxy that can interrupt its connections in several ways.

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
/// Number of bytes that a trickle passes at once, and how often.
const TRICKLE_BYTES: usize = 7;
const TRICKLE_EVERY: Duration = Duration::from_millis(2);

/// Direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
    Both,
}

impl Direction {
    fn has(self, direction: Direction) -> bool {
        self == Self::Both || self == direction
    }
}

/// What the proxy does to all existing and new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Closes them normally.
    Drop,
    /// Holds back all bytes.
    Stall(Direction),
    /// Tells one side that the other side has sent everything.
    HalfClose(Direction),
    /// Closes them with RST.
    Reset,
    /// Passes a few bytes at a time.
    Trickle,
}

/// Number of modes except `Pass`.
pub const MODES: usize = 5;

impl Mode {
    /// Returns the mode with this number and a random direction.
    pub fn of(number: usize, rng: &mut StdRng) -> Self {
        let direction = [Direction::Up, Direction::Down, Direction::Both][rng.random_range(0..3)];
        match number % MODES {
            0 => Self::Drop,
            1 => Self::Stall(direction),
            2 => Self::HalfClose(direction),
            3 => Self::Reset,
            _ => Self::Trickle,
        }
    }
}

/// The server behind a proxy.
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

    /// Sets the target of new connections.
    pub fn set_target(&self, target: Target) {
        *self.target.lock().unwrap() = target;
    }

    /// Applies a mode for a while, then passes everything again.
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

/// Serves a connection until both sides have ended or it is cut.
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
        let up = pump(client_read, server_write, Direction::Up, mode.clone());
        let down = pump(server_read, client_write, Direction::Down, mode);
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

/// Passes bytes in one direction as the mode allows.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let now = *mode.borrow_and_update();
        let room = match now {
            Mode::Stall(ways) if ways.has(direction) => {
                mode.changed().await.map_err(io::Error::other)?;
                continue;
            }
            Mode::HalfClose(ways) if ways.has(direction) => return to.shutdown().await,
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
