//! System calls on our own sockets, as functions that return their error.
//!
//! They do not use libc's functions of the same names: this library replaces those, so a call to one would come back to
//! it.

use core::ffi::{c_int, c_long, c_void};
use core::mem::size_of;
use core::sync::atomic::{AtomicU64, Ordering};

use libc::{sockaddr_un, socklen_t};

pub(crate) use vsock_client::Errno;

/// What a call returns, or its errno.
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

/// A system call. It returns its errno and leaves the program's `errno` alone.
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

    /// Gives the socket a Unix address of `len` bytes.
    pub(crate) fn bind_unix(self, address: &sockaddr_un, len: usize) -> Answer<()> {
        call!(libc::SYS_bind, self.0, &raw const *address, len).map(|_| ())
    }

    /// The Unix address that the socket has, and its length.
    pub(crate) fn unix_name(self) -> Answer<(sockaddr_un, usize)> {
        // SAFETY: all zeros is a valid sockaddr_un.
        let mut address: sockaddr_un = unsafe { core::mem::zeroed() };
        let mut len = size::<sockaddr_un>();
        call!(libc::SYS_getsockname, self.0, &raw mut address, &raw mut len)
            .map(|_| (address, usize::try_from(len).unwrap_or(0)))
    }

    /// SO_COOKIE: the number that the kernel has given this socket and no other.
    pub(crate) fn cookie(self) -> Answer<u64> {
        self.option(libc::SOL_SOCKET, libc::SO_COOKIE)
    }

    /// The process at the other end: the one that listened, or made the pair.
    pub(crate) fn peer_pid(self) -> Answer<c_int> {
        // SAFETY: all zeros is a valid ucred.
        let mut peer: libc::ucred = unsafe { core::mem::zeroed() };
        let mut len = size::<libc::ucred>();
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        call!(libc::SYS_getsockopt, self.0, level, name, &raw mut peer, &raw mut len)
            .map(|_| peer.pid)
    }

    /// Bytes that we have sent and the other end has not read, with the kernel's overhead.
    pub(crate) fn unsent(self) -> Answer<c_int> {
        let mut bytes: c_int = 0;
        call!(libc::SYS_ioctl, self.0, libc::TIOCOUTQ, &raw mut bytes).map(|_| bytes)
    }

    /// Access and modification time of the inode, in seconds and nanoseconds.
    pub(crate) fn times(self) -> Answer<[(i64, u32); 2]> {
        let stat = self.stat()?;
        let nanoseconds = |value| u32::try_from(value).unwrap_or(0);
        let access = (stat.st_atime, nanoseconds(stat.st_atime_nsec));
        Ok([access, (stat.st_mtime, nanoseconds(stat.st_mtime_nsec))])
    }

    /// Sets both times.
    pub(crate) fn set_times(self, times: [(i64, u32); 2]) -> Answer<()> {
        let times = times.map(|(seconds, nanoseconds)| {
            let mut time = timespec(0);
            (time.tv_sec, time.tv_nsec) = (seconds, nanoseconds.into());
            time
        });
        let no_path = core::ptr::null::<c_void>();
        call!(libc::SYS_utimensat, self.0, no_path, times.as_ptr(), 0).map(|_| ())
    }

    fn stat(self) -> Answer<libc::stat> {
        // SAFETY: all zeros is a valid stat.
        let mut stat: libc::stat = unsafe { core::mem::zeroed() };
        let saved = errno();
        // SAFETY: fstat writes one stat. libc's own is used, as the system call's layout differs; it is not hooked.
        let result = unsafe { libc::fstat(self.0, &raw mut stat) };
        let failure = Errno(errno());
        set_errno(saved);
        if result == 0 { Ok(stat) } else { Err(failure) }
    }

    /// Sends without blocking and without SIGPIPE.
    pub(crate) fn send(self, bytes: &[u8]) -> Answer<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let nobody = core::ptr::null::<c_void>();
        call!(libc::SYS_sendto, self.0, bytes.as_ptr(), bytes.len(), flags, nobody, 0).map(as_size)
    }

    /// Receives without blocking; 0 is the end of file.
    pub(crate) fn receive(self, bytes: &mut [u8]) -> Answer<usize> {
        self.receive_with(bytes, 0)
    }

    /// Receives as `receive` does, and leaves the data in the socket.
    pub(crate) fn peek(self, bytes: &mut [u8]) -> Answer<usize> {
        self.receive_with(bytes, libc::MSG_PEEK)
    }

    fn receive_with(self, bytes: &mut [u8], flags: c_int) -> Answer<usize> {
        let nobody = core::ptr::null_mut::<c_void>();
        let (at, len, flags) = (bytes.as_mut_ptr(), bytes.len(), flags | libc::MSG_DONTWAIT);
        call!(libc::SYS_recvfrom, self.0, at, len, flags, nobody, nobody).map(as_size)
    }

    /// Receives a message with its ancillary data. Whether and how long it waits is the socket's setting.
    pub(crate) fn receive_message(self, message: &mut libc::msghdr, flags: c_int) -> Answer<usize> {
        call!(libc::SYS_recvmsg, self.0, &raw mut *message, flags).map(as_size)
    }

    /// Waits for data or the end of file. How long is the socket's setting.
    pub(crate) fn await_message(self) -> Answer<()> {
        let (mut byte, nobody) = (0u8, core::ptr::null_mut::<c_void>());
        let at = &raw mut byte;
        call!(libc::SYS_recvfrom, self.0, at, 1, libc::MSG_PEEK, nobody, nobody).map(|_| ())
    }

    /// Locks the socket for this process (F_WRLCK) or unlocks it (F_UNLCK), without waiting.
    pub(crate) fn lock(self, kind: c_int) -> Answer<()> {
        // SAFETY: all zeros is a valid flock.
        let mut lock: libc::flock = unsafe { core::mem::zeroed() };
        lock.l_type = libc::c_short::try_from(kind).unwrap_or(0);
        call!(libc::SYS_fcntl, self.0, libc::F_SETLK, &raw const lock).map(|_| ())
    }

    /// Replaces the descriptor's socket by one that is never readable and never hangs up: a datagram socket without a name.
    pub(crate) fn silence(self) -> Answer<()> {
        let kept = self.flags() & libc::O_NONBLOCK; // SOCK_NONBLOCK has the same value
        let is_cloexec = call!(libc::SYS_fcntl, self.0, libc::F_GETFD)? != 0;
        let flags = if is_cloexec { libc::O_CLOEXEC } else { 0 };
        let silent = Self::unix_socket(libc::SOCK_DGRAM | kept)?;
        let placed = call!(libc::SYS_dup3, silent.0, self.0, flags).map(|_| ());
        silent.close();
        placed
    }

    /// Takes this descriptor out of every epoll instance that the process has among the lowest `count` descriptors.
    pub(crate) fn leave_epoll(self, count: c_int) {
        let no_event = core::ptr::null::<libc::epoll_event>();
        for instance in 0..count {
            // Fails if this is no epoll instance or does not watch the descriptor.
            let _ = call!(libc::SYS_epoll_ctl, instance, libc::EPOLL_CTL_DEL, self.0, no_event);
        }
    }

    /// Shuts down one direction or both.
    pub(crate) fn shut_down(self, how: c_int) -> Answer<()> {
        call!(libc::SYS_shutdown, self.0, how).map(|_| ())
    }

    /// Waits up to `milliseconds` for `events`; false if none came. A signal always gives EINTR.
    pub(crate) fn poll(self, events: i16, milliseconds: u64) -> Answer<bool> {
        self.polled(events, milliseconds).map(|events| events != 0)
    }

    /// Lets time pass, whatever is on any descriptor. A signal ends that with EINTR.
    pub(crate) fn pause(milliseconds: u64) -> Answer<bool> {
        Self(-1).poll(0, milliseconds)
    }

    /// Whether the other end has been closed, or both directions are shut.
    pub(crate) fn has_hung_up(self) -> bool {
        self.polled(0, 0).is_ok_and(|events| events & libc::POLLHUP != 0)
    }

    fn polled(self, events: i16, milliseconds: u64) -> Answer<i16> {
        let mut entry = libc::pollfd { fd: self.0, events, revents: 0 };
        let timeout = timespec(milliseconds);
        let no_mask = core::ptr::null::<c_void>();
        call!(libc::SYS_ppoll, &raw mut entry, 1, &raw const timeout, no_mask, 0)
            .map(|_| entry.revents)
    }

    /// Reads an option of exactly the size of `T`.
    pub(crate) fn option<T: Copy + Default>(self, level: c_int, name: c_int) -> Answer<T> {
        let mut value = T::default();
        let mut len = size::<T>();
        call!(libc::SYS_getsockopt, self.0, level, name, &raw mut value, &raw mut len)
            .map(|_| value)
    }

    /// Sets an option.
    pub(crate) fn set_option<T>(self, name: c_int, value: &T) -> Answer<()> {
        let (at, len) = (&raw const *value, size::<T>());
        call!(libc::SYS_setsockopt, self.0, libc::SOL_SOCKET, name, at, len).map(|_| ())
    }

    /// A descriptor that is of no use to a process that receives it.
    pub(crate) fn blank() -> Answer<Self> {
        call!(libc::SYS_eventfd2, 0, libc::EFD_CLOEXEC).map(|fd| Self(as_int(fd)))
    }

    /// Whether this is an AF_VSOCK socket of the kernel, which the program must have inherited or received.
    pub(crate) fn is_of_the_kernel(self) -> bool {
        self.option(libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_VSOCK)
    }

    /// Whether this is a character device.
    pub(crate) fn is_device(self) -> bool {
        self.stat().is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFCHR)
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

/// Whether there is a process of this number.
pub(crate) fn is_alive(pid: c_int) -> bool {
    // EPERM: there is one, and we may not signal it.
    !matches!(call!(libc::SYS_kill, pid, 0), Err(Errno(libc::ESRCH)))
}

/// The number of this process.
pub(crate) fn process_id() -> u32 {
    number(call!(libc::SYS_getpid))
}

/// The number of this thread.
pub(crate) fn thread_id() -> u32 {
    number(call!(libc::SYS_gettid))
}

fn number(answer: Answer<c_long>) -> u32 {
    answer.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0) // neither call can fail
}

/// Milliseconds of a clock that only goes forward.
pub(crate) fn now_ms() -> u64 {
    let (seconds, nanoseconds) = clock(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC);
    seconds * 1000 + nanoseconds / 1_000_000
}

/// Nanoseconds of that clock.
pub(crate) fn now_ns() -> u64 {
    let (seconds, nanoseconds) = clock(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC);
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds)
}

/// Length of a tick of the kernel in microseconds. The kernel rounds timeouts up to ticks.
pub(crate) fn tick_us() -> u64 {
    static TICK_US: AtomicU64 = AtomicU64::new(0); // the same as long as the kernel runs
    let mut tick = TICK_US.load(Ordering::Relaxed);
    if tick == 0 {
        tick = (clock(libc::SYS_clock_getres, libc::CLOCK_MONOTONIC_COARSE).1 / 1000).max(1);
        TICK_US.store(tick, Ordering::Relaxed);
    }
    tick
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
pub(crate) fn write_stderr(text: &[u8]) {
    let _ = call!(libc::SYS_write, libc::STDERR_FILENO, text.as_ptr(), text.len());
}

/// How many descriptors the process may have.
pub(crate) fn descriptor_limit() -> c_int {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let no_new = core::ptr::null::<libc::rlimit>();
    let _ = call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, no_new, &raw mut limit);
    c_int::try_from(limit.rlim_cur).unwrap_or(c_int::MAX)
}

/// Lets another thread run.
pub(crate) fn yield_now() {
    let _ = call!(libc::SYS_sched_yield);
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsock_client::{options, transfer};

    #[test]
    fn numbers_of_vsock_client_are_those_of_libc() {
        let errors = [
            (Errno::BADF, libc::EBADF),
            (Errno::AGAIN, libc::EAGAIN),
            (Errno::NOMEM, libc::ENOMEM),
            (Errno::NODEV, libc::ENODEV),
            (Errno::INVAL, libc::EINVAL),
            (Errno::NOTTY, libc::ENOTTY),
            (Errno::RANGE, libc::ERANGE),
            (Errno::PROTO, libc::EPROTO),
            (Errno::MSGSIZE, libc::EMSGSIZE),
            (Errno::NOPROTOOPT, libc::ENOPROTOOPT),
            (Errno::PROTONOSUPPORT, libc::EPROTONOSUPPORT),
            (Errno::SOCKTNOSUPPORT, libc::ESOCKTNOSUPPORT),
            (Errno::OPNOTSUPP, libc::EOPNOTSUPP),
            (Errno::ADDRNOTAVAIL, libc::EADDRNOTAVAIL),
            (Errno::CONNRESET, libc::ECONNRESET),
            (Errno::ISCONN, libc::EISCONN),
            (Errno::NOTCONN, libc::ENOTCONN),
            (Errno::TIMEDOUT, libc::ETIMEDOUT),
            (Errno::ALREADY, libc::EALREADY),
            (Errno::INPROGRESS, libc::EINPROGRESS),
        ];
        assert_eq!(errors.len(), Errno::NAMED.len());
        for ((error, number), (name, named)) in errors.into_iter().zip(Errno::NAMED) {
            assert_eq!((error, number), (*named, error.0), "{name}");
        }
        assert_eq!(transfer::MSG_OOB, libc::MSG_OOB);
        assert_eq!(transfer::MSG_WAITALL, libc::MSG_WAITALL);
        assert_eq!(transfer::MSG_ERRQUEUE, libc::MSG_ERRQUEUE);
        for (how, number) in [(0, libc::SHUT_RD), (1, libc::SHUT_WR), (2, libc::SHUT_RDWR)] {
            assert_eq!(how, number);
        }
        for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
            assert!(vsock_client::calls::create(kind, libc::AF_VSOCK).is_ok());
        }
        let names = [
            ("SO_ERROR", libc::SO_ERROR),
            ("SO_SNDBUF", libc::SO_SNDBUF),
            ("SO_REUSEPORT", libc::SO_REUSEPORT),
            ("SO_PASSCRED", libc::SO_PASSCRED),
            ("SO_RCVLOWAT", libc::SO_RCVLOWAT),
            ("SO_ATTACH_FILTER", libc::SO_ATTACH_FILTER),
            ("SO_DETACH_FILTER", libc::SO_DETACH_FILTER),
            ("SO_ACCEPTCONN", libc::SO_ACCEPTCONN),
            ("SO_PASSSEC", libc::SO_PASSSEC),
            ("SO_PROTOCOL", libc::SO_PROTOCOL),
            ("SO_DOMAIN", libc::SO_DOMAIN),
            ("SO_PEEK_OFF", libc::SO_PEEK_OFF),
            ("SO_LOCK_FILTER", libc::SO_LOCK_FILTER),
            ("SO_MAX_PACING_RATE", libc::SO_MAX_PACING_RATE),
            ("SO_INCOMING_CPU", libc::SO_INCOMING_CPU),
            ("SO_ATTACH_BPF", libc::SO_ATTACH_BPF),
            ("SO_ZEROCOPY", libc::SO_ZEROCOPY),
            ("SO_PASSPIDFD", 76),
        ];
        let table = options::TABLE.iter().filter(|option| option.level == libc::SOL_SOCKET);
        assert_eq!(table.clone().count(), names.len());
        for (option, named) in table.zip(names) {
            assert_eq!((option.name, option.number), named);
        }
        for option in options::TABLE {
            assert!([libc::SOL_SOCKET, libc::AF_VSOCK].contains(&option.level));
            assert!(option.value_len() <= options::VALUE_MAX, "{}", option.name);
        }
    }
}
