//! Socket options and ioctls of our sockets, where they differ from those of a Unix socket.

use core::ffi::{c_int, c_void};
use core::mem::size_of;

use libc::socklen_t;

use crate::calls::listen_again;
use crate::node;
use crate::note::{Flags, Note, State};
use crate::settle::{held_send_buffer, hold_send_buffer, settle, take_error};
use crate::suspects;
use crate::sys::{Answer, Errno, Fd, tick_us};
use crate::vm_options::VmOptions;

const BUFFER_SIZE: c_int = 0;
const BUFFER_MIN_SIZE: c_int = 1;
const BUFFER_MAX_SIZE: c_int = 2;
const CONNECT_TIMEOUT_OLD: c_int = 6;
const CONNECT_TIMEOUT_NEW: c_int = 8;

const INVALID: Errno = Errno(libc::EINVAL);
const UNKNOWN: Errno = Errno(libc::ENOPROTOOPT);
const UNSUPPORTED: Errno = Errno(libc::EOPNOTSUPP);

/// Options of Unix sockets that AF_VSOCK has not: SO_PASSCRED, _PASSSEC, _PEEK_OFF, _PASSPIDFD.
const OF_UNIX: [c_int; 4] = [16, 34, 42, 76];
/// Options in which the note is kept (and which mean nothing to AF_VSOCK either), and filters, which AF_VSOCK never
/// runs and Unix sockets of messages would.
const NOT_THE_PROGRAMS: [c_int; 6] = [
    libc::SO_MAX_PACING_RATE,
    libc::SO_INCOMING_CPU,
    libc::SO_ATTACH_FILTER,
    libc::SO_DETACH_FILTER,
    libc::SO_LOCK_FILTER,
    libc::SO_ATTACH_BPF,
];

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
        (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => {
            Value::Int(c_int::from(note.flags.has(Flags::ZEROCOPY)))
        }
        (libc::SOL_SOCKET, name) if OF_UNIX.contains(&name) => return Err(UNSUPPORTED),
        (libc::SOL_SOCKET, name) if NOT_THE_PROGRAMS.contains(&name) => return Err(UNSUPPORTED),
        (libc::SOL_SOCKET, libc::SO_ERROR) => Value::Int(error(fd, note)?),
        // What is in their places while a connect is under way is none of the program's.
        (libc::SOL_SOCKET, libc::SO_SNDBUF) if settle(fd, note)?.state == State::Connecting => {
            Value::Int(held_send_buffer(fd, &note)?.cast_signed())
        }
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT)
            if note.state == State::Connecting && !note.flags.has(Flags::LOW_WATER) =>
        {
            Value::Int(1)
        }
        (libc::SOL_SOCKET, _) => return Ok(None),
        (libc::AF_VSOCK, BUFFER_SIZE) => Value::Wide(VmOptions::of(fd, &note).size),
        (libc::AF_VSOCK, BUFFER_MIN_SIZE) => Value::Wide(VmOptions::of(fd, &note).min),
        (libc::AF_VSOCK, BUFFER_MAX_SIZE) => Value::Wide(VmOptions::of(fd, &note).max),
        (libc::AF_VSOCK, CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW) => {
            let us = VmOptions::of(fd, &note).connect_timeout_us(tick_us());
            let us = i64::try_from(us).unwrap_or(i64::MAX);
            Value::Time([us / 1_000_000, us % 1_000_000])
        }
        _ => return Err(UNKNOWN),
    };
    Ok(Some(value))
}

/// SO_ERROR: how a connect ended, told once.
fn error(fd: Fd, note: Note) -> Answer<c_int> {
    let note = settle(fd, note)?;
    Ok(take_error(fd, note).map_or_else(|error| error.0, |()| 0))
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
    note: Note,
    (level, name): (c_int, c_int),
    at: *const c_void,
    len: socklen_t,
) -> Answer<bool> {
    if len.cast_signed() < 0 {
        return Err(INVALID);
    }
    if level == libc::SOL_SOCKET {
        // SAFETY: as the caller says.
        return unsafe { set_of_socket(fd, note, name, at, len) };
    }
    if level != libc::AF_VSOCK {
        return Err(UNKNOWN);
    }
    let note = settle(fd, note)?;
    let before = VmOptions::of(fd, &note);
    let mut options = before;
    match name {
        // SAFETY: as the caller says.
        BUFFER_SIZE => options.size = unsafe { read(at, len) }?,
        // SAFETY: as the caller says.
        BUFFER_MIN_SIZE => options.min = unsafe { read(at, len) }?,
        // SAFETY: as the caller says.
        BUFFER_MAX_SIZE => options.max = unsafe { read(at, len) }?,
        CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW => {
            // SAFETY: as the caller says.
            options.connect_ticks = ticks(unsafe { read(at, len) }?, tick_us())?;
        }
        _ => return Err(UNKNOWN),
    }
    // In this order the maximum wins over a minimum above it.
    options.size = options.size.max(options.min).min(options.max);
    if note.has_stream() && options.size != before.size {
        options = options.limited();
    }
    let note = options.put(fd, note)?;
    let note = announce(fd, note, &before, &options)?;
    note.put(fd).map(|()| true)
}

/// Tells the node of options that have changed, if it knows of the old ones.
fn announce(fd: Fd, note: Note, before: &VmOptions, options: &VmOptions) -> Answer<Note> {
    if note.state == State::Listening {
        listen_again(fd, note.backlog(), options)?;
    } else if note.has_stream() && options.size != before.size {
        // A connection that has ended has no buffer either.
        if let Ok(peer_buffer) = node::set_buffer(fd, options.size.max(1)) {
            return Ok(note.with_peer_buffer(peer_buffer));
        }
    }
    Ok(note)
}

unsafe fn set_of_socket(
    fd: Fd,
    mut note: Note,
    name: c_int,
    at: *const c_void,
    len: socklen_t,
) -> Answer<bool> {
    match name {
        _ if NOT_THE_PROGRAMS.contains(&name) || OF_UNIX.contains(&name) => Err(UNSUPPORTED),
        libc::SO_SNDBUF if settle(fd, note)?.state == State::Connecting => {
            // SAFETY: as the caller says.
            hold_send_buffer(fd, &note, unsafe { read(at, len) }?).map(|()| true)
        }
        // SAFETY: as the caller says.
        libc::SO_REUSEPORT => match unsafe { read::<c_int>(at, len) }? {
            0 => Ok(false),
            _ => Err(UNSUPPORTED),
        },
        libc::SO_ZEROCOPY => {
            // SAFETY: as the caller says.
            note.flags = match unsafe { read::<c_int>(at, len) }? {
                0 | 1 if note.has_stream() => return Err(UNSUPPORTED),
                0 => note.flags.without(Flags::ZEROCOPY),
                1 => note.flags.with(Flags::ZEROCOPY),
                _ => return Err(INVALID),
            };
            note.put(fd).map(|()| true)
        }
        libc::SO_RCVLOWAT => {
            // SAFETY: as the caller says.
            let bytes = unsafe { read::<c_int>(at, len) }?;
            if !note.keeps_messages() {
                if u64::try_from(bytes).map_err(|_| INVALID)? > VmOptions::of(fd, &note).size {
                    return Err(INVALID);
                }
                suspects::add(fd);
            }
            let is_one = bytes == 0 || bytes == 1;
            if settle(fd, note)?.state == State::Connecting && is_one {
                // The kernel's own field keeps the send buffer meanwhile.
                return low_water_while_connecting(fd, note).map(|()| true);
            }
            let note =
                if is_one { note.without(Flags::LOW_WATER) } else { note.with(Flags::LOW_WATER) };
            note.put(fd).map(|()| false)
        }
        _ => Ok(false),
    }
}

/// SO_RCVLOWAT goes back to one byte while its place is needed: the send buffer is the usual one afterwards, if the
/// program had it set.
fn low_water_while_connecting(fd: Fd, note: Note) -> Answer<()> {
    if !note.flags.has(Flags::LOW_WATER) {
        return Ok(());
    }
    let size = held_send_buffer(fd, &note)?;
    note.without(Flags::LOW_WATER).put(fd)?;
    hold_send_buffer(fd, &note.without(Flags::LOW_WATER), size / 2)
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

/// A connect timeout in ticks of `tick` microseconds, rounded up; zero is the default.
fn ticks([seconds, microseconds]: [i64; 2], tick: u64) -> Answer<u64> {
    let per_second = 1_000_000 / tick.min(1_000_000);
    let longest = i64::MAX / i64::try_from(per_second).unwrap_or(1) - 1;
    if !(0..longest).contains(&seconds) || microseconds >= 1_000_000 {
        return Err(Errno(libc::ERANGE));
    }
    // As in the kernel, negative microseconds slip through as a huge number.
    let rest = microseconds.cast_unsigned().wrapping_add(tick - 1) / tick;
    Ok(seconds.unsigned_abs() * per_second + rest)
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
            if settle(fd, note)?.has_stream() { Ok(None) } else { Err(UNSUPPORTED) }
        }
        _ => Ok(None),
    }
}

/// As in a kernel without any transport, "none" is an answer and no error.
fn local_cid() -> u32 {
    node::local_cid().unwrap_or(vsock_client::ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_timeout_is_rounded_up_to_ticks() {
        assert_eq!(ticks([1, 1], 4000), Ok(251));
        assert_eq!(ticks([5, 0], 4000), Ok(1250));
        assert_eq!(ticks([0, 0], 4000), Ok(0));
        assert_eq!(ticks([5, -1], 4000), Ok(1250));
        assert_eq!(ticks([-1, 0], 4000), Err(Errno(libc::ERANGE)));
        assert_eq!(ticks([0, 1_000_000], 4000), Err(Errno(libc::ERANGE)));
        assert_eq!(ticks([i64::MAX / 250, 0], 4000), Err(Errno(libc::ERANGE)));
    }
}
