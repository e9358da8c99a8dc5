//! Before and after data moves: makes the checks of `vsock_client::transfer`, and corrects what differs between a Unix
//! socket and AF_VSOCK in addresses, ancillary data and MSG_EOR.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use libc::{iovec, msghdr, size_t, ssize_t};

use vsock_client::transfer::{Receive, Send, may_have_lost_data, needs_no_checks};
use vsock_client::{Flags, Socket};

use super::accept::Control;
use crate::connecting::finish_connect;
use crate::sys::{Answer, Errno, Fd};
use crate::{fd_hints, node, state};

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Checked {
    /// Not one of our sockets, or nothing to change: pass the call to libc as it is.
    Pass,
    /// It goes on as a call on this socket of ours.
    Ours(Socket),
    /// It is done, and has moved nothing.
    Done,
}

/// Checks before up to `len` bytes are received.
pub(crate) fn before_receiving(fd: Fd, flags: c_int, len: usize) -> Answer<Checked> {
    let Some(socket) = state::load(fd) else {
        fd_hints::clear(fd);
        return Ok(Checked::Pass);
    };
    let socket = finish_connect(fd, socket)?;
    let size = || state::options(fd, &socket).size;
    let receive = Receive::new(socket, flags, len, || low_water(fd), size)?;
    clear_hint(fd, socket);
    Ok(match receive {
        Receive::Nothing => Checked::Done,
        Receive::Descriptor => Checked::Ours(socket),
    })
}

fn low_water(fd: Fd) -> usize {
    let set = fd.option::<c_int>(libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap_or(1);
    usize::try_from(set).unwrap_or(1)
}

/// Checks before `len` bytes are sent, to an address or not.
pub(crate) fn before_sending(
    fd: Fd,
    flags: c_int,
    len: usize,
    has_address: bool,
) -> Answer<Checked> {
    let Some(socket) = state::load(fd) else {
        if !has_address {
            fd_hints::clear(fd); // with an address, the hint does not matter
        }
        return Ok(Checked::Pass);
    };
    let socket = finish_connect(fd, socket)?;
    let size = || state::options(fd, &socket).size;
    match Send::new(socket, flags, has_address, len, size)? {
        Send::Broken => return Ok(Checked::Pass),
        Send::Nothing => return Ok(Checked::Done),
        Send::Descriptor => clear_hint(fd, socket),
        Send::AskPeerBuffer => check_peer_buffer(fd, socket, len)?,
    }
    Ok(Checked::Ours(socket))
}

/// A socket that needs a check at each call keeps its hint.
fn clear_hint(fd: Fd, socket: Socket) {
    if needs_no_checks(socket) {
        fd_hints::clear(fd);
    }
}

/// Asks for the size of the other side's receive buffer: EMSGSIZE if the message is longer.
fn check_peer_buffer(fd: Fd, socket: Socket, len: usize) -> Answer<()> {
    // On a connection that is over the descriptor gives EPIPE.
    let buffer = node::set_buffer(fd, 0).unwrap_or(0);
    if buffer == 0 {
        return Ok(());
    }
    // Another thread may have changed the state meanwhile.
    state::store(fd, &state::load(fd).unwrap_or(socket).with_peer_buffer(buffer))?;
    let is_too_long = u64::try_from(len).unwrap_or(u64::MAX) > buffer.into();
    if is_too_long { Err(Errno::MSGSIZE) } else { Ok(()) }
}

/// After a receive of no data: ECONNRESET, once, if the connection did not end well.
pub(crate) fn end_of_data(fd: Fd) -> Answer<()> {
    let Some(socket) = state::load(fd) else { return Ok(()) };
    // While the other end is open, the other side has only shut its sending down.
    if !may_have_lost_data(socket) || !fd.has_hung_up() {
        return Ok(());
    }
    let is_good = node::has_ended_well(fd);
    // Another thread may have changed the state meanwhile.
    state::store(fd, &state::load(fd).unwrap_or(socket).with(Flags::END_TOLD))?;
    if is_good { Ok(()) } else { Err(Errno::CONNRESET) }
}

/// Receives a message by `real`, libc's `recvmsg`, without address and ancillary data. If the node has sent its mark, a
/// descriptor for which there is no room, the flags get MSG_EOR.
///
/// # Safety
/// `message` is a valid msghdr.
pub(crate) unsafe fn receive_message(
    message: *mut msghdr,
    socket: &Socket,
    real: impl FnOnce() -> ssize_t,
) -> ssize_t {
    // SAFETY: valid, says the caller.
    let theirs = unsafe { message.read() };
    // SAFETY: as above.
    unsafe {
        (*message).msg_name = core::ptr::null_mut();
        (*message).msg_control = core::ptr::null_mut();
        (*message).msg_controllen = 0;
    }
    let result = real();
    // SAFETY: as above.
    unsafe {
        (*message).msg_name = theirs.msg_name;
        (*message).msg_namelen = 0;
        (*message).msg_control = theirs.msg_control;
        if result >= 0 && (*message).msg_flags & libc::MSG_CTRUNC != 0 {
            (*message).msg_flags &= !libc::MSG_CTRUNC;
            if socket.keeps_messages() {
                (*message).msg_flags |= libc::MSG_EOR;
            }
        }
    }
    result
}

/// Sends a message by `real`, libc's `sendmsg`, without ancillary data, but with our mark if it ends a record.
///
/// # Safety
/// `message` is a valid msghdr.
pub(crate) unsafe fn send_message(
    message: *const msghdr,
    socket: &Socket,
    flags: c_int,
    real: impl FnOnce(*const msghdr, c_int) -> ssize_t,
) -> Answer<ssize_t> {
    // SAFETY: valid, says the caller.
    let mut ours = unsafe { message.read() };
    ours.msg_control = core::ptr::null_mut();
    ours.msg_controllen = 0;
    if flags & libc::MSG_EOR == 0 || !socket.keeps_messages() {
        return Ok(real(&raw const ours, flags & !libc::MSG_EOR));
    }
    let mark = Fd::blank()?;
    let control = Control::with(mark);
    ours.msg_control = (&raw const control).cast_mut().cast::<c_void>();
    ours.msg_controllen = size_of::<Control>();
    let result = real(&raw const ours, flags & !libc::MSG_EOR);
    mark.close();
    Ok(result)
}

/// A message of one piece.
pub(crate) fn message_of(part: &mut iovec) -> msghdr {
    // SAFETY: all zeros is a valid msghdr.
    let mut message: msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

/// The number of bytes in all pieces.
///
/// # Safety
/// `parts` points to `count` valid pieces, or `count` is 0.
pub(crate) unsafe fn total(parts: *const iovec, count: size_t) -> usize {
    if parts.is_null() || count > 1024 {
        return 1; // the kernel says what is wrong with it
    }
    // SAFETY: the caller vouches for them.
    let parts = unsafe { core::slice::from_raw_parts(parts, count) };
    parts.iter().fold(0, |sum, part| sum.saturating_add(part.iov_len))
}
