//! The functions that programs call in place of libc's. Each first finds out whether this is AF_VSOCK: by the address or
//! the family if there is one, else by the socket's state (`state`). All other calls go to libc unchanged.

mod data;
mod files;
mod sockets;

use core::ffi::c_int;

use vsock_client::Socket;

use crate::state;
use crate::sys::{Answer, Errno, Fd, errno, set_errno};

/// Ends a call the way C does: -1 and `errno`, or the result and `errno` as it was.
fn c_return<T: From<i8>>(answer: Answer<T>) -> T {
    answer.unwrap_or_else(|Errno(error)| {
        set_errno(error);
        T::from(-1)
    })
}

/// The state of a socket of ours.
fn ours(fd: c_int) -> Option<Socket> {
    state::load(Fd(fd))
}

/// Passes the call on to the real function of libc.
macro_rules! pass {
    ($real:ident: fn($($kind:ty),*) -> $result:ty, $($argument:expr),*) => {{
        type Function = unsafe extern "C" fn($($kind),*) -> $result;
        // SAFETY: this is the C function's type.
        match unsafe { crate::real_libc::$real.get::<Function>() } {
            // SAFETY: the program vouches for its own arguments.
            Some(function) => unsafe { function($($argument),*) },
            None => crate::hooks::c_return(Err(crate::sys::Errno(libc::ENOSYS))),
        }
    }};
}
use pass;

/// Runs our part of a call with the program's `errno` kept unless it fails.
fn keep_errno<T>(part: impl FnOnce() -> T) -> T {
    let saved = errno();
    let result = part();
    set_errno(saved);
    result
}
