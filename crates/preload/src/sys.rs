//! System calls on our own sockets, as functions that return their error.
//!
//! They go to the kernel directly and not through libc's functions of the same names: those are the ones we stand in
//! front of, so a call to one would come back to us.

use core::ffi::{c_int, c_long, c_void};
use core::mem::size_of;

use libc::{sockaddr_un, socklen_t};

/// An error number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) c_int);

/// What a call gives, or why it failed.
pub(crate) type Answer<T> = Result<T, Errno>;

/// A descriptor that may be a socket of ours. It belongs to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fd(pub(crate) c_int);

/// The program's `errno`.
pub(crate) fn errno() -> c_int {
    // SAFETY: libc's pointer to this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// Sets the program's `errno`.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Ends the process.
#[cfg(panic = "abort")]
pub(crate) fn abort() -> ! {
    // SAFETY: abort has no preconditions.
    unsafe { libc::abort() }
}

/// A system call; `errno` keeps its value, a failure is in the answer.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let saved = errno();
        // SAFETY: each caller passes what this system call takes; its pointers are to live objects of the stated size.
        let result: c_long = unsafe { libc::syscall($number $(, $argument)*) };
        if result < 0 {
            let failure = Errno(errno());
            set_errno(saved);
            Err(failure)
        } else {
            Ok(result)
        }
    }};
}

fn as_int(value: c_long) -> c_int {
    // Descriptors and flag words are ints: the kernel only returns them as longs.
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

fn as_size(value: c_long) -> usize {
    usize::try_from(value).unwrap_or(0) // `call!` has taken the negative ones
}

fn size<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(socklen_t::MAX)
}

impl Fd {
    /// A new Unix socket; `kind` may have SOCK_NONBLOCK and SOCK_CLOEXEC or'ed in.
    pub(crate) fn unix_socket(kind: c_int) -> Answer<Self> {
        call!(libc::SYS_socket, libc::AF_UNIX, kind, 0).map(|fd| Self(as_int(fd)))
    }

    /// Closes a descriptor that we made and the program has not seen.
    pub(crate) fn close(self) {
        let _ = call!(libc::SYS_close, self.0); // nothing can be done about a failure
    }

    /// Connects to a Unix address of `len` bytes.
    pub(crate) fn connect_unix(self, address: &sockaddr_un, len: usize) -> Answer<()> {
        call!(libc::SYS_connect, self.0, &raw const *address, len).map(|_| ())
    }

    /// Sends without blocking and without SIGPIPE.
    pub(crate) fn send(self, bytes: &[u8]) -> Answer<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let nobody = core::ptr::null::<c_void>();
        call!(libc::SYS_sendto, self.0, bytes.as_ptr(), bytes.len(), flags, nobody, 0).map(as_size)
    }

    /// Receives without blocking; 0 is the end of file.
    pub(crate) fn receive(self, bytes: &mut [u8]) -> Answer<usize> {
        let nobody = core::ptr::null_mut::<c_void>();
        let (at, len, flags) = (bytes.as_mut_ptr(), bytes.len(), libc::MSG_DONTWAIT);
        call!(libc::SYS_recvfrom, self.0, at, len, flags, nobody, nobody).map(as_size)
    }

    /// Receives a message with what is attached to it, and waits for it as the socket is set to.
    pub(crate) fn receive_message(self, message: &mut libc::msghdr, flags: c_int) -> Answer<usize> {
        call!(libc::SYS_recvmsg, self.0, &raw mut *message, flags).map(as_size)
    }

    /// Shuts down one direction or both.
    pub(crate) fn shut_down(self, how: c_int) -> Answer<()> {
        call!(libc::SYS_shutdown, self.0, how).map(|_| ())
    }

    /// Waits for `events`; whether one came within `milliseconds`. A signal gives EINTR, always.
    pub(crate) fn poll(self, events: i16, milliseconds: u64) -> Answer<bool> {
        let mut entry = libc::pollfd { fd: self.0, events, revents: 0 };
        let timeout = timespec(milliseconds);
        let no_mask = core::ptr::null::<c_void>();
        call!(libc::SYS_ppoll, &raw mut entry, 1, &raw const timeout, no_mask, 0).map(|n| n > 0)
    }

    /// Reads an option of exactly the size of `T`.
    pub(crate) fn option<T: Copy + Default>(self, level: c_int, name: c_int) -> Answer<T> {
        let mut value = T::default();
        let mut len = size::<T>();
        call!(libc::SYS_getsockopt, self.0, level, name, &raw mut value, &raw mut len)
            .map(|_| value)
    }

    /// Reads an option whose length is counted by the option's own rules, such as in instructions.
    pub(crate) fn counted_option<T>(self, name: c_int, into: &mut [T]) -> Answer<usize> {
        let mut len = socklen_t::try_from(into.len()).unwrap_or(0);
        let at = into.as_mut_ptr();
        call!(libc::SYS_getsockopt, self.0, libc::SOL_SOCKET, name, at, &raw mut len)
            .map(|_| usize::try_from(len).unwrap_or(0))
    }

    /// Sets an option.
    pub(crate) fn set_option<T>(self, name: c_int, value: &T) -> Answer<()> {
        let (at, len) = (&raw const *value, size::<T>());
        call!(libc::SYS_setsockopt, self.0, libc::SOL_SOCKET, name, at, len).map(|_| ())
    }

    /// A descriptor that gives whoever receives it nothing.
    pub(crate) fn blank() -> Answer<Self> {
        call!(libc::SYS_eventfd2, 0, libc::EFD_CLOEXEC).map(|fd| Self(as_int(fd)))
    }

    /// Whether this is an AF_VSOCK socket of the kernel's, which a program can only have been given.
    pub(crate) fn is_of_the_kernel(self) -> bool {
        self.option(libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_VSOCK)
    }

    /// Whether this is a character device.
    pub(crate) fn is_device(self) -> bool {
        // SAFETY: all zeros is a valid stat.
        let mut stat: libc::stat = unsafe { core::mem::zeroed() };
        let saved = errno();
        // SAFETY: fstat writes one stat. libc's own is used, as the system call's layout differs; it is not hooked.
        let result = unsafe { libc::fstat(self.0, &raw mut stat) };
        set_errno(saved);
        result == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFCHR
    }

    fn flags(self) -> c_int {
        call!(libc::SYS_fcntl, self.0, libc::F_GETFL).map_or(0, as_int)
    }

    /// Whether the program made this descriptor non-blocking.
    pub(crate) fn is_nonblocking(self) -> bool {
        self.flags() & libc::O_NONBLOCK != 0
    }

    /// Makes the descriptor non-blocking or blocking.
    pub(crate) fn set_nonblocking(self, nonblocking: bool) -> Answer<()> {
        let flags = self.flags() & !libc::O_NONBLOCK;
        let flags = if nonblocking { flags | libc::O_NONBLOCK } else { flags };
        call!(libc::SYS_fcntl, self.0, libc::F_SETFL, flags).map(|_| ())
    }
}

/// Milliseconds of a clock that only goes forward.
pub(crate) fn now_ms() -> u64 {
    let (seconds, nanoseconds) = clock(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC);
    seconds * 1000 + nanoseconds / 1_000_000
}

/// Length of the kernel's scheduler tick in microseconds, to which it rounds timeouts up.
pub(crate) fn tick_us() -> u64 {
    (clock(libc::SYS_clock_getres, libc::CLOCK_MONOTONIC_COARSE).1 / 1000).max(1)
}

fn clock(number: c_long, clock: libc::clockid_t) -> (u64, u64) {
    let mut time = timespec(0);
    let _ = call!(number, clock, &raw mut time); // both clocks exist everywhere
    (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0))
}

fn timespec(milliseconds: u64) -> libc::timespec {
    // SAFETY: all zeros is a valid timespec.
    let mut time: libc::timespec = unsafe { core::mem::zeroed() };
    time.tv_sec = (milliseconds / 1000).try_into().unwrap_or(libc::time_t::MAX);
    time.tv_nsec = (milliseconds % 1000 * 1_000_000).try_into().unwrap_or(0);
    time
}

/// Writes to standard error.
pub(crate) fn complain(text: &[u8]) {
    let _ = call!(libc::SYS_write, libc::STDERR_FILENO, text.as_ptr(), text.len());
}

/// Lets others run.
pub(crate) fn give_way() {
    let _ = call!(libc::SYS_sched_yield);
}
