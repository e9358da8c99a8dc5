//! Asks the node (a switch, or a userspace guest), by the client protocol.

use libc::sockaddr_un;
use vsock_client::wire::{MESSAGE_LEN, Reply, Request, held_message, op};
use vsock_client::{ANY, Flags, Socket};

use crate::setup::{self, LONGEST_PATH};
use crate::sys::{self, Answer, Errno, Fd, now_ms};

/// How long a node may take for an immediate reply before it counts as gone.
pub(crate) const ANSWER_MS: u64 = 5000;

const GONE: Errno = Errno(libc::ENODEV);

/// Connects a socket to the node's Unix socket for its type, unless it is connected. The caller keeps the changed state.
pub(crate) fn attach(fd: Fd, socket: &mut Socket) -> Answer<()> {
    if socket.flags.has(Flags::ATTACHED) {
        return Ok(());
    }
    reach(fd, socket).map_err(|error| {
        let reason: &[u8] = match error.0 {
            libc::EACCES | libc::EPERM => b"this user may not use the switch",
            libc::EAGAIN => b"the switch takes no connections",
            _ => {
                b"no switch answers: start one with `vsock switch`, or say where it is with VSOCK_RUNTIME_DIR"
            }
        };
        setup::explain(reason);
        GONE
    })?;
    socket.flags = socket.flags.with(Flags::ATTACHED);
    Ok(())
}

/// Connects a socket to the node's Unix socket for its type. The error is that of the Unix socket.
fn reach(fd: Fd, socket: &Socket) -> Answer<()> {
    let name: &[u8] = if socket.keeps_messages() { b"/seqpacket\0" } else { b"/stream\0" };
    connect_to(fd, name)
}

/// The node's own CID.
pub(crate) fn local_cid() -> Answer<u32> {
    ask_separately(Request::LocalCid).map(|reply| reply.ours.cid)
}

/// Sets a connection's receive buffer (0: leaves it as it is), and returns the longest message that it can carry.
pub(crate) fn set_buffer(stream: Fd, buffer: u64) -> Answer<u32> {
    ask_separately(about(stream, buffer, false)?).map(|reply| reply.peer_buffer)
}

/// Tells the node that a connection receives no more. While the descriptor is full, or carries messages, the node would
/// notice only at its next write.
pub(crate) fn stop_receiving(stream: Fd) -> Answer<()> {
    ask_separately(about(stream, 0, true)?).map(|_| ())
}

/// The port that a connection has at our side, also when it is over; `None` if the node does not remember it.
pub(crate) fn our_port(stream: Fd) -> Option<u32> {
    let request = about(stream, 0, false).ok()?;
    let reply = on_own_connection(|fd| reply_to(fd, op::FLOW, &request.encode())).ok()?;
    (reply.ours.port != ANY).then_some(reply.ours.port)
}

/// Whether a connection that is over ended well.
///
/// ENOTCONN from the same node means that it has forgotten the connection among thousands that ended later: that is a good
/// end. If the node has gone, data may be missing, and a new node in its place knows nothing of the connection. If this
/// process cannot ask (it has no descriptor left, or may not enter the runtime directory any more), a node that is alive
/// counts as a good end.
pub(crate) fn has_ended_well(stream: Fd) -> bool {
    let Ok(request) = about(stream, 0, false) else { return true };
    let answer = on_own_connection_by(
        |fd| reach(fd, &Socket::STREAM),
        |fd| {
            let is_same = fd.peer_pid() == stream.peer_pid();
            reply_to(fd, op::FLOW, &request.encode()).map(|reply| (is_same, reply.result().err()))
        },
    );
    match answer {
        Ok((_, Some(Errno(libc::ECONNRESET)))) => false,
        Ok((is_same, Some(Errno(libc::ENOTCONN)))) => is_same,
        Ok(_) => true,
        Err(Errno(
            libc::EACCES
            | libc::EPERM
            | libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EAGAIN,
        )) => stream.peer_pid().is_ok_and(sys::is_alive),
        Err(_) => false,
    }
}

fn about(stream: Fd, buffer: u64, receive_shut: bool) -> Answer<Request> {
    Ok(Request::Flow { cookie: stream.cookie()?, buffer, receive_shut })
}

fn ask_separately(request: Request) -> Answer<Reply> {
    on_own_connection(|fd| ask(fd, request))
}

/// Asks over a connection of its own: the descriptor of a stream carries no requests.
fn on_own_connection<T>(ask: impl FnOnce(Fd) -> Answer<T>) -> Answer<T> {
    let mut socket = Socket::STREAM;
    on_own_connection_by(|fd| attach(fd, &mut socket), ask)
}

fn on_own_connection_by<T>(
    join: impl FnOnce(Fd) -> Answer<()>,
    ask: impl FnOnce(Fd) -> Answer<T>,
) -> Answer<T> {
    let fd = Fd::unix_socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC)?;
    let answer = join(fd).and_then(|()| ask(fd));
    fd.close();
    answer
}

/// Connects without waiting. EAGAIN means that the queue is full, and cannot be polled for: then this waits a while.
fn connect_to(fd: Fd, name: &[u8]) -> Answer<()> {
    // SAFETY: all zeros is a valid sockaddr_un.
    let mut address: sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = u16::try_from(libc::AF_UNIX).unwrap_or(0);
    let directory = setup::directory();
    let len = directory.len() + name.len();
    if directory.is_empty() || len > LONGEST_PATH + 1 {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(directory.iter().chain(name)) {
        *to = from.cast_signed();
    }
    let was_nonblocking = fd.is_nonblocking();
    fd.set_nonblocking(true)?;
    let mut result = fd.connect_unix(&address, len + 2);
    if result == Err(Errno(libc::EAGAIN)) {
        result = connect_bounded(fd, &address, len + 2);
    }
    fd.set_nonblocking(was_nonblocking)?;
    result
}

/// Waits for room in the node's queue. A signal does not end the wait (D24).
fn connect_bounded(fd: Fd, address: &sockaddr_un, len: usize) -> Answer<()> {
    let users: Timeval = fd.option(libc::SOL_SOCKET, libc::SO_SNDTIMEO)?;
    let seconds = i64::try_from(ANSWER_MS / 1000).unwrap_or(5);
    fd.set_option(libc::SO_SNDTIMEO, &Timeval { seconds, microseconds: 0 })?;
    fd.set_nonblocking(false)?;
    let deadline = now_ms() + ANSWER_MS;
    let mut result = fd.connect_unix(address, len);
    while result == Err(Errno(libc::EINTR)) && now_ms() < deadline {
        result = fd.connect_unix(address, len);
    }
    fd.set_option(libc::SO_SNDTIMEO, &users)?;
    result
}

/// `struct timeval` of 64-bit Linux.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Timeval {
    seconds: i64,
    microseconds: i64,
}

/// Sends a request and returns its immediate reply.
pub(crate) fn ask(fd: Fd, request: Request) -> Answer<Reply> {
    ask_message(fd, request.op(), &request.encode())
}

/// Sends an encoded request with the bytes behind it, and returns its immediate reply.
pub(crate) fn ask_message(fd: Fd, op: u8, message: &[u8]) -> Answer<Reply> {
    reply_to(fd, op, message)?.result()
}

fn reply_to(fd: Fd, op: u8, message: &[u8]) -> Answer<Reply> {
    send(fd, message)?;
    let deadline = now_ms() + ANSWER_MS;
    loop {
        if let Some(reply) = receive_reply(fd, op)? {
            return Ok(reply);
        }
        let left = deadline.saturating_sub(now_ms());
        if left == 0 {
            setup::explain(b"the switch does not answer");
            return Err(GONE);
        }
        match fd.poll(libc::POLLIN, left) {
            Ok(_) | Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends a held CONNECT in one piece: the request, the socket's cookie and padding.
pub(crate) fn send_held(fd: Fd, request: Request) -> Answer<()> {
    send(fd, &held_message(&request, fd.cookie()?, None))
}

/// Sends all bytes. The node reads at once, so in practice there is always room.
pub(crate) fn send(fd: Fd, mut bytes: &[u8]) -> Answer<()> {
    while !bytes.is_empty() {
        match fd.send(bytes) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or(&[]),
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(libc::EAGAIN)) => match fd.poll(libc::POLLOUT, ANSWER_MS) {
                Ok(true) | Err(Errno(libc::EINTR)) => {}
                Ok(false) | Err(_) => return Err(GONE),
            },
            Err(_) => return Err(GONE),
        }
    }
    Ok(())
}

/// Receives the reply to `op` if it is there.
pub(crate) fn receive_reply(fd: Fd, op: u8) -> Answer<Option<Reply>> {
    let mut bytes = [0; MESSAGE_LEN];
    match fd.receive(&mut bytes) {
        Ok(MESSAGE_LEN) => Reply::decode(&bytes, op).map(Some),
        Ok(0) | Err(Errno(libc::ECONNRESET)) => Err(GONE),
        Ok(_) => Err(Errno(libc::EPROTO)), // it writes replies whole
        Err(Errno(libc::EAGAIN | libc::EINTR)) => Ok(None),
        Err(error) => Err(error),
    }
}
