//! Socket options and ioctls of our sockets, where they differ from those of a Unix socket.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use libc::socklen_t;

use crate::node;
use crate::note::{CONNECT_TIMEOUT_US, Note, State};
use crate::settle::{await_verdict, settle};
use crate::sys::{Answer, Errno, Fd, tick_us};

const BUFFER_SIZE: c_int = 0;
const BUFFER_MIN_SIZE: c_int = 1;
const BUFFER_MAX_SIZE: c_int = 2;
const CONNECT_TIMEOUT_OLD: c_int = 6;
const CONNECT_TIMEOUT_NEW: c_int = 8;

const INVALID: Errno = Errno(libc::EINVAL);
const UNKNOWN: Errno = Errno(libc::ENOPROTOOPT);
const UNSUPPORTED: Errno = Errno(libc::EOPNOTSUPP);

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
pub(crate) fn get(fd: Fd, note: Note, level: c_int, name: c_int) -> Answer<Option<Value>> {
    let value = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => Value::Int(libc::AF_VSOCK),
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => {
            Value::Int(c_int::from(note.state == State::Listening))
        }
        (libc::SOL_SOCKET, libc::SO_ERROR) => Value::Int(error(fd, note)?),
        (libc::SOL_SOCKET, _) => return Ok(None),
        (libc::AF_VSOCK, BUFFER_SIZE) => Value::Wide(note.buffer),
        (libc::AF_VSOCK, BUFFER_MIN_SIZE) => Value::Wide(note.buffer_min),
        (libc::AF_VSOCK, BUFFER_MAX_SIZE) => Value::Wide(note.buffer_max),
        (libc::AF_VSOCK, CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW) => {
            let us = i64::try_from(note.connect_timeout_us).unwrap_or(i64::MAX);
            Value::Time([us / 1_000_000, us % 1_000_000])
        }
        _ => return Err(UNKNOWN),
    };
    Ok(Some(value))
}

/// SO_ERROR: how a connect ended, told once.
fn error(fd: Fd, note: Note) -> Answer<c_int> {
    if note.state == State::Connecting && !note.is_held {
        // A signal ended a blocking connect: the descriptor is writable all the time, so whoever asks here believes that
        // the verdict is there.
        if let Err(error) = await_verdict(fd, note) {
            return Ok(error.0);
        }
    }
    let mut note = settle(fd, note)?;
    let error = note.error.cast_signed();
    if error != 0 {
        note.error = 0;
        note.put(fd)?;
    }
    Ok(error)
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
    mut note: Note,
    (level, name): (c_int, c_int),
    at: *const c_void,
    len: socklen_t,
) -> Answer<bool> {
    if level == libc::SOL_SOCKET {
        // SAFETY: as the caller says.
        return unsafe { set_of_socket(fd, &note, name, at, len) };
    }
    if level != libc::AF_VSOCK {
        return Err(UNKNOWN);
    }
    let size = match name {
        BUFFER_SIZE => &mut note.buffer,
        BUFFER_MIN_SIZE => &mut note.buffer_min,
        BUFFER_MAX_SIZE => &mut note.buffer_max,
        CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW => {
            // SAFETY: as the caller says.
            note.connect_timeout_us = timeout_us(unsafe { read(at, len) }?)?;
            note.put(fd)?;
            return Ok(true);
        }
        _ => return Err(UNKNOWN),
    };
    // SAFETY: as the caller says.
    *size = unsafe { read(at, len) }?;
    note.buffer = note.buffer.max(note.buffer_min).min(note.buffer_max);
    note.put(fd)?;
    Ok(true)
}

unsafe fn set_of_socket(
    fd: Fd,
    note: &Note,
    name: c_int,
    at: *const c_void,
    len: socklen_t,
) -> Answer<bool> {
    match name {
        // Its filter is where the note is kept.
        libc::SO_ATTACH_FILTER
        | libc::SO_DETACH_FILTER
        | libc::SO_LOCK_FILTER
        | libc::SO_ATTACH_BPF => Err(UNSUPPORTED),
        // SAFETY: as the caller says.
        libc::SO_REUSEPORT => match unsafe { read::<c_int>(at, len) }? {
            0 => Ok(false),
            _ => Err(UNSUPPORTED),
        },
        libc::SO_RCVLOWAT if fd.kind()? == libc::SOCK_STREAM => {
            // SAFETY: as the caller says.
            let bytes = u64::try_from(unsafe { read::<c_int>(at, len) }?).map_err(|_| INVALID)?;
            if bytes > note.buffer { Err(INVALID) } else { Ok(false) }
        }
        _ => Ok(false),
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

/// A connect timeout in microseconds, rounded up to a tick; zero means the default.
fn timeout_us([seconds, microseconds]: [i64; 2]) -> Answer<u64> {
    const LONGEST: i64 = 1 << 40; // far beyond any uptime, and no overflow below
    if !(0..LONGEST).contains(&seconds) || microseconds >= 1_000_000 {
        return Err(Errno(libc::ERANGE));
    }
    let us = u64::try_from(seconds * 1_000_000 + microseconds).unwrap_or(0);
    if us == 0 {
        return Ok(CONNECT_TIMEOUT_US);
    }
    let tick = tick_us();
    Ok(us.div_ceil(tick) * tick)
}

/// `ioctl`: `Some` with the value to store, `None` if a Unix socket answers as AF_VSOCK does.
pub(crate) fn ioctl(fd: Fd, note: Option<Note>, request: u64) -> Answer<Option<u32>> {
    match (request, note.map(|note| note.state)) {
        (GET_LOCAL_CID, Some(State::Device)) => Ok(Some(local_cid())),
        // The kernel's own device, however it was opened: what it says is true of another switchboard.
        (GET_LOCAL_CID, None) if fd.is_device() => Ok(Some(local_cid())),
        (GET_LOCAL_CID, Some(_)) => Err(Errno(libc::ENOTTY)),
        (libc::FIONREAD | libc::TIOCOUTQ, Some(_)) => {
            let Some(note) = note else { return Ok(None) };
            if settle(fd, note)?.state.has_stream() { Ok(None) } else { Err(UNSUPPORTED) }
        }
        _ => Ok(None),
    }
}

/// As in a kernel without any transport, "none" is an answer and no error.
fn local_cid() -> u32 {
    node::local_cid().unwrap_or(crate::address::ANY)
}
