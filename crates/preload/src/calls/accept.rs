//! `accept`: takes a connection off a listener, which is a descriptor that the node passes.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use crate::address::Address;
use crate::note::{Flags, Note, State};
use crate::sys::{Answer, Errno, Fd, tick_us};
use crate::vm_options::VmOptions;
use crate::wire::{INHERITED, MESSAGE, Reply, Request, op};
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

/// Receives one ACCEPT as the program's own settings for waiting say, and acknowledges it.
fn receive(listener: Fd, is_cloexec: bool) -> Answer<(Reply, [u8; INHERITED], Fd)> {
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
    let flags = if is_cloexec { libc::MSG_CMSG_CLOEXEC } else { 0 };
    let got = match listener.receive_message(&mut message, flags) {
        Ok(0) | Err(Errno(libc::ECONNRESET)) => return Err(Errno(libc::ENODEV)), // the switch is gone
        Ok(got) => got,
        Err(error) => return Err(error),
    };
    let has_fd = message.msg_controllen >= size_of::<libc::cmsghdr>() + size_of::<c_int>()
        && control.header.cmsg_level == libc::SOL_SOCKET
        && control.header.cmsg_type == libc::SCM_RIGHTS;
    let fd = has_fd.then_some(Fd(control.fd));
    let reply = split(&bytes).filter(|_| got == bytes.len()).ok_or(Errno(libc::EPROTO));
    let reply = reply.and_then(|(head, rest)| Ok((Reply::decode(head, op::ACCEPT)?, *rest)));
    // Also when there was no descriptor left for it: its place in the backlog is free again.
    let acknowledged = node::send(listener, &Request::new(op::ACCEPTED).encode());
    match (reply, fd, acknowledged) {
        (Ok((reply, inherited)), Some(fd), Ok(())) => Ok((reply, inherited, fd)),
        (Ok(_), None, Ok(())) => Err(Errno(libc::EMFILE)),
        (reply, fd, acknowledged) => {
            if let Some(fd) = fd {
                fd.close();
            }
            Err(reply.err().or(acknowledged.err()).unwrap_or(Errno(libc::EPROTO)))
        }
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8; MESSAGE], &[u8; INHERITED])> {
    let (head, rest) = bytes.split_first_chunk::<MESSAGE>()?;
    Some((head, rest.try_into().ok()?))
}
