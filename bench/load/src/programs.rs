//! A host program's side of the client protocol, with a deadline for every wait.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketType, connect, recvmsg, socket,
};
use vsock_client::wire::{MESSAGE_LEN, Reply, Report, Request};
use vsock_client::{ANY, Address};

/// Longer than a node that is alive takes for any answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// The node's sockets, one for each type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SOCK_STREAM.
    Stream,
    /// SOCK_SEQPACKET.
    Messages,
    /// SOCK_DGRAM.
    Datagrams,
}

/// A connection to the node that serves `directory`: a socket that is nothing yet.
///
/// # Errors
/// Nobody listens there.
pub fn open(directory: &Path, kind: Kind) -> io::Result<UnixStream> {
    let (name, kind) = match kind {
        Kind::Stream => ("stream", SocketType::STREAM),
        Kind::Messages => ("seqpacket", SocketType::SEQPACKET),
        Kind::Datagrams => ("dgram", SocketType::SEQPACKET),
    };
    let node = UnixStream::from(socket(AddressFamily::UNIX, kind, None)?);
    node.set_write_timeout(Some(DEADLINE))?;
    node.set_read_timeout(Some(DEADLINE))?;
    connect(&node, &SocketAddrUnix::new(directory.join(name))?)?;
    Ok(node)
}

/// Sends a request with what belongs behind it, and waits for the reply.
///
/// # Errors
/// The node refuses, hangs up, or does not answer in time.
pub fn ask(node: &mut UnixStream, request: &Request, extra: &[u8]) -> io::Result<Reply> {
    node.write_all(&[&request.encode()[..], extra].concat())?;
    let mut reply = [0; MESSAGE_LEN];
    node.read_exact(&mut reply)?;
    let reply = Reply::decode(&reply, request.op()).and_then(Reply::result);
    reply.map_err(|errno| io::Error::from_raw_os_error(errno.0))
}

/// A request to connect, answered within `timeout_ms` (0: the default).
#[must_use]
pub fn connecting(to: Address, timeout_ms: u32) -> Request {
    let report = Report::Reply;
    Request::Connect { to, is_named: false, timeout_ms, buffer: 0, report, extra: 0 }
}

/// A connection to a port.
///
/// # Errors
/// See [`ask`].
pub fn connect_to(directory: &Path, kind: Kind, to: Address) -> io::Result<UnixStream> {
    let mut node = open(directory, kind)?;
    ask(&mut node, &connecting(to, 0), &[])?;
    Ok(node)
}

/// A socket that is bound to a port.
///
/// # Errors
/// See [`ask`].
pub fn bind(directory: &Path, kind: Kind, port: u32) -> io::Result<(UnixStream, Reply)> {
    let mut node = open(directory, kind)?;
    let reply = ask(&mut node, &Request::Bind(Address { cid: ANY, port }), &[])?;
    Ok((node, reply))
}

/// A listener.
///
/// # Errors
/// See [`ask`].
pub fn listen(directory: &Path, kind: Kind, port: u32, backlog: u32) -> io::Result<UnixStream> {
    let (mut node, _) = bind(directory, kind, port)?;
    ask(&mut node, &Request::Listen { backlog, buffer: 0, extra: 0 }, &[])?;
    Ok(node)
}

/// The next connection of a listener.
///
/// # Errors
/// None comes in time, or the node has hung up.
pub fn accept(listener: &mut UnixStream) -> io::Result<UnixStream> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MESSAGE_LEN];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    recvmsg(&*listener, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let stream: Option<OwnedFd> = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        RecvAncillaryMessage::ScmCredentials(_) | _ => None,
    });
    listener.write_all(&Request::Accepted.encode())?;
    stream.map(UnixStream::from).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
