//! Connections that are forwarded: to services of the guest for the client (`ssh -L`), from listening sockets in the
//! guest to the client (`ssh -R`), and the client's agent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::connection::{Channels, Input, Slot};
use crate::output::Output;
use crate::{limits, log};

/// Where names of the guest itself are looked up; there is no DNS here.
const HOSTS: &str = "/etc/hosts";

/// Folders of which one should be writable, for the sockets of agents.
const FOLDERS: [&str; 3] = ["/run", "/tmp", "/dev/shm"];

/// What a client wants a connection to.
pub(crate) enum Target {
    Tcp(String, u32),
    Unix(PathBuf),
}

/// Opens a connection for a channel that the client has asked for, and answers it.
pub(crate) fn connect(
    channels: &Channels,
    slot: Slot,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    target: Target,
) {
    let (_, writer) = channel.split();
    let id = writer.id();
    let mut input = channels.add(id, None, None);
    let all = channels.clone();
    tokio::spawn(async move {
        let _slot = slot;
        let connected = tokio::select! {
            connected = timeout(limits::CONNECT_TIME, target.connect()) => connected,
            () = input.closed.wait() => return,
        };
        match connected {
            Ok(Ok(stream)) => {
                reply.accept().await;
                relay(&all, writer, input, stream).await;
            }
            Ok(Err(_)) | Err(_) => {
                reply.reject(ChannelOpenFailure::ConnectFailed).await;
                all.remove(id);
            }
        }
    });
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Target {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Target::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Target::Tcp(host, port) => {
                let port = u16::try_from(*port).map_err(io::Error::other)?;
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in addresses(host, &std::fs::read_to_string(HOSTS).unwrap_or_default())
                {
                    match TcpStream::connect(SocketAddr::new(address, port)).await {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

/// The addresses of a host: as it is written, or as `hosts`, a text like /etc/hosts, has it.
fn addresses(host: &str, hosts: &str) -> Vec<IpAddr> {
    let written = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = written.parse() {
        return vec![address];
    }
    let mut found: Vec<IpAddr> = hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect();
    if found.is_empty() && host == "localhost" {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

/// Copies both ways until both have ended; the end of one direction does not end the other.
///
/// When the channel is closed, what the client sent before is still delivered (RFC 4254, section 5.3), and the stream is
/// read to its end: closed with unread bytes, a socket would lose some of what was written to it.
async fn relay(
    channels: &Channels,
    writer: ChannelWriteHalf<Msg>,
    input: Input,
    stream: impl Stream,
) {
    let (mut from, mut to) = tokio::io::split(stream);
    let Input { mut bytes, mut closed } = input;
    let inbox = Arc::clone(&bytes.0);
    let mut output = Output::new(writer.make_writer(), &channels.backlog, &closed);
    let into_guest = async {
        let _ = tokio::io::copy(&mut bytes, &mut to).await;
        let _ = to.shutdown().await;
        // What still comes is for nobody.
        bytes.0.close();
    };
    let to_client = async {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            output.send(&buffer[..length]).await;
        }
        let _ = writer.eof().await;
    };
    tokio::select! {
        _ = async { tokio::join!(into_guest, to_client) } => {}
        () = async { closed.wait().await; sleep(limits::LAST_INPUT_TIME).await } => {
            if !inbox.is_closed() {
                say_lost("the other end of a forwarded connection");
            }
        }
    }
    channels.close(&writer).await;
}

/// Tells the guest's log that the last input of a channel was not delivered.
pub(crate) fn say_lost(reader: &str) {
    let seconds = limits::LAST_INPUT_TIME.as_secs();
    log::say(format_args!(
        "{reader} did not take all that a client sent before it closed the channel: waited {seconds} s"
    ));
}

/// Listens on a port of the guest for the client: `ssh -R`. Returns the port.
pub(crate) async fn listen_tcp(
    channels: Channels,
    handle: Handle,
    address: &str,
    port: u32,
) -> io::Result<(u32, AbortHandle)> {
    let number = u16::try_from(port).map_err(io::Error::other)?;
    let listener = bind_tcp(address, number).await?;
    let bound = u32::from(listener.local_addr()?.port());
    let address = address.to_owned();
    let task = tokio::spawn(async move {
        loop {
            let (stream, peer) = accepted(|| listener.accept()).await;
            let (handle, address) = (handle.clone(), address.clone());
            serve(channels.clone(), stream, async move {
                let from = (peer.ip().to_string(), u32::from(peer.port()));
                handle.channel_open_forwarded_tcpip(address, bound, from.0, from.1).await
            });
        }
    });
    Ok((bound, task.abort_handle()))
}

async fn bind_tcp(address: &str, port: u16) -> io::Result<TcpListener> {
    // RFC 4254, section 7.1: the empty address is any, of both families.
    if matches!(address, "" | "*") {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        return match TcpListener::bind(any).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).await,
        };
    }
    let found = addresses(address, "");
    let address = found.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    TcpListener::bind(SocketAddr::new(*address, port)).await
}

/// Listens on a Unix socket of the guest for the client: `ssh -R PATH:…`.
pub(crate) fn listen_unix(
    channels: Channels,
    handle: Handle,
    path: &str,
) -> io::Result<AbortHandle> {
    let listener = UnixListener::bind(path)?;
    let mut file = Removed(PathBuf::from(path));
    let name = path.to_owned();
    let task = tokio::spawn(async move {
        let _file = &mut file;
        loop {
            let (stream, _) = accepted(|| listener.accept()).await;
            let (handle, name) = (handle.clone(), name.clone());
            serve(channels.clone(), stream, async move {
                handle.channel_open_forwarded_streamlocal(name).await
            });
        }
    });
    Ok(task.abort_handle())
}

/// Makes a socket that leads to the client's agent, in a folder that only this user can enter.
pub(crate) fn listen_for_agent(
    channels: Channels,
    handle: Handle,
) -> Option<(PathBuf, AbortHandle)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name =
        format!("vsock-sshd-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = FOLDERS.iter().map(|folder| Path::new(folder).join(&name)).find(|folder| {
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(folder).is_ok()
    })?;
    let folder = Removed(folder);
    let path = folder.0.join("agent");
    let listener = UnixListener::bind(&path).ok()?;
    let file = Removed(path.clone());
    let task = tokio::spawn(async move {
        let _both = (&file, &folder); // in this order they are removed
        loop {
            let (stream, _) = accepted(|| listener.accept()).await;
            let handle = handle.clone();
            serve(channels.clone(), stream, async move { handle.channel_open_agent().await });
        }
    });
    Some((path, task.abort_handle()))
}

/// The next connection. A socket that listens stays fit for it: what fails is one connection, or descriptors are short.
async fn accepted<T, F: Future<Output = io::Result<T>>>(accept: impl Fn() -> F) -> T {
    loop {
        match accept().await {
            Ok(connection) => return connection,
            Err(_) => sleep(limits::PAUSE).await,
        }
    }
}

/// Opens a channel to the client for a connection that somebody in the guest has made. Its end is a dropped connection.
fn serve(
    channels: Channels,
    stream: impl Stream + 'static,
    open: impl Future<Output = Result<Channel<Msg>, russh::Error>> + Send + 'static,
) {
    let Some(slot) = channels.slot() else { return };
    tokio::spawn(async move {
        let _slot = slot;
        // However late: what the client confirms is served. The end of its connection ends this too.
        let Ok(channel) = open.await else { return };
        let (_, writer) = channel.split();
        // `channel_open_confirmation` has added it, before any data came. The client may have closed it since.
        let Some(input) = channels.take_confirmed(writer.id()) else { return };
        relay(&channels, writer, input, stream).await;
    });
}

/// A socket or an empty folder that is removed with its owner.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // What somebody else has put there instead stays.
        let Ok(found) = std::fs::symlink_metadata(&self.0) else { return };
        if found.file_type().is_socket() {
            let _ = std::fs::remove_file(&self.0);
        } else if found.is_dir() {
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_names_of_the_file() {
        let hosts = "127.0.0.1 localhost\n10.0.0.1 db.example db # the database\n::1 DB\n";
        let said =
            |host| addresses(host, hosts).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(said("1.2.3.4"), ["1.2.3.4"]);
        assert_eq!(said("[::1]"), ["::1"]);
        assert_eq!(said("localhost"), ["127.0.0.1"]);
        assert_eq!(said("db"), ["10.0.0.1", "::1"]);
        assert!(said("the").is_empty());
        assert_eq!(addresses("localhost", "").len(), 2);
    }
}
