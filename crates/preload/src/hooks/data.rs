//! Hooks of the calls that move data. For a connected stream, and for everything that is not ours, they read one word of
//! memory (`fd_hints`) and go on to libc; the rest is in `calls::data`.

use core::ffi::{c_int, c_uint, c_void};
use core::ptr::{null, null_mut};

use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};

use super::{c_return, keep_errno, pass};
use crate::address::LONGEST;
use crate::calls::data::{
    Checked, before_receiving, before_sending, end_of_data, message_of, receive_message,
    send_message, total,
};
use crate::fd_hints;
use crate::sys::{Errno, Fd};

/// Flags that AF_VSOCK treats differently from AF_UNIX.
const SPECIAL_RECEIVING: c_int = libc::MSG_OOB | libc::MSG_ERRQUEUE | libc::MSG_WAITALL;
const SPECIAL_SENDING: c_int = libc::MSG_OOB | libc::MSG_EOR;

/// Makes the checks before a call, and returns from the hook if they fail or the call is done. Gives the socket's state if
/// it is one of ours.
macro_rules! check {
    ($matters:expr, $check:expr) => {
        if $matters {
            match keep_errno(|| $check) {
                Ok(Checked::Pass) => None,
                Ok(Checked::Ours(socket)) => Some(socket),
                Ok(Checked::Done) => return 0,
                Err(error) => return c_return(Err(error)),
            }
        } else {
            None
        }
    };
}

fn matters(fd: c_int, special: bool) -> bool {
    special || fd_hints::has(Fd(fd))
}

macro_rules! check_receiving {
    ($fd:expr, $flags:expr, $len:expr, $special:expr) => {
        check!(
            matters($fd, $special || $flags & SPECIAL_RECEIVING != 0),
            before_receiving(Fd($fd), $flags, $len)
        )
    };
}

macro_rules! check_sending {
    ($fd:expr, $flags:expr, $len:expr, $address:expr) => {
        check!(
            matters($fd, $address || $flags & SPECIAL_SENDING != 0),
            before_sending(Fd($fd), $flags, $len, $address)
        )
    };
}

/// The result of a receive of up to `len` bytes. If no data came, the connection may not have ended well.
fn received(fd: c_int, len: impl FnOnce() -> size_t, got: ssize_t) -> ssize_t {
    if got != 0 || len() == 0 {
        return got;
    }
    match keep_errno(|| end_of_data(Fd(fd))) {
        Ok(()) => 0,
        Err(error) => c_return(Err(error)),
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn read(fd: c_int, at: *mut c_void, len: size_t) -> ssize_t {
    check_receiving!(fd, 0, len, false);
    let got = pass!(READ: fn(c_int, *mut c_void, size_t) -> ssize_t, fd, at, len);
    received(fd, || len, got)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn __read_chk(fd: c_int, at: *mut c_void, len: size_t, room: size_t) -> ssize_t {
    check_receiving!(fd, 0, len, false);
    let got = pass!(READ_CHK: fn(c_int, *mut c_void, size_t, size_t) -> ssize_t, fd, at, len, room);
    received(fd, || len, got)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    check_receiving!(fd, 0, 1, false);
    let got = pass!(READV: fn(c_int, *const iovec, c_int) -> ssize_t, fd, parts, count);
    // SAFETY: the program vouches for its pieces, and the kernel has read them.
    received(fd, || unsafe { total(parts, size_t::try_from(count).unwrap_or(0)) }, got)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn write(fd: c_int, at: *const c_void, len: size_t) -> ssize_t {
    check_sending!(fd, 0, len, false);
    pass!(WRITE: fn(c_int, *const c_void, size_t) -> ssize_t, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    check!(matters(fd, false), {
        // SAFETY: the program vouches for its pieces.
        let len = unsafe { total(parts, size_t::try_from(count).unwrap_or(usize::MAX)) };
        before_sending(Fd(fd), 0, len, false)
    });
    pass!(WRITEV: fn(c_int, *const iovec, c_int) -> ssize_t, fd, parts, count)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recv(fd: c_int, at: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    check_receiving!(fd, flags, len, false);
    let got = pass!(RECV: fn(c_int, *mut c_void, size_t, c_int) -> ssize_t, fd, at, len, flags);
    received(fd, || len, got)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn __recv_chk(
    fd: c_int,
    at: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    check_receiving!(fd, flags, len, false);
    let got = pass!(RECV_CHK: fn(c_int, *mut c_void, size_t, size_t, c_int) -> ssize_t,
        fd, at, len, room, flags);
    received(fd, || len, got)
}

/// Where the sender's address goes: nowhere for a socket of ours, whose address length is then 0.
unsafe fn no_address(
    is_ours: bool,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> (*mut sockaddr, *mut socklen_t) {
    if !is_ours || address.is_null() {
        return (address, len);
    }
    if !len.is_null() {
        // SAFETY: the program vouches for its pointer.
        unsafe { *len = 0 };
    }
    (null_mut(), null_mut())
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recvfrom(
    fd: c_int,
    at: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let socket = check_receiving!(fd, flags, len, !address.is_null());
    // SAFETY: as of this call.
    let (address, address_len) = unsafe { no_address(socket.is_some(), address, address_len) };
    let got = pass!(RECVFROM: fn(c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t)
        -> ssize_t, fd, at, len, flags, address, address_len);
    received(fd, || len, got)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    at: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let socket = check_receiving!(fd, flags, len, !address.is_null());
    // SAFETY: as of this call.
    let (address, address_len) = unsafe { no_address(socket.is_some(), address, address_len) };
    let got = pass!(RECVFROM_CHK: fn(c_int, *mut c_void, size_t, size_t, c_int, *mut sockaddr, *mut socklen_t)
        -> ssize_t, fd, at, len, room, flags, address, address_len);
    received(fd, || len, got)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    let real = || pass!(RECVMSG: fn(c_int, *mut msghdr, c_int) -> ssize_t, fd, message, flags);
    if message.is_null() {
        return real();
    }
    // SAFETY: the program vouches for its message.
    let (is_special, parts, count) = unsafe {
        let special = !(*message).msg_name.is_null() || !(*message).msg_control.is_null();
        (special, (*message).msg_iov, (*message).msg_iovlen)
    };
    // SAFETY: as above.
    let socket = check_receiving!(fd, flags, unsafe { total(parts, count) }, is_special);
    let got = match socket {
        // SAFETY: as above.
        Some(socket) => unsafe { receive_message(message, &socket, real) },
        None => real(),
    };
    // SAFETY: as above.
    received(fd, || unsafe { total(parts, count) }, got)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let socket = check_receiving!(fd, flags, 1, false);
    if !socket.is_some_and(|socket| socket.keeps_messages()) {
        let got = pass!(RECVMMSG: fn(c_int, *mut mmsghdr, c_uint, c_int, *mut timespec) -> c_int,
            fd, messages, count, flags, timeout);
        // SAFETY: the kernel has written the first message.
        let is_over = got > 0 && unsafe { (*messages).msg_len } == 0;
        return if is_over && received(fd, || 1, 0) < 0 { -1 } else { got };
    }
    let mut taken = 0;
    while taken < count {
        let waits = taken == 0 || flags & libc::MSG_WAITFORONE == 0;
        let how = if waits { flags } else { flags | libc::MSG_DONTWAIT } & !libc::MSG_WAITFORONE;
        // SAFETY: the program vouches for `count` messages.
        let message = unsafe { &mut *messages.add(taken as usize) };
        // SAFETY: as above.
        let got = unsafe { recvmsg(fd, &raw mut message.msg_hdr, how) };
        let Ok(got) = c_uint::try_from(got) else { break };
        message.msg_len = got;
        taken += 1;
    }
    if taken == 0 && count > 0 { -1 } else { c_int::try_from(taken).unwrap_or(c_int::MAX) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn send(fd: c_int, at: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    // SAFETY: as of this call.
    unsafe { sendto(fd, at, len, flags, null(), 0) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn sendto(
    fd: c_int,
    at: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    // An address of no bytes is none. The kernel refuses one that is too long on any socket.
    let has_address = !address.is_null() && (1..=LONGEST).contains(&address_len);
    let socket = check_sending!(fd, flags, len, has_address);
    if flags & libc::MSG_EOR != 0
        && let Some(socket) = socket
    {
        let mut part = iovec { iov_base: at.cast_mut(), iov_len: len };
        let whole = message_of(&mut part);
        let real = |message, flags| pass!(SENDMSG: fn(c_int, *const msghdr, c_int) -> ssize_t, fd, message, flags);
        // SAFETY: the message is whole; the program vouches for its bytes.
        return c_return(unsafe { send_message(&raw const whole, &socket, flags, real) });
    }
    pass!(SENDTO: fn(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t,
        fd, at, len, flags, address, address_len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    if message.is_null() {
        return c_return(Err(Errno(libc::EFAULT)));
    }
    // SAFETY: the program vouches for its message.
    let (has_address, has_control, len) = unsafe {
        let len = total((*message).msg_iov, (*message).msg_iovlen);
        let has_address = !(*message).msg_name.is_null() && (*message).msg_namelen > 0;
        (has_address, (*message).msg_controllen > 0, len)
    };
    let socket = check!(
        matters(fd, has_address || has_control || flags & SPECIAL_SENDING != 0),
        before_sending(Fd(fd), flags, len, has_address)
    );
    let real = |message, flags| pass!(SENDMSG: fn(c_int, *const msghdr, c_int) -> ssize_t, fd, message, flags);
    match socket {
        // SAFETY: as above.
        Some(socket) => c_return(unsafe { send_message(message, &socket, flags, real) }),
        None => real(message, flags),
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    let socket = check_sending!(fd, flags, 1, false);
    if !socket.is_some_and(|socket| socket.keeps_messages()) {
        return pass!(SENDMMSG: fn(c_int, *mut mmsghdr, c_uint, c_int) -> c_int,
            fd, messages, count, flags);
    }
    let mut sent = 0;
    while sent < count {
        // SAFETY: the program vouches for `count` messages.
        let message = unsafe { &mut *messages.add(sent as usize) };
        // SAFETY: as above.
        let taken = unsafe { sendmsg(fd, &raw const message.msg_hdr, flags) };
        let Ok(taken) = c_uint::try_from(taken) else { break };
        message.msg_len = taken;
        sent += 1;
    }
    if sent == 0 && count > 0 { -1 } else { c_int::try_from(sent).unwrap_or(c_int::MAX) }
}
