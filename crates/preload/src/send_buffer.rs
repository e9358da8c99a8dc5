//! The send buffer of a socket whose connect is under way has its smallest size, so that the request of 2048 bytes keeps
//! the socket from being writable.
//!
//! SO_RCVLOWAT holds the former size meanwhile. If the program has set SO_RCVLOWAT, the buffer gets the usual size
//! afterwards.

use vsock_client::{Flags, Socket};

use crate::sys::{Answer, Fd};

/// The smallest send buffer of a socket as the kernel counts it.
const SMALLEST: u32 = 4608;
/// The usual one.
const USUAL: u32 = 212_992;
/// The usual one of a socket that keeps messages: the kernel cuts it to what its settings allow.
const USUAL_FOR_MESSAGES: u32 = 2 << 24;

/// Gives the send buffer its smallest size, and keeps the former one.
pub(crate) fn shrink(fd: Fd, socket: &Socket) -> Answer<()> {
    if !socket.flags.has(Flags::LOW_WATER) {
        let size = fd.option::<u32>(libc::SOL_SOCKET, libc::SO_SNDBUF)?;
        fd.set_option(libc::SO_RCVLOWAT, &size)?;
    }
    fd.set_option(libc::SO_SNDBUF, &1u32)
}

/// The size that the send buffer will have after the connect, as the kernel counts it.
pub(crate) fn kept(fd: Fd, socket: &Socket) -> Answer<u32> {
    if socket.flags.has(Flags::LOW_WATER) {
        return Ok(if socket.keeps_messages() { USUAL_FOR_MESSAGES } else { USUAL });
    }
    fd.option::<u32>(libc::SOL_SOCKET, libc::SO_RCVLOWAT)
}

/// Sets the size that the send buffer will have after the connect, as SO_SNDBUF does.
pub(crate) fn set_kept(fd: Fd, socket: &Socket, size: u32) -> Answer<()> {
    if socket.flags.has(Flags::LOW_WATER) {
        return Ok(());
    }
    let doubled = size.saturating_mul(2).clamp(SMALLEST, i32::MAX.cast_unsigned());
    fd.set_option(libc::SO_RCVLOWAT, &doubled)
}

/// Gives the send buffer its former size, unless another thread or process has.
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
