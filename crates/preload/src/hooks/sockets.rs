//! Hooks of the socket calls that move no data.

use core::ffi::{c_int, c_void};

use libc::{sockaddr, socklen_t};

use super::{c_return, ours, pass};
use crate::sys::{Answer, Errno, Fd};
use crate::{address, calls, connecting, setup};

/// ENODEV for an AF_VSOCK socket of the kernel, which this process must have inherited or received.
fn refuse_kernels(fd: c_int) -> Answer<()> {
    if Fd(fd).is_of_the_kernel() {
        setup::explain(b"an AF_VSOCK socket of the kernel's is not used");
        return Err(Errno(libc::ENODEV));
    }
    Ok(())
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int {
    if family == libc::AF_VSOCK {
        return c_return(calls::socket(kind, protocol).map(|fd| fd.0));
    }
    pass!(SOCKET: fn(c_int, c_int, c_int) -> c_int, family, kind, protocol)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn socketpair(
    family: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    if family == libc::AF_VSOCK {
        return c_return(Err(Errno(libc::EOPNOTSUPP)));
    }
    pass!(SOCKETPAIR: fn(c_int, c_int, c_int, *mut c_int) -> c_int, family, kind, protocol, pair)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn bind(fd: c_int, at: *const sockaddr, len: socklen_t) -> c_int {
    if let Some(socket) = ours(fd) {
        if address::is_too_long(len) {
            return c_return(Err(Errno(libc::EINVAL)));
        }
        // SAFETY: the program vouches for its address.
        let address = unsafe { address::read(at.cast(), len) };
        return c_return(
            address.and_then(|address| calls::bind(Fd(fd), socket, address)).map(|()| 0),
        );
    }
    if let Err(error) = refuse_kernels(fd) {
        return c_return(Err(error));
    }
    pass!(BIND: fn(c_int, *const sockaddr, socklen_t) -> c_int, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn connect(fd: c_int, at: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the program vouches for its address.
    let family = unsafe { address::family(at.cast(), len) };
    // A connect to an Internet address passes without a check: the kernel refuses it on a Unix socket.
    if !matches!(family, Some(libc::AF_INET | libc::AF_INET6)) {
        if let Some(socket) = ours(fd) {
            if address::is_too_long(len) {
                return c_return(Err(Errno(libc::EINVAL)));
            }
            // SAFETY: as above.
            let address = unsafe { address::read(at.cast(), len) };
            // SAFETY: an address that could be read is as long as it must be.
            let to_host = address.is_ok() && unsafe { address::is_to_host(at.cast()) };
            return c_return(connecting::connect(Fd(fd), socket, address, to_host).map(|()| 0));
        }
        if let Err(error) = refuse_kernels(fd) {
            return c_return(Err(error));
        }
    }
    pass!(CONNECT: fn(c_int, *const sockaddr, socklen_t) -> c_int, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    if let Some(socket) = ours(fd) {
        return c_return(calls::listen(Fd(fd), socket, backlog).map(|()| 0));
    }
    if let Err(error) = refuse_kernels(fd) {
        return c_return(Err(error));
    }
    pass!(LISTEN: fn(c_int, c_int) -> c_int, fd, backlog)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn accept(fd: c_int, at: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: as of this call.
    if let Some(answer) = unsafe { accept_ours(fd, at.cast(), len, 0) } {
        return c_return(answer);
    }
    pass!(ACCEPT: fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn accept4(
    fd: c_int,
    at: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: as of this call.
    if let Some(answer) = unsafe { accept_ours(fd, at.cast(), len, flags) } {
        return c_return(answer);
    }
    pass!(ACCEPT4: fn(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int, fd, at, len, flags)
}

/// Accepts on one of our listeners; `None` if it is something else.
unsafe fn accept_ours(
    fd: c_int,
    at: *mut c_void,
    len: *mut socklen_t,
    flags: c_int,
) -> Option<Answer<c_int>> {
    let Some(socket) = ours(fd) else { return refuse_kernels(fd).err().map(Err) };
    Some(calls::accept::accept(Fd(fd), socket, flags).and_then(|(made, theirs)| {
        if !at.is_null() {
            // SAFETY: the program vouches for its own pointers.
            unsafe { address::write(theirs, at, len) }.inspect_err(|_| made.close())?;
        }
        Ok(made.0)
    }))
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn getsockname(fd: c_int, at: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if let Some(socket) = ours(fd) {
        let address = calls::our_address(Fd(fd), socket);
        // SAFETY: the program vouches for its own pointers.
        return c_return(
            address.and_then(|it| unsafe { address::write(it, at.cast(), len) }).map(|()| 0),
        );
    }
    pass!(GETSOCKNAME: fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn getpeername(fd: c_int, at: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if let Some(socket) = ours(fd) {
        let address = calls::their_address(Fd(fd), socket);
        // SAFETY: the program vouches for its own pointers.
        let written = address.and_then(|(theirs, to_host)| unsafe {
            address::write_flagged(theirs, to_host, at.cast(), len)
        });
        return c_return(written.map(|()| 0));
    }
    pass!(GETPEERNAME: fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int, fd, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    if let Some(socket) = ours(fd) {
        return c_return(calls::shut_down(Fd(fd), socket, how).map(|()| 0));
    }
    pass!(SHUTDOWN: fn(c_int, c_int) -> c_int, fd, how)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    at: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if let Some(socket) = ours(fd) {
        match calls::options::get(Fd(fd), socket, level, name) {
            Ok(None) => {}
            Ok(Some(value)) => {
                // SAFETY: the program vouches for its own pointers.
                return c_return(unsafe { calls::options::write(value, at, len) }.map(|()| 0));
            }
            Err(error) => return c_return(Err(error)),
        }
    }
    pass!(GETSOCKOPT: fn(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
        fd, level, name, at, len)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    at: *const c_void,
    len: socklen_t,
) -> c_int {
    if let Some(socket) = ours(fd) {
        // SAFETY: the program vouches for its value.
        match unsafe { calls::options::set(Fd(fd), socket, (level, name), at, len) } {
            Ok(false) => {}
            done => return c_return(done.map(|_| 0)),
        }
    }
    pass!(SETSOCKOPT: fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
        fd, level, name, at, len)
}
