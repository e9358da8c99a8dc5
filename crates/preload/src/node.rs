//! Asking the node (a switch, or a userspace guest): the endpoint protocol on one of our sockets.

use libc::sockaddr_un;

use crate::note::{Flags, Note};
use crate::setup::{self, LONGEST_PATH};
use crate::sys::{Answer, Errno, Fd, now_ms};
use crate::wire::{MESSAGE, PADDING, REFUSES, Reply, Request, op};

/// How long a node may take for an immediate answer before it is taken for gone.
pub(crate) const ANSWER_MS: u64 = 5000;

const GONE: Errno = Errno(libc::ENODEV);

/// Connects a socket to the endpoint socket of its type, unless it is. The caller puts the note, which is changed.
pub(crate) fn attach(fd: Fd, note: &mut Note) -> Answer<()> {
    if note.flags.has(Flags::ATTACHED) {
        return Ok(());
    }
    let name: &[u8] = if note.keeps_messages() { b"/seqpacket\0" } else { b"/stream\0" };
    connect_to(fd, name).map_err(|error| {
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
    note.flags = note.flags.with(Flags::ATTACHED);
    Ok(())
}

/// The node's own CID.
pub(crate) fn local_cid() -> Answer<u32> {
    ask_aside(&Request::new(op::LOCAL_CID)).map(|reply| reply.ours.cid)
}

/// Gives a connection another receive buffer (0: leaves it as it is), and returns how large the other side's is.
pub(crate) fn set_buffer(flow: u64, buffer: u64) -> Answer<u32> {
    ask_aside(&Request { buffer, ..about(flow) }).map(|reply| reply.peer_buffer)
}

/// Says that a connection receives no more: while its descriptor is full, or carries messages, the node would not see it
/// before it has something to write.
pub(crate) fn stop_receiving(flow: u64) -> Answer<()> {
    ask_aside(&Request { value: REFUSES, ..about(flow) }).map(|_| ())
}

fn about(flow: u64) -> Request {
    let [cid, port] = [flow & 0xffff_ffff, flow >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    Request { cid, port, ..Request::new(op::FLOW) }
}

/// Asks over a connection of its own: that of a stream carries no requests any more.
fn ask_aside(request: &Request) -> Answer<Reply> {
    let fd = Fd::unix_socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC)?;
    let mut note = Note::FRESH;
    let reply = attach(fd, &mut note).and_then(|()| ask(fd, request));
    fd.close();
    reply
}

/// Connects without waiting; but if the queue is full, which only shows as EAGAIN, waits a while.
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

fn connect_bounded(fd: Fd, address: &sockaddr_un, len: usize) -> Answer<()> {
    let users: Timeval = fd.option(libc::SOL_SOCKET, libc::SO_SNDTIMEO)?;
    let seconds = i64::try_from(ANSWER_MS / 1000).unwrap_or(5);
    fd.set_option(libc::SO_SNDTIMEO, &Timeval { seconds, microseconds: 0 })?;
    fd.set_nonblocking(false)?;
    let result = fd.connect_unix(address, len);
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

/// Sends a request and gives the answer that the node owes at once.
pub(crate) fn ask(fd: Fd, request: &Request) -> Answer<Reply> {
    ask_message(fd, request.op, &request.encode())
}

/// Sends a request that is encoded already, perhaps with bytes behind it, and gives the answer.
pub(crate) fn ask_message(fd: Fd, op: u8, message: &[u8]) -> Answer<Reply> {
    send(fd, message)?;
    let deadline = now_ms() + ANSWER_MS;
    loop {
        if let Some((reply, error)) = hear(fd, op)? {
            return error.map_or(Ok(reply), Err);
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

/// Sends a request that a held connect stands behind: with padding, in one piece.
pub(crate) fn send_held(fd: Fd, request: &Request) -> Answer<()> {
    let mut bytes = [0; MESSAGE + PADDING];
    bytes[..MESSAGE].copy_from_slice(&request.encode());
    send(fd, &bytes)
}

/// Sends all bytes; the node reads at once, so there is room in practice always.
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

/// Takes the reply to `op` if it is there, and the error in it if the node says no.
pub(crate) fn hear(fd: Fd, op: u8) -> Answer<Option<(Reply, Option<Errno>)>> {
    let mut bytes = [0; MESSAGE];
    match fd.receive(&mut bytes) {
        Ok(MESSAGE) => Reply::decode_verdict(&bytes, op).map(Some),
        Ok(0) | Err(Errno(libc::ECONNRESET)) => Err(GONE),
        Ok(_) => Err(Errno(libc::EPROTO)), // it writes replies whole
        Err(Errno(libc::EAGAIN | libc::EINTR)) => Ok(None),
        Err(error) => Err(error),
    }
}
