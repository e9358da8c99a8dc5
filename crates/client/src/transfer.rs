//! The checks of a receive or a send before data moves, in the order of `vsock_connectible_recvmsg` and
//! `vsock_connectible_sendmsg` in Linux.

use crate::Errno;
use crate::socket::{Flags, Socket, State};

/// Out-of-band data, which AF_VSOCK does not have.
pub const MSG_OOB: i32 = 1;
/// Wait for all that was asked for.
pub const MSG_WAITALL: i32 = 0x100;
/// Receive from the error queue, which is always empty.
pub const MSG_ERRQUEUE: i32 = 0x2000;

/// What a receive does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// It returns 0 at once.
    Nothing,
    /// The descriptor receives.
    Descriptor,
}

impl Receive {
    /// A receive of up to `len` bytes. `low_water` reads SO_RCVLOWAT and `size` SO_VM_SOCKETS_BUFFER_SIZE: each costs a
    /// system call, so they are called only if needed.
    ///
    /// # Errors
    /// EAGAIN (MSG_ERRQUEUE), ENOTCONN, EOPNOTSUPP (MSG_OOB), ENOMEM (it waits for more than the buffer holds).
    pub fn new(
        socket: Socket,
        flags: i32,
        len: usize,
        low_water: impl FnOnce() -> usize,
        size: impl FnOnce() -> u64,
    ) -> Result<Self, Errno> {
        if flags & MSG_ERRQUEUE != 0 {
            return Err(Errno::AGAIN);
        }
        require_stream(socket)?;
        if flags & MSG_OOB != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if socket.flags.has(Flags::NO_RECEIVING) || len == 0 {
            return Ok(Self::Nothing);
        }
        if !socket.keeps_messages() {
            let target = if flags & MSG_WAITALL != 0 {
                len
            } else if socket.flags.has(Flags::LOW_WATER) {
                low_water().min(len)
            } else {
                1
            };
            // One byte fits the default buffer.
            let is_sure_to_fit = target <= 1 && !socket.flags.has(Flags::OPTIONS);
            if !is_sure_to_fit && u64::try_from(target).unwrap_or(u64::MAX) >= size() {
                return Err(Errno::NOMEM);
            }
        }
        Ok(Self::Descriptor)
    }
}

/// What a send does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// It returns 0 at once: on a Unix socket an empty message would read as the end.
    Nothing,
    /// The descriptor sends.
    Descriptor,
    /// The descriptor has been shut down: pass the call on, and the kernel gives EPIPE, with or without SIGPIPE.
    Broken,
    /// Ask the node for the size of the other side's buffer (FLOW). The descriptor sends if the message fits.
    AskPeerBuffer,
}

impl Send {
    /// A send of `len` bytes; `size` reads SO_VM_SOCKETS_BUFFER_SIZE.
    ///
    /// # Errors
    /// EOPNOTSUPP (MSG_OOB, or an address without a connection), EISCONN (an address), ENOTCONN, EMSGSIZE.
    pub fn new(
        socket: Socket,
        flags: i32,
        has_address: bool,
        len: usize,
        size: impl FnOnce() -> u64,
    ) -> Result<Self, Errno> {
        if flags & MSG_OOB != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        if has_address {
            return Err(if socket.has_stream() { Errno::ISCONN } else { Errno::OPNOTSUPP });
        }
        if socket.flags.has(Flags::NO_SENDING) {
            return Ok(Self::Broken);
        }
        require_stream(socket)?;
        if !socket.keeps_messages() {
            return Ok(Self::Descriptor);
        }
        if len == 0 {
            return Ok(Self::Nothing);
        }
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        if len > size() {
            return Err(Errno::MSGSIZE);
        }
        Ok(if socket.is_known_to_fit(len) { Self::Descriptor } else { Self::AskPeerBuffer })
    }
}

/// Before there is a connection the descriptor leads to the node. The node must not take data for a request, nor the
/// program a reply for data.
fn require_stream(socket: Socket) -> Result<(), Errno> {
    if socket.has_stream() {
        return Ok(());
    }
    Err(if socket.state == State::Device { Errno::INVAL } else { Errno::NOTCONN })
}

/// Whether a receive of no data has to ask the node how the connection ended, if the other end is closed.
#[must_use]
pub fn may_have_lost_data(socket: Socket) -> bool {
    let is_settled = socket.flags.has(Flags::END_TOLD) || socket.flags.has(Flags::NO_RECEIVING);
    socket.has_stream() && !is_settled
}

/// Whether no later receive or send of this connection needs a check.
#[must_use]
pub fn needs_no_checks(socket: Socket) -> bool {
    let checked = [Flags::MESSAGES, Flags::NO_RECEIVING, Flags::LOW_WATER];
    socket.has_stream() && !checked.iter().any(|&flag| socket.flags.has(flag))
}
