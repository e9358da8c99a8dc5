//! The real functions of libc, or those of another library preloaded after ours (RTLD_NEXT).
//!
//! They are looked up when this library is loaded: a later look-up could run in a signal handler.

use core::ffi::{CStr, c_void};
use core::mem::transmute_copy;
use core::sync::atomic::{AtomicPtr, Ordering};

/// A function that this library replaces.
pub(crate) struct Function {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Function {
    const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// The function, as a pointer of type `F`; `None` if no later library has it.
    ///
    /// # Safety
    /// `F` is the type of the C function of this name.
    pub(crate) unsafe fn get<F: Copy>(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let mut found = self.found.load(Ordering::Relaxed);
        if found.is_null() {
            // SAFETY: the name ends with NUL.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.found.store(found, Ordering::Relaxed);
        }
        // SAFETY: it is not null, and of type `F`, says the caller.
        (!found.is_null()).then(|| unsafe { transmute_copy(&found) })
    }
}

macro_rules! functions {
    ($($constant:ident = $name:literal,)*) => {
        $(pub(crate) static $constant: Function = Function::new($name);)*

        /// Looks all of them up.
        pub(crate) fn find_all() {
            $(
                // SAFETY: the pointer is not called here.
                let _ = unsafe { $constant.get::<*mut c_void>() };
            )*
        }
    };
}

functions! {
    ACCEPT = c"accept",
    ACCEPT4 = c"accept4",
    BIND = c"bind",
    CONNECT = c"connect",
    GETPEERNAME = c"getpeername",
    GETSOCKNAME = c"getsockname",
    GETSOCKOPT = c"getsockopt",
    IOCTL = c"ioctl",
    LISTEN = c"listen",
    OPEN = c"open",
    OPEN64 = c"open64",
    OPENAT = c"openat",
    OPENAT64 = c"openat64",
    OPEN_2 = c"__open_2",
    OPEN64_2 = c"__open64_2",
    OPENAT_2 = c"__openat_2",
    OPENAT64_2 = c"__openat64_2",
    READ = c"read",
    READ_CHK = c"__read_chk",
    READV = c"readv",
    RECV = c"recv",
    RECV_CHK = c"__recv_chk",
    RECVFROM = c"recvfrom",
    RECVFROM_CHK = c"__recvfrom_chk",
    RECVMMSG = c"recvmmsg",
    RECVMSG = c"recvmsg",
    SEND = c"send",
    SENDMMSG = c"sendmmsg",
    SENDMSG = c"sendmsg",
    SENDTO = c"sendto",
    SETSOCKOPT = c"setsockopt",
    SHUTDOWN = c"shutdown",
    SOCKET = c"socket",
    SOCKETPAIR = c"socketpair",
    WRITE = c"write",
    WRITEV = c"writev",
}
