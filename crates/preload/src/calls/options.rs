//! Carries out socket options and ioctls of our sockets, where they differ from those of a Unix socket.
//! `vsock_client::options` has the options and their rules.

use core::ffi::{c_int, c_void};
use libc::socklen_t;

use vsock_client::Socket;
use vsock_client::calls::{self, queue_len};
use vsock_client::options::{
    Get, Set, SetLowWater, SetOption, SocketOption, Tell, VALUE_MAX, Value,
};

use crate::connecting::finish_connect;
use crate::sys::{Answer, Errno, Fd, tick_us};
use crate::{fd_hints, node, send_buffer, state};

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`.
pub(crate) const GET_LOCAL_CID: u64 = 0x7b9;

/// `getsockopt`; `None` if a Unix socket answers as AF_VSOCK does.
pub(crate) fn get(fd: Fd, socket: Socket, level: c_int, name: c_int) -> Answer<Option<Value>> {
    let Some(option) = SocketOption::find(level, name)? else { return Ok(None) };
    let socket = finish_connect(fd, socket)?;
    let value = match option.get(socket, || state::options(fd, &socket), tick_us())? {
        Get::Descriptor => return Ok(None),
        Get::Value(value) => value,
        Get::Error(Errno(error), next) => {
            let kept = if next == socket { Ok(()) } else { state::store(fd, &next) };
            Value::Int(kept.map_or_else(|Errno(failure)| failure, |()| error))
        }
        Get::HeldBuffer => Value::Int(send_buffer::kept(fd, &socket)?.cast_signed()),
    };
    Ok(Some(value))
}

/// Writes an option's value where the program wants it.
///
/// # Safety
/// `len` is null or valid; `at` has room for `*len` bytes.
pub(crate) unsafe fn write(value: Value, at: *mut c_void, len: *mut socklen_t) -> Answer<()> {
    if at.is_null() || len.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: the caller vouches for both pointers; no more than `*len` bytes are written.
    unsafe {
        let room = usize::try_from((*len).cast_signed()).map_err(|_| Errno::INVAL)?;
        let (bytes, size) = value.cut_to(room)?;
        at.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), size.min(bytes.len()));
        *len = socklen_t::try_from(size).unwrap_or(0);
    }
    Ok(())
}

/// `setsockopt`; `false` if a Unix socket does what AF_VSOCK does.
///
/// # Safety
/// `at` is null or points to `len` readable bytes.
pub(crate) unsafe fn set(
    fd: Fd,
    socket: Socket,
    (level, name): (c_int, c_int),
    at: *const c_void,
    len: socklen_t,
) -> Answer<bool> {
    // A negative length is checked before anything else.
    let len = usize::try_from(len.cast_signed()).map_err(|_| Errno::INVAL)?;
    let Some(option) = SocketOption::find(level, name)? else { return Ok(false) };
    // SAFETY: as the caller says.
    let (bytes, len) = unsafe { read(at, len, option.value_len()) }?;
    let value = bytes.get(..len).unwrap_or(&bytes);
    let socket = finish_connect(fd, socket)?;
    match option.set(socket, value, || state::options(fd, &socket), tick_us())? {
        Set::Descriptor => return Ok(false),
        Set::Socket(next) => state::store(fd, &next)?,
        Set::Options(set) => keep_options(fd, socket, &set)?,
        Set::LowWater(set) => return set_low_water(fd, socket, set),
        Set::HeldBuffer(size) => send_buffer::set_kept(fd, &socket, size)?,
    }
    Ok(true)
}

/// Reads the `wanted` bytes of an option's value that count; too short is EINVAL.
///
/// # Safety
/// `at` is null or points to `len` readable bytes.
unsafe fn read(at: *const c_void, len: usize, wanted: usize) -> Answer<([u8; VALUE_MAX], usize)> {
    let mut bytes = [0; VALUE_MAX];
    let wanted = wanted.min(VALUE_MAX);
    if len < wanted {
        return Err(Errno::INVAL);
    }
    if wanted > 0 && at.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    if wanted > 0 {
        // SAFETY: that many bytes are readable, says the caller, and `bytes` has room for them.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(at.cast(), wanted) };
    }
    Ok((bytes, wanted))
}

/// Options of level AF_VSOCK.
fn keep_options(fd: Fd, socket: Socket, SetOption { options, tell }: &SetOption) -> Answer<()> {
    let mut socket = state::store_options(fd, socket, options)?;
    match *tell {
        Tell::Nothing => {}
        Tell::Listener => node::send(fd, &calls::listen_message(socket, options, tick_us()))?,
        Tell::Connection(buffer) => {
            // Fails if the connection has ended, which then has no buffer.
            if let Ok(peer_buffer) = node::set_buffer(fd, buffer) {
                socket = socket.with_peer_buffer(peer_buffer);
            }
        }
    }
    state::store(fd, &socket)
}

/// SO_RCVLOWAT; `false` if the descriptor's own option is to be set too.
fn set_low_water(fd: Fd, socket: Socket, set: SetLowWater) -> Answer<bool> {
    if !socket.keeps_messages() {
        fd_hints::set(fd);
    }
    match set {
        SetLowWater::Descriptor(next) => state::store(fd, &next).map(|()| false),
        SetLowWater::Flag(next) if next == socket => Ok(true),
        SetLowWater::Flag(next) => {
            // The send buffer is the usual one afterwards.
            let size = send_buffer::kept(fd, &socket)?;
            state::store(fd, &next)?;
            send_buffer::set_kept(fd, &next, size / 2).map(|()| true)
        }
    }
}

/// `ioctl`: `Some` with the value to store, `None` if a Unix socket answers as AF_VSOCK does.
pub(crate) fn ioctl(fd: Fd, socket: Option<Socket>, request: u64) -> Answer<Option<u32>> {
    match (request, socket) {
        (GET_LOCAL_CID, Some(socket)) => calls::local_cid(socket).map(|()| Some(local_cid())),
        // The kernel's own device, however it was opened: it would give the CID of the machine.
        (GET_LOCAL_CID, None) if fd.is_device() => Ok(Some(local_cid())),
        (libc::FIONREAD | libc::TIOCOUTQ, Some(socket)) => {
            queue_len(finish_connect(fd, socket)?).map(|()| None)
        }
        _ => Ok(None),
    }
}

/// As in a kernel without any transport, "none" is an answer and no error.
fn local_cid() -> u32 {
    node::local_cid().unwrap_or(vsock_client::ANY)
}
