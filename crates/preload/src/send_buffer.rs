//! The send buffer of a socket whose connect is under way: as small as it gets, so that the request of 2048 bytes keeps the
//! socket from being writable.
//!
//! What the buffer was before stands in SO_RCVLOWAT meanwhile, unless the program has set that: then the buffer is the
//! usual one afterwards.

use vsock_client::{Flags, Socket};

use crate::sys::{Answer, Fd};

/// The smallest send buffer of a socket as the kernel counts it.
const SMALLEST: u32 = 4608;
/// And the usual one.
const USUAL: u32 = 212_992;
/// Of a socket that keeps messages: the kernel gives what its settings allow.
const USUAL_FOR_MESSAGES: u32 = 2 << 24;

/// Makes the send buffer as small as it gets, and keeps what it was.
pub(crate) fn shrink(fd: Fd, socket: &Socket) -> Answer<()> {
    if !socket.flags.has(Flags::LOW_WATER) {
        let size = fd.option::<u32>(libc::SOL_SOCKET, libc::SO_SNDBUF)?;
        fd.set_option(libc::SO_RCVLOWAT, &size)?;
    }
    fd.set_option(libc::SO_SNDBUF, &1u32)
}

/// The send buffer that the socket has again after its connect, as the kernel counts it.
pub(crate) fn kept(fd: Fd, socket: &Socket) -> Answer<u32> {
    if socket.flags.has(Flags::LOW_WATER) {
        return Ok(if socket.keeps_messages() { USUAL_FOR_MESSAGES } else { USUAL });
    }
    fd.option::<u32>(libc::SOL_SOCKET, libc::SO_RCVLOWAT)
}

/// Changes the send buffer that the socket will have after its connect, as SO_SNDBUF would change it now.
pub(crate) fn set_kept(fd: Fd, socket: &Socket, size: u32) -> Answer<()> {
    if socket.flags.has(Flags::LOW_WATER) {
        return Ok(());
    }
    let doubled = size.saturating_mul(2).clamp(SMALLEST, i32::MAX.cast_unsigned());
    fd.set_option(libc::SO_RCVLOWAT, &doubled)
}

/// Gives the socket its send buffer back, unless somebody has already.
pub(crate) fn restore(fd: Fd, socket: &Socket) -> Answer<()> {
    let size = kept(fd, socket)?;
    if size < SMALLEST {
        return Ok(());
    }
    fd.set_option(libc::SO_SNDBUF, &(size / 2))?; // the kernel doubles what it is told
    if socket.flags.has(Flags::LOW_WATER) {
        return Ok(());
    }
    fd.set_option(libc::SO_RCVLOWAT, &1u32)
}
