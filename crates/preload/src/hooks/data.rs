//! Hooks of the calls that move data. For a connected socket, and for everything that is not ours, they look at one word of
//! memory (`suspects`) and go on.
//!
//! What needs more: a socket without a stream; MSG_OOB, which a Unix socket knows and AF_VSOCK does not; an address;
//! ancillary data, which AF_VSOCK ignores; an empty message, which it does not send.

use core::ffi::{c_int, c_uint, c_void};

use libc::{iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};

use super::{give, keep_errno, ours, pass};
use crate::calls::data::{refuse_address, require_stream};
use crate::suspects;
use crate::sys::{Answer, Errno, Fd};

/// Checks before data moves; `special` tells that the call itself needs a look. Whether it is ours, if that was found out.
fn check(fd: c_int, special: bool) -> Answer<bool> {
    if !special && !suspects::has(Fd(fd)) {
        return Ok(false);
    }
    keep_errno(|| require_stream(Fd(fd)))
}

/// Also refuses MSG_OOB, which comes first when sending.
fn check_send(fd: c_int, flags: c_int, special: bool) -> Answer<bool> {
    if flags & libc::MSG_OOB != 0 && ours(fd).is_some() {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    check(fd, special)
}

/// Also refuses MSG_OOB, which comes after "not connected" when receiving.
fn check_receive(fd: c_int, flags: c_int, special: bool) -> Answer<bool> {
    let is_oob = flags & libc::MSG_OOB != 0;
    let is_ours = check(fd, special || is_oob)?;
    if is_oob && is_ours { Err(Errno(libc::EOPNOTSUPP)) } else { Ok(is_ours) }
}

/// Whether this is a socket of ours that keeps messages: it does not send empty ones.
fn drops_empty(fd: c_int, is_ours: bool) -> bool {
    is_ours && Fd(fd).kind() == Ok(libc::SOCK_SEQPACKET)
}

macro_rules! unless_refused {
    ($check:expr) => {
        match $check {
            Ok(is_ours) => is_ours,
            Err(error) => return give(Err(error)),
        }
    };
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn read(fd: c_int, at: *mut c_void, len: size_t) -> ssize_t {
    unless_refused!(check(fd, false));
    pass!(READ: fn(c_int, *mut c_void, size_t) -> ssize_t, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn __read_chk(fd: c_int, at: *mut c_void, len: size_t, room: size_t) -> ssize_t {
    unless_refused!(check(fd, false));
    pass!(READ_CHK: fn(c_int, *mut c_void, size_t, size_t) -> ssize_t, fd, at, len, room)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    unless_refused!(check(fd, false));
    pass!(READV: fn(c_int, *const iovec, c_int) -> ssize_t, fd, parts, count)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn write(fd: c_int, at: *const c_void, len: size_t) -> ssize_t {
    let is_ours = unless_refused!(check(fd, false));
    if len == 0 && drops_empty(fd, is_ours || ours(fd).is_some()) {
        return 0;
    }
    pass!(WRITE: fn(c_int, *const c_void, size_t) -> ssize_t, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    unless_refused!(check(fd, false));
    pass!(WRITEV: fn(c_int, *const iovec, c_int) -> ssize_t, fd, parts, count)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recv(fd: c_int, at: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    unless_refused!(check_receive(fd, flags, false));
    pass!(RECV: fn(c_int, *mut c_void, size_t, c_int) -> ssize_t, fd, at, len, flags)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn __recv_chk(
    fd: c_int,
    at: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    unless_refused!(check_receive(fd, flags, false));
    pass!(RECV_CHK: fn(c_int, *mut c_void, size_t, size_t, c_int) -> ssize_t, fd, at, len, room, flags)
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
    (core::ptr::null_mut(), core::ptr::null_mut())
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
    let is_ours =
        unless_refused!(check_receive(fd, flags, false)) || is_ours_if(fd, !address.is_null());
    // SAFETY: as of this call.
    let (address, address_len) = unsafe { no_address(is_ours, address, address_len) };
    pass!(RECVFROM: fn(c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t,
        fd, at, len, flags, address, address_len)
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
    let is_ours =
        unless_refused!(check_receive(fd, flags, false)) || is_ours_if(fd, !address.is_null());
    // SAFETY: as of this call.
    let (address, address_len) = unsafe { no_address(is_ours, address, address_len) };
    pass!(RECVFROM_CHK: fn(c_int, *mut c_void, size_t, size_t, c_int, *mut sockaddr, *mut socklen_t)
        -> ssize_t, fd, at, len, room, flags, address, address_len)
}

/// Whether a socket is ours, asked only `if` it matters.
fn is_ours_if(fd: c_int, matters: bool) -> bool {
    matters && ours(fd).is_some()
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the program vouches for its message.
    let wants_address = !message.is_null() && unsafe { !(*message).msg_name.is_null() };
    let is_ours = unless_refused!(check_receive(fd, flags, false)) || is_ours_if(fd, wants_address);
    if !(is_ours && wants_address) {
        return pass!(RECVMSG: fn(c_int, *mut msghdr, c_int) -> ssize_t, fd, message, flags);
    }
    // SAFETY: as above.
    let name = unsafe { core::mem::replace(&mut (*message).msg_name, core::ptr::null_mut()) };
    let result = pass!(RECVMSG: fn(c_int, *mut msghdr, c_int) -> ssize_t, fd, message, flags);
    // SAFETY: as above.
    unsafe {
        (*message).msg_name = name;
        (*message).msg_namelen = 0;
    }
    result
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    unless_refused!(check_receive(fd, flags, false));
    pass!(RECVMMSG: fn(c_int, *mut mmsghdr, c_uint, c_int, *mut timespec) -> c_int,
        fd, messages, count, flags, timeout)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn send(fd: c_int, at: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    let is_ours = unless_refused!(check_send(fd, flags, len == 0));
    if len == 0 && drops_empty(fd, is_ours) {
        return 0;
    }
    pass!(SEND: fn(c_int, *const c_void, size_t, c_int) -> ssize_t, fd, at, len, flags)
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
    if !address.is_null()
        && let Some(note) = ours(fd)
    {
        let is_oob = flags & libc::MSG_OOB != 0;
        let refused =
            if is_oob { Err(Errno(libc::EOPNOTSUPP)) } else { refuse_address(Fd(fd), note) };
        return give(refused.map(|_| 0));
    }
    let is_ours = unless_refused!(check_send(fd, flags, len == 0));
    if len == 0 && drops_empty(fd, is_ours) {
        return 0;
    }
    pass!(SENDTO: fn(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t,
        fd, at, len, flags, address, address_len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    if message.is_null() {
        return give(Err(Errno(libc::EFAULT)));
    }
    // SAFETY: the program vouches for its message.
    let mut plain = unsafe { message.read() };
    let is_special = !plain.msg_name.is_null() || plain.msg_controllen > 0;
    if !plain.msg_name.is_null()
        && flags & libc::MSG_OOB == 0
        && let Some(note) = ours(fd)
    {
        return give(refuse_address(Fd(fd), note).map(|_| 0));
    }
    if unless_refused!(check_send(fd, flags, is_special)) {
        plain.msg_control = core::ptr::null_mut();
        plain.msg_controllen = 0;
        return pass!(SENDMSG: fn(c_int, *const msghdr, c_int) -> ssize_t, fd, &raw const plain, flags);
    }
    pass!(SENDMSG: fn(c_int, *const msghdr, c_int) -> ssize_t, fd, message, flags)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    unless_refused!(check_send(fd, flags, false));
    pass!(SENDMMSG: fn(c_int, *mut mmsghdr, c_uint, c_int) -> c_int, fd, messages, count, flags)
}
