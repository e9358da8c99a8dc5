//! `accept`: takes a connection off a listener, which is a descriptor that the node passes; and what becomes of a listener
//! whose switch has ended.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use vsock_client::Address;
use vsock_client::wire::{INHERITED_LEN as INHERITED, MESSAGE_LEN as MESSAGE, Reply, Request, op};

use crate::note::{Flags, Note, State};
use crate::sys::{Answer, Errno, Fd, descriptor_limit, tick_us};
use crate::turn::ListenerTurn;
use crate::vm_options::VmOptions;
use crate::{name, node, suspects};

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
pub(crate) fn accept(listener: Fd, note: &Note, flags: c_int) -> Answer<(Fd, Address)> {
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 || note.state != State::Listening {
        return Err(Errno(libc::EINVAL));
    }
    let (reply, inherited, fd) = receive(listener, flags & libc::SOCK_CLOEXEC != 0)?;
    let is_ready = fd
        .set_nonblocking(flags & libc::SOCK_NONBLOCK != 0)
        .and_then(|()| begin(fd, note, &reply, &inherited));
    if let Err(error) = is_ready {
        fd.close();
        return Err(error);
    }
    if note.keeps_messages() {
        suspects::add(fd);
    }
    Ok((fd, reply.theirs))
}

/// Makes a connection that a listener was handed a socket of ours.
fn begin(fd: Fd, listener: &Note, reply: &Reply, inherited: &[u8; INHERITED]) -> Answer<()> {
    name::give(fd, reply.ours)?;
    let fresh = if listener.keeps_messages() { Note::FRESH_MESSAGES } else { Note::FRESH };
    let note = fresh.in_state(State::Connected).with(Flags::STREAM);
    let note = note.with_theirs(fd, reply.theirs)?.with_peer_buffer(reply.peer_buffer);
    let options = VmOptions::from_inherited(inherited, tick_us()).limited();
    // Of a node of another user the options stay the defaults.
    options.put(fd, note).unwrap_or(note).put(fd)
}

/// An ACCEPT as it was received, or looked at.
struct Message {
    bytes: [u8; MESSAGE + INHERITED],
    len: usize,
    fd: Option<Fd>,
    was_cut: bool,
}

/// How many descriptors are looked through for epoll instances, at most.
const MOST_DESCRIPTORS: c_int = 1 << 16;

/// Receives one ACCEPT as the program's own settings for waiting say, and acknowledges it.
fn receive(listener: Fd, is_cloexec: bool) -> Answer<(Reply, [u8; INHERITED], Fd)> {
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

/// Takes a message with its descriptor, both or none: who has no place for the descriptor would lose the connection,
/// where the kernel's `accept` leaves it in the queue. Looking at a message gives its descriptor too, or tells that there
/// is no place for one.
fn take(listener: Fd, is_cloexec: bool) -> Answer<Message> {
    let flags = libc::MSG_DONTWAIT | if is_cloexec { libc::MSG_CMSG_CLOEXEC } else { 0 };
    let _turn = ListenerTurn::take(listener); // what was looked at is what is taken
    let seen = receive_one(listener, flags | libc::MSG_PEEK)?;
    if seen.was_cut && seen.fd.is_none() {
        // EMFILE or ENFILE, unless a descriptor has come free meanwhile.
        return Err(Fd::blank().map_or_else(
            |error| error,
            |fd| {
                fd.close();
                Errno(libc::EMFILE)
            },
        ));
    }
    let taken = receive_one(listener, flags);
    match taken {
        // There was room for one descriptor only.
        Ok(Message { bytes, fd: None, .. }) if bytes == seen.bytes => Ok(seen),
        taken => {
            if let Some(fd) = seen.fd {
                fd.close();
            }
            taken
        }
    }
}

fn receive_one(listener: Fd, flags: c_int) -> Answer<Message> {
    let mut bytes = [0; MESSAGE + INHERITED];
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

fn accepted(listener: Fd, message: &Message) -> Answer<(Reply, [u8; INHERITED], Fd)> {
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

/// Ends a listener whose switch has ended: that is said once, and from then on it is as one that nobody connects to.
/// It would be readable for ever, and the program ask for ever, for no listener of the kernel's ends.
fn end(listener: Fd) -> Errno {
    // Where other processes hold the socket too, an epoll instance would go on about it.
    listener.leave_epoll(descriptor_limit().min(MOST_DESCRIPTORS));
    // Without a descriptor left it stays as it is, until the next call.
    let _ = Note::of(listener).map(|note| listener.silence().and_then(|()| note.put(listener)));
    Errno(libc::ENODEV)
}

fn split(bytes: &[u8]) -> Option<(&[u8; MESSAGE], &[u8; INHERITED])> {
    let (head, rest) = bytes.split_first_chunk::<MESSAGE>()?;
    Some((head, rest.try_into().ok()?))
}
