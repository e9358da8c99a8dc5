//! Before data moves: whether the socket has a stream, and what AF_VSOCK says of flags and addresses.

use crate::note::{Note, State};
use crate::settle::settle;
use crate::suspects;
use crate::sys::{Answer, Errno, Fd};

/// Lets data calls through to a socket with a stream, and to what is not ours; says if it is ours.
///
/// Before there is a stream the descriptor leads to the switch itself, which must not take data for a request, nor
/// the program a reply for data.
pub(crate) fn require_stream(fd: Fd) -> Answer<bool> {
    let Some(note) = Note::of(fd) else {
        suspects::remove(fd);
        return Ok(false);
    };
    let state = settle(fd, note)?.state;
    if state.has_stream() {
        suspects::remove(fd);
        return Ok(true);
    }
    Err(Errno(if state == State::Device { libc::EINVAL } else { libc::ENOTCONN }))
}

/// What a send to an address gives, which AF_VSOCK never takes for a stream.
pub(crate) fn refuse_address(fd: Fd, note: Note) -> Answer<usize> {
    let is_connected = settle(fd, note)?.state.has_stream();
    Err(Errno(if is_connected { libc::EISCONN } else { libc::EOPNOTSUPP }))
}
