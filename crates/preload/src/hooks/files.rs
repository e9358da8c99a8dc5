//! Hooks of `open` for /dev/vsock, which need not exist, and of `ioctl`.
//!
//! In C these take a variable number of arguments. A function with all of them reads the same registers on the
//! architectures of Linux that we build for, whether or not the caller passed the last one.

use core::ffi::{CStr, c_char, c_int, c_ulong};

use libc::mode_t;

use super::{c_return, ours, pass};
use crate::calls;
use crate::calls::options::GET_LOCAL_CID;
use crate::sys::{Answer, Fd};

/// Opens the device, if that is what the path names.
unsafe fn device(path: *const c_char, flags: c_int) -> Option<Answer<c_int>> {
    // SAFETY: a path that is not null ends with NUL.
    let is_it = !path.is_null() && unsafe { CStr::from_ptr(path) } == c"/dev/vsock";
    is_it.then(|| calls::open_device(flags).map(|fd| fd.0))
}

/// The variants of `open` differ in where the path starts and in whether a mode follows.
macro_rules! hook_open {
    ($($name:ident $real:ident($($before:ident: $kind:ty)?; $($mode:ident)?);)*) => {$(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        unsafe extern "C" fn $name(
            $($before: $kind,)?
            path: *const c_char,
            flags: c_int,
            $($mode: mode_t)?
        ) -> c_int {
            // SAFETY: the program vouches for its path.
            if let Some(answer) = unsafe { device(path, flags) } {
                return c_return(answer);
            }
            hook_open!(@pass $real($($before: $kind)?; $($mode)?), path, flags)
        }
    )*};
    (@pass $real:ident($($before:ident: $kind:ty)?;), $path:expr, $flags:expr) => {
        pass!($real: fn($($kind,)? *const c_char, c_int) -> c_int, $($before,)? $path, $flags)
    };
    (@pass $real:ident($($before:ident: $kind:ty)?; $mode:ident), $path:expr, $flags:expr) => {
        pass!($real: fn($($kind,)? *const c_char, c_int, mode_t) -> c_int,
            $($before,)? $path, $flags, $mode)
    };
}

hook_open! {
    open OPEN(; mode);
    open64 OPEN64(; mode);
    __open_2 OPEN_2(;);
    __open64_2 OPEN64_2(;);
    openat OPENAT(folder: c_int; mode);
    openat64 OPENAT64(folder: c_int; mode);
    __openat_2 OPENAT_2(folder: c_int;);
    __openat64_2 OPENAT64_2(folder: c_int;);
}

#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut u32) -> c_int {
    // Most ioctls are for terminals and devices, and pass without a check.
    if matches!(request, libc::FIONREAD | libc::TIOCOUTQ | GET_LOCAL_CID) {
        match calls::options::ioctl(Fd(fd), ours(fd), request) {
            Ok(None) => {}
            Ok(Some(_)) if argument.is_null() => {
                return c_return(Err(crate::sys::Errno(libc::EFAULT)));
            }
            Ok(Some(value)) => {
                // SAFETY: the program vouches for its pointer.
                unsafe { argument.write_unaligned(value) };
                return 0;
            }
            Err(error) => return c_return(Err(error)),
        }
    }
    pass!(IOCTL: fn(c_int, c_ulong, *mut u32) -> c_int, fd, request, argument)
}
