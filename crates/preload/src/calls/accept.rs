//! `accept`: receives a connection, which is a descriptor that the node passes; and silences a listener whose switch has
//! ended.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use vsock_client::wire::{INHERITED_LEN, MESSAGE_LEN, Reply, Request, op};
use vsock_client::{Address, Options, Socket, calls};

use crate::lock::ListenerLock;
use crate::sys::{Answer, Errno, Fd, descriptor_limit, tick_us};
use crate::{fd_hints, node, state};

/// Room for one control message with one descriptor: CMSG_SPACE(sizeof(int)).
#[repr(C)]
pub(crate) struct Control {
    header: libc::cmsghdr,
    fd: c_int,
    _padding: c_int,
}

impl Control {
    /// A message that passes a descriptor.
    pub(crate) fn with(fd: Fd) -> Self {
        // SAFETY: all zeros is a valid Control.
        let mut control: Self = unsafe { core::mem::zeroed() };
        control.header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<c_int>();
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SCM_RIGHTS;
        control.fd = fd.0;
        control
    }
}

/// `accept4`: the connection's descriptor, and who it is.
pub(crate) fn accept(listener: Fd, socket: Socket, flags: c_int) -> Answer<(Fd, Address)> {
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    calls::accept(socket)?;
    let (reply, inherited, fd) = receive(listener, flags & libc::SOCK_CLOEXEC != 0)?;
    let is_ready = fd
        .set_nonblocking(flags & libc::SOCK_NONBLOCK != 0)
        .and_then(|()| begin(fd, socket, &reply, &inherited));
    if let Err(error) = is_ready {
        fd.close();
        return Err(error);
    }
    if socket.keeps_messages() {
        fd_hints::set(fd);
    }
    Ok((fd, reply.theirs))
}

/// Gives an accepted connection its address, state and options.
fn begin(fd: Fd, listener: Socket, reply: &Reply, inherited: &[u8; INHERITED_LEN]) -> Answer<()> {
    state::give_name(fd, reply.ours)?;
    state::store_peer_port(fd, reply.theirs.port)?;
    let socket = calls::accepted(listener, reply);
    let options = Options::from_inherited(inherited, tick_us()).of_connection();
    // If the node runs as another user, the options stay the defaults.
    state::store(fd, &state::store_options(fd, socket, &options).unwrap_or(socket))
}

/// An ACCEPT that was received, or peeked at.
struct Message {
    bytes: [u8; MESSAGE_LEN + INHERITED_LEN],
    len: usize,
    fd: Option<Fd>,
    was_cut: bool,
}

/// How many descriptors are searched for epoll instances at most.
const MOST_DESCRIPTORS: c_int = 1 << 16;

/// Receives one ACCEPT and acknowledges it. Whether and how long this waits is the socket's setting.
fn receive(listener: Fd, is_cloexec: bool) -> Answer<(Reply, [u8; INHERITED_LEN], Fd)> {
    loop {
        match take(listener, is_cloexec) {
            Ok(message) if message.len == 0 => return Err(end(listener)),
            Ok(message) => return accepted(listener, &message),
            Err(Errno(libc::EAGAIN)) if !listener.is_nonblocking() => {
                match listener.await_message() {
                    Ok(()) | Err(Errno(libc::ECONNRESET)) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Receives a message with its descriptor, both or neither. A process with no descriptor left would lose the connection,
/// while the kernel's `accept` leaves it in the queue. So this peeks first: MSG_PEEK gives the descriptor too, or
/// MSG_CTRUNC.
fn take(listener: Fd, is_cloexec: bool) -> Answer<Message> {
    let flags = libc::MSG_DONTWAIT | if is_cloexec { libc::MSG_CMSG_CLOEXEC } else { 0 };
    let lock = ListenerLock::take(listener); // what was looked at is what is taken
    let mut seen = receive_one(listener, flags | libc::MSG_PEEK)?;
    if seen.was_cut && seen.fd.is_none() {
        // EMFILE or ENFILE, unless a descriptor has been closed meanwhile.
        return Err(Fd::blank().map_or_else(
            |error| error,
            |fd| {
                fd.close();
                Errno(libc::EMFILE)
            },
        ));
    }
    if !lock.is_alone() {
        // The next message may be another one, and its descriptor needs the place.
        seen.fd.take().into_iter().for_each(Fd::close);
    }
    let taken = receive_one(listener, flags);
    match taken {
        // There was room for one descriptor only.
        Ok(Message { bytes, fd: None, .. }) if seen.fd.is_some() && bytes == seen.bytes => Ok(seen),
        taken => {
            if let Some(fd) = seen.fd {
                fd.close();
            }
            taken
        }
    }
}

fn receive_one(listener: Fd, flags: c_int) -> Answer<Message> {
    let mut bytes = [0; MESSAGE_LEN + INHERITED_LEN];
    // SAFETY: all zeros is a valid Control and a valid msghdr.
    let (mut control, mut message): (Control, libc::msghdr) =
        unsafe { (core::mem::zeroed(), core::mem::zeroed()) };
    let mut part =
        libc::iovec { iov_base: bytes.as_mut_ptr().cast::<c_void>(), iov_len: bytes.len() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast::<c_void>();
    message.msg_controllen = size_of::<Control>();
    let len = match listener.receive_message(&mut message, flags) {
        Err(Errno(libc::ECONNRESET)) => 0,
        answer => answer?,
    };
    let has_fd = message.msg_controllen >= size_of::<libc::cmsghdr>() + size_of::<c_int>()
        && control.header.cmsg_level == libc::SOL_SOCKET
        && control.header.cmsg_type == libc::SCM_RIGHTS;
    let was_cut = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(Message { bytes, len, fd: has_fd.then_some(Fd(control.fd)), was_cut })
}

fn accepted(listener: Fd, message: &Message) -> Answer<(Reply, [u8; INHERITED_LEN], Fd)> {
    let whole = split(&message.bytes).filter(|_| message.len == message.bytes.len());
    let reply = whole.ok_or(Errno(libc::EPROTO));
    let reply =
        reply.and_then(|(head, rest)| Ok((Reply::decode(head, op::ACCEPT)?.result()?, *rest)));
    let acknowledged = node::send(listener, &Request::Accepted.encode());
    match (reply, message.fd, acknowledged) {
        (Ok((reply, inherited)), Some(fd), Ok(())) => Ok((reply, inherited, fd)),
        (reply, fd, acknowledged) => {
            if let Some(fd) = fd {
                fd.close();
            }
            Err(reply.err().or(acknowledged.err()).unwrap_or(Errno(libc::EPROTO)))
        }
    }
}

/// Silences a listener whose switch has ended: `accept` fails once, and afterwards the listener is like one to which nobody
/// connects. Else it would be readable for ever, and programs would call `accept` in a loop, as a listener of the kernel
/// never ends.
fn end(listener: Fd) -> Errno {
    // An epoll instance watches the socket, not the descriptor: if other processes hold it, events would go on.
    listener.leave_epoll(descriptor_limit().min(MOST_DESCRIPTORS));
    // With no descriptor left the listener stays as it is until the next call.
    let _ = state::load(listener)
        .map(|socket| listener.silence().and_then(|()| state::store(listener, &socket)));
    Errno(libc::ENODEV)
}

fn split(bytes: &[u8]) -> Option<(&[u8; MESSAGE_LEN], &[u8; INHERITED_LEN])> {
    let (head, rest) = bytes.split_first_chunk::<MESSAGE_LEN>()?;
    Some((head, rest.try_into().ok()?))
}
