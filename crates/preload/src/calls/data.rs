//! Before and after data moves: what AF_VSOCK says of states, flags, lengths and addresses, in its order of checks.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use libc::{iovec, msghdr, size_t, ssize_t};

use super::accept::Control;
use crate::node;
use crate::note::{Flags, Note, State};
use crate::settle::settle;
use crate::suspects;
use crate::sys::{Answer, Errno, Fd};
use crate::vm_options::VmOptions;

const UNSUPPORTED: Errno = Errno(libc::EOPNOTSUPP);

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It goes to the next function: a socket of no concern.
    Pass,
    /// It goes on as a call on this socket of ours.
    Ours(Note),
    /// It is done, and has moved nothing.
    Done,
}

/// The note of a socket of ours with a stream, of the one that was read; ENOTCONN without a stream.
///
/// Before there is a stream the descriptor leads to the switch itself, which must not take data for a request, nor
/// the program a reply for data.
fn require_stream(fd: Fd, note: Option<Note>) -> Answer<Option<Note>> {
    let Some(note) = note else {
        suspects::remove(fd);
        return Ok(None);
    };
    let note = settle(fd, note)?;
    if !note.has_stream() {
        return Err(Errno(if note.state == State::Device { libc::EINVAL } else { libc::ENOTCONN }));
    }
    // Whatever needs a look at each call stays where it is.
    let is_peculiar = [Flags::MESSAGES, Flags::NO_RECEIVING, Flags::LOW_WATER];
    if !is_peculiar.iter().any(|&flag| note.flags.has(flag)) {
        suspects::remove(fd);
    }
    Ok(Some(note))
}

/// Checks before up to `len` bytes are received.
pub(crate) fn before_receiving(fd: Fd, flags: c_int, len: usize) -> Answer<Verdict> {
    if flags & libc::MSG_ERRQUEUE != 0 && Note::of(fd).is_some() {
        return Err(Errno(libc::EAGAIN)); // nothing is ever in it
    }
    let Some(note) = require_stream(fd, Note::of(fd))? else { return Ok(Verdict::Pass) };
    if flags & libc::MSG_OOB != 0 {
        return Err(UNSUPPORTED);
    }
    if note.flags.has(Flags::NO_RECEIVING) || len == 0 {
        return Ok(Verdict::Done);
    }
    if !note.keeps_messages() {
        let target =
            if flags & libc::MSG_WAITALL != 0 { len } else { low_water(fd, &note).min(len) };
        // More than one byte at once is asked for rarely, and the options are read only then.
        let is_small = target <= 1 && !note.flags.has(Flags::OPTIONS);
        if !is_small && u64::try_from(target).unwrap_or(u64::MAX) >= VmOptions::of(fd, &note).size {
            return Err(Errno(libc::ENOMEM));
        }
    }
    Ok(Verdict::Ours(note))
}

fn low_water(fd: Fd, note: &Note) -> usize {
    if !note.flags.has(Flags::LOW_WATER) {
        return 1;
    }
    let set = fd.option::<c_int>(libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap_or(1);
    usize::try_from(set).unwrap_or(1)
}

/// Checks before `len` bytes are sent, to an address or not.
pub(crate) fn before_sending(
    fd: Fd,
    flags: c_int,
    len: usize,
    has_address: bool,
) -> Answer<Verdict> {
    if flags & libc::MSG_OOB != 0 || has_address {
        let Some(note) = Note::of(fd) else { return Ok(Verdict::Pass) };
        let is_connected = flags & libc::MSG_OOB == 0 && settle(fd, note)?.has_stream();
        return Err(if is_connected { Errno(libc::EISCONN) } else { UNSUPPORTED });
    }
    let note = Note::of(fd);
    if note.is_some_and(|note| note.flags.has(Flags::NO_SENDING)) {
        return Ok(Verdict::Pass); // EPIPE, with or without SIGPIPE, is the kernel's own
    }
    let Some(note) = require_stream(fd, note)? else { return Ok(Verdict::Pass) };
    if note.keeps_messages() {
        if len == 0 {
            return Ok(Verdict::Done); // an empty message would read as the end
        }
        check_length(fd, note, len)?;
    }
    Ok(Verdict::Ours(note))
}

/// A message must be no longer than the receive buffers of both sides.
fn check_length(fd: Fd, note: Note, len: usize) -> Answer<()> {
    let len = u64::try_from(len).unwrap_or(u64::MAX);
    if len > VmOptions::of(fd, &note).size {
        return Err(Errno(libc::EMSGSIZE));
    }
    if note.is_known_to_fit(len) {
        return Ok(());
    }
    // A connection that is over, or has only our own data left to give, says EPIPE by itself.
    let buffer = node::set_buffer(fd, 0).unwrap_or(0);
    if buffer == 0 {
        return Ok(());
    }
    // Another thread may have written the note meanwhile.
    Note::of(fd).unwrap_or(note).with_peer_buffer(buffer).put(fd)?;
    if len > buffer.into() { Err(Errno(libc::EMSGSIZE)) } else { Ok(()) }
}

/// After a receive that gave nothing: ECONNRESET, once, if the data ends because the connection did not end well.
pub(crate) fn end_of_data(fd: Fd) -> Answer<()> {
    let Some(note) = Note::of(fd) else { return Ok(()) };
    let is_told = note.flags.has(Flags::END_TOLD) || note.flags.has(Flags::NO_RECEIVING);
    // While the other end is open, the other side has only ended its data.
    if !note.has_stream() || is_told || !fd.has_hung_up() {
        return Ok(());
    }
    let is_good = node::has_ended_well(fd);
    // Another thread may have written the note meanwhile.
    Note::of(fd).unwrap_or(note).with(Flags::END_TOLD).put(fd)?;
    if is_good { Ok(()) } else { Err(Errno(libc::ECONNRESET)) }
}

/// Receives a message by `next`, the program's own `recvmsg`: no address, no ancillary data, and MSG_EOR where the
/// node put its mark, a descriptor that there was no room for.
///
/// # Safety
/// `message` is a valid msghdr.
pub(crate) unsafe fn receive_message(
    message: *mut msghdr,
    note: &Note,
    next: impl FnOnce() -> ssize_t,
) -> ssize_t {
    // SAFETY: valid, says the caller.
    let theirs = unsafe { message.read() };
    // SAFETY: as above.
    unsafe {
        (*message).msg_name = core::ptr::null_mut();
        (*message).msg_control = core::ptr::null_mut();
        (*message).msg_controllen = 0;
    }
    let result = next();
    // SAFETY: as above.
    unsafe {
        (*message).msg_name = theirs.msg_name;
        (*message).msg_namelen = 0;
        (*message).msg_control = theirs.msg_control;
        if result >= 0 && (*message).msg_flags & libc::MSG_CTRUNC != 0 {
            (*message).msg_flags &= !libc::MSG_CTRUNC;
            if note.keeps_messages() {
                (*message).msg_flags |= libc::MSG_EOR;
            }
        }
    }
    result
}

/// Sends a message by `next`, the program's own `sendmsg`: without ancillary data, but with our mark if it ends a record.
///
/// # Safety
/// `message` is a valid msghdr.
pub(crate) unsafe fn send_message(
    message: *const msghdr,
    note: &Note,
    flags: c_int,
    next: impl FnOnce(*const msghdr, c_int) -> ssize_t,
) -> Answer<ssize_t> {
    // SAFETY: valid, says the caller.
    let mut ours = unsafe { message.read() };
    ours.msg_control = core::ptr::null_mut();
    ours.msg_controllen = 0;
    if flags & libc::MSG_EOR == 0 || !note.keeps_messages() {
        return Ok(next(&raw const ours, flags & !libc::MSG_EOR));
    }
    let mark = Fd::blank()?;
    let control = Control::with(mark);
    ours.msg_control = (&raw const control).cast_mut().cast::<c_void>();
    ours.msg_controllen = size_of::<Control>();
    let result = next(&raw const ours, flags & !libc::MSG_EOR);
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

/// How many bytes the pieces have together.
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
