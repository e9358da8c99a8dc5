//! Socket options and ioctls of our sockets, where they differ from those of a Unix socket.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use libc::socklen_t;

use vsock_client::calls::{
    self, SetLowWater, SetOption, Tell, queue_len, set_zerocopy, take_error,
};
use vsock_client::options::{
    BUFFER_MAX_SIZE, BUFFER_MIN_SIZE, BUFFER_SIZE, CONNECT_TIMEOUT_NEW, CONNECT_TIMEOUT_OLD,
    Setting, is_refused,
};
use vsock_client::{Flags, Socket, State};

use crate::connecting::finish_connect;
use crate::sys::{Answer, Errno, Fd, tick_us};
use crate::{fd_hints, node, send_buffer, state};

const INVALID: Errno = Errno::INVAL;
const UNKNOWN: Errno = Errno::NOPROTOOPT;
const UNSUPPORTED: Errno = Errno::OPNOTSUPP;

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`.
pub(crate) const GET_LOCAL_CID: u64 = 0x7b9;

/// An option's value.
#[derive(Clone, Copy)]
pub(crate) enum Value {
    Int(c_int),
    Wide(u64),
    /// A struct timeval.
    Time([i64; 2]),
}

/// `getsockopt`; `None` if a Unix socket answers as AF_VSOCK does.
pub(crate) fn get(fd: Fd, socket: Socket, level: c_int, name: c_int) -> Answer<Option<Value>> {
    let value = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => Value::Int(libc::AF_VSOCK),
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => {
            Value::Int(c_int::from(socket.state == State::Listening))
        }
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => {
            Value::Int(c_int::from(socket.flags.has(Flags::ZEROCOPY)))
        }
        (libc::SOL_SOCKET, name) if is_refused(name) => return Err(UNSUPPORTED),
        (libc::SOL_SOCKET, libc::SO_ERROR) => Value::Int(error(fd, socket)?),
        // While a connect is under way, these two of the descriptor are not the program's.
        (libc::SOL_SOCKET, libc::SO_SNDBUF)
            if finish_connect(fd, socket)?.state == State::Connecting =>
        {
            Value::Int(send_buffer::kept(fd, &socket)?.cast_signed())
        }
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT)
            if socket.state == State::Connecting && !socket.flags.has(Flags::LOW_WATER) =>
        {
            Value::Int(1)
        }
        (libc::SOL_SOCKET, _) => return Ok(None),
        (libc::AF_VSOCK, BUFFER_SIZE) => Value::Wide(state::options(fd, &socket).size),
        (libc::AF_VSOCK, BUFFER_MIN_SIZE) => Value::Wide(state::options(fd, &socket).min),
        (libc::AF_VSOCK, BUFFER_MAX_SIZE) => Value::Wide(state::options(fd, &socket).max),
        (libc::AF_VSOCK, CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW) => {
            Value::Time(state::options(fd, &socket).connect_timeval(tick_us()))
        }
        _ => return Err(UNKNOWN),
    };
    Ok(Some(value))
}

/// SO_ERROR: the errno of a failed connect, once.
fn error(fd: Fd, socket: Socket) -> Answer<c_int> {
    let socket = finish_connect(fd, socket)?;
    let (Errno(error), next) = take_error(socket);
    let kept = if next == socket { Ok(()) } else { state::store(fd, &next) };
    Ok(kept.map_or_else(|Errno(failure)| failure, |()| error))
}

/// Writes an option's value where the program wants it.
///
/// # Safety
/// `len` is null or valid; `at` has room for `*len` bytes.
pub(crate) unsafe fn write(value: Value, at: *mut c_void, len: *mut socklen_t) -> Answer<()> {
    if at.is_null() || len.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    let (from, size, may_be_cut) = match &value {
        Value::Int(value) => ((&raw const *value).cast::<u8>(), size_of::<c_int>(), true),
        Value::Wide(value) => ((&raw const *value).cast(), size_of::<u64>(), false),
        Value::Time(value) => ((&raw const *value).cast(), size_of::<[i64; 2]>(), false),
    };
    // SAFETY: the caller vouches for both pointers; no more than `*len` bytes are written, nor read than there are.
    unsafe {
        let room = usize::try_from((*len).cast_signed()).map_err(|_| INVALID)?;
        if room < size && !may_be_cut {
            return Err(INVALID);
        }
        let size = size.min(room);
        at.cast::<u8>().copy_from_nonoverlapping(from, size);
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
    if len.cast_signed() < 0 {
        return Err(INVALID);
    }
    if level == libc::SOL_SOCKET {
        // SAFETY: as the caller says.
        return unsafe { set_of_socket(fd, socket, name, at, len) };
    }
    if level != libc::AF_VSOCK {
        return Err(UNKNOWN);
    }
    let socket = finish_connect(fd, socket)?;
    let before = state::options(fd, &socket);
    let setting = match name {
        // SAFETY: as the caller says.
        BUFFER_SIZE => Setting::Size(unsafe { read(at, len) }?),
        // SAFETY: as the caller says.
        BUFFER_MIN_SIZE => Setting::Min(unsafe { read(at, len) }?),
        // SAFETY: as the caller says.
        BUFFER_MAX_SIZE => Setting::Max(unsafe { read(at, len) }?),
        CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW => {
            // SAFETY: as the caller says.
            Setting::ConnectTimeout(unsafe { read(at, len) }?)
        }
        _ => return Err(UNKNOWN),
    };
    let SetOption { options, tell } = SetOption::new(socket, before, setting, tick_us())?;
    let mut socket = state::store_options(fd, socket, &options)?;
    match tell {
        Tell::Nothing => {}
        Tell::Listener => node::send(fd, &calls::listen_message(socket, &options, tick_us()))?,
        Tell::Connection(buffer) => {
            // Fails if the connection has ended, which then has no buffer.
            if let Ok(peer_buffer) = node::set_buffer(fd, buffer) {
                socket = socket.with_peer_buffer(peer_buffer);
            }
        }
    }
    state::store(fd, &socket).map(|()| true)
}

unsafe fn set_of_socket(
    fd: Fd,
    socket: Socket,
    name: c_int,
    at: *const c_void,
    len: socklen_t,
) -> Answer<bool> {
    match name {
        _ if is_refused(name) => Err(UNSUPPORTED),
        libc::SO_SNDBUF if finish_connect(fd, socket)?.state == State::Connecting => {
            // SAFETY: as the caller says.
            send_buffer::set_kept(fd, &socket, unsafe { read(at, len) }?).map(|()| true)
        }
        // SAFETY: as the caller says.
        libc::SO_REUSEPORT => match unsafe { read::<c_int>(at, len) }? {
            0 => Ok(false),
            _ => Err(UNSUPPORTED),
        },
        libc::SO_ZEROCOPY => {
            // SAFETY: as the caller says.
            let next = set_zerocopy(socket, unsafe { read(at, len) }?)?;
            state::store(fd, &next).map(|()| true)
        }
        // SAFETY: as the caller says.
        libc::SO_RCVLOWAT => set_low_water(fd, socket, unsafe { read(at, len) }?),
        _ => Ok(false),
    }
}

/// SO_RCVLOWAT; `false` if the descriptor's own option is to be set too.
fn set_low_water(fd: Fd, socket: Socket, bytes: c_int) -> Answer<bool> {
    let socket = finish_connect(fd, socket)?;
    let set = SetLowWater::new(socket, bytes, || state::options(fd, &socket).size)?;
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

/// Reads an option's value; too short is EINVAL.
unsafe fn read<T: Copy>(at: *const c_void, len: socklen_t) -> Answer<T> {
    if usize::try_from(len.cast_signed()).map_err(|_| INVALID)? < size_of::<T>() {
        return Err(INVALID);
    }
    if at.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: that many bytes are readable, says the caller.
    Ok(unsafe { at.cast::<T>().read_unaligned() })
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
