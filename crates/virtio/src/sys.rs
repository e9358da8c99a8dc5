//! What is asked of the kernel about descriptors: who is at the other end, what sort of file it is, how much is unread; and
//! signals on them. Where no library has a call in a safe form it is made here; there is no other unsafe code in this
//! crate.

mod aio;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketType, sockopt};
use vmm_sys_util::eventfd::EventFd;

/// Whether a Unix socket takes descriptors, since Linux 6.16; `libc` has it for one architecture only.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Who is at the other end of a Unix socket, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id; 0 when the process is not visible in our pid namespace.
    pub pid: u32,
    /// Effective user id when it connected.
    pub uid: u32,
    /// Effective group id when it connected.
    pub gid: u32,
}

impl PeerCredentials {
    /// Asks the kernel who connected `socket` (`SO_PEERCRED`).
    ///
    /// Not through rustix: its process id cannot be zero, and zero is what a peer in another pid namespace has.
    pub fn of(socket: BorrowedFd<'_>) -> std::io::Result<Self> {
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "three words are no more than 12 bytes"
        )]
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: both pointers are to live locals, and `length` is the size of the first; the kernel writes no more
        // than that, and any bytes are a valid `ucred`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { pid: u32::try_from(peer.pid).unwrap_or(0), uid: peer.uid, gid: peer.gid })
    }
}

/// The process that connected `socket`, as a pidfd (`SO_PEERPIDFD`). Before Linux 6.5 there is none.
#[must_use]
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut len: libc::socklen_t = size_of_val(&fd).try_into().ok()?;
    // SAFETY: the kernel writes at most `len` bytes to `fd`, which has that many.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    if outcome != 0 || fd < 0 {
        return None;
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else knows.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets nobody send descriptors to a Unix socket (`SO_PASSRIGHTS` off): who tries gets EPERM. Connections that come in on a
/// listening socket begin with what it has. False: the kernel cannot, as before Linux 6.16.
///
/// # Errors
/// It is no Unix socket.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> std::io::Result<bool> {
    let off: libc::c_int = 0;
    #[expect(clippy::cast_possible_truncation, reason = "an int has 4 bytes")]
    let len = size_of_val(&off) as libc::socklen_t;
    // SAFETY: the pointer is to a live local of `len` bytes, which the kernel reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            len,
        )
    };
    match result {
        0 => Ok(true),
        _ => match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
            error => Err(error),
        },
    }
}

/// Whether descriptors can be sent to a Unix socket, which is so unless [`refuse_descriptors`] was called.
#[must_use]
pub fn takes_descriptors(socket: BorrowedFd<'_>) -> bool {
    let mut is_on: libc::c_int = 1;
    #[expect(clippy::cast_possible_truncation, reason = "an int has 4 bytes")]
    let mut len = size_of_val(&is_on) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `is_on`, which has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw mut is_on).cast(),
            &raw mut len,
        )
    };
    result != 0 || is_on != 0
}

/// Bytes in a socket's send buffer that the other side has not read, what the kernel adds to them included (SIOCOUTQ,
/// unix(7)).
#[must_use]
pub fn unread(fd: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: this request writes one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Whether who has the other end of a connected socket has shut down its reading half, or closed it. Nothing is sent: where
/// data would still be taken, or the socket is full, the kernel finds that out before it looks at the bytes, which lie nowhere.
#[must_use]
pub fn is_read_no_more(fd: BorrowedFd<'_>) -> bool {
    let nowhere = std::ptr::without_provenance::<libc::c_void>(1);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel answers EFAULT to memory that is not there; the first page never is.
    let result = unsafe { libc::send(fd.as_raw_fd(), nowhere, 1, flags) };
    result < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPIPE)
}

pub(crate) use aio::signal_at_once;
pub use aio::{check as check_signals, prepare as prepare_signals};

/// Whether an fd is an eventfd: what the worker may touch of a front end's. The kernel has no call that says it without a
/// side effect; the name of the file is the kernel's own, and no file with a path has such a name.
///
/// # Errors
/// There is no `/proc` to tell.
pub(crate) fn is_eventfd(fd: impl AsFd) -> std::io::Result<bool> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let name = rustix::fs::readlink(path, Vec::new())?;
    Ok(name.as_bytes() == b"anon_inode:[eventfd]")
}

/// Whether an fd is one of those that User-Mode Linux is signalled on: a pipe, or a Unix stream socket.
pub(crate) fn is_pipe_or_stream(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    if sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX) {
        return sockopt::socket_type(fd) == Ok(SocketType::STREAM);
    }
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

/// Signals on an eventfd, pipe or socket. One that is full has a signal waiting already.
///
/// The other side shares the open file description and may read from it: a thread that waits in read(2) would fail
/// with EAGAIN if we set `O_NONBLOCK`, and the other side can take that back. So we look for room before each write. The
/// other side can make this wait all the same: it fills the file at that very moment, or holds the lock of a pipe. So this is for
/// threads that serve that one other side; where others would wait too, it is [`signal_at_once`].
pub(crate) fn signal(fd: impl AsFd) -> std::io::Result<()> {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut room = [PollFd::new(&fd, PollFlags::OUT)];
    retry_on_intr(|| poll(&mut room, Some(&at_once)))?;
    if !room[0].revents().contains(PollFlags::OUT) {
        return Ok(());
    }
    match rustix::io::write(fd.as_fd(), &1_u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The descriptor of an eventfd that a library has made.
pub(crate) fn owned(eventfd: EventFd) -> OwnedFd {
    // SAFETY: `into_raw_fd` gives up the only owner of an open fd, and nothing else has it.
    unsafe { OwnedFd::from_raw_fd(eventfd.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::io::{read, write};

    use super::*;

    /// Signals on `fd`, which nobody empties: fails if that waits.
    fn signal_in_time(fd: OwnedFd) -> OwnedFd {
        let (done, over) = channel();
        std::thread::spawn(move || {
            signal(&fd).unwrap();
            done.send(fd).unwrap();
        });
        over.recv_timeout(Duration::from_secs(10)).expect("a signal does not wait")
    }

    /// Writes until there is no room.
    fn fill(fd: &OwnedFd) {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        while poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&at_once)).unwrap() > 0 {
            write(fd, &[1; 8]).unwrap();
        }
    }

    fn is_blocking(fd: &OwnedFd) -> bool {
        !fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
    }

    #[test]
    fn signal_leaves_the_fd_as_the_other_side_made_it() {
        let fd = signal_in_time(eventfd(0, EventfdFlags::empty()).unwrap());
        assert!(is_blocking(&fd));
        let mut count = [0; 8];
        read(&fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn signal_on_a_full_fd_that_blocks_does_not_wait() {
        let counter = eventfd(0, EventfdFlags::empty()).unwrap();
        write(&counter, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (_reader, pipe) = rustix::pipe::pipe().unwrap();
        fill(&pipe);
        let (socket, _other) = UnixStream::pair().unwrap();
        let socket = OwnedFd::from(socket);
        fill(&socket);
        for fd in [counter, pipe, socket] {
            assert!(is_blocking(&fd));
            signal_in_time(fd);
        }
    }

    #[test]
    fn signal_that_nobody_can_receive_is_an_error() {
        let (reader, pipe) = rustix::pipe::pipe().unwrap();
        drop(reader);
        assert!(signal(&pipe).is_err());
    }

    #[test]
    fn eventfd_is_told_from_other_files() {
        assert!(is_eventfd(eventfd(0, EventfdFlags::empty()).unwrap()).unwrap());
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let name =
            std::env::temp_dir().join(format!("anon_inode:[eventfd]-{}", std::process::id()));
        let file = std::fs::File::create(&name).unwrap();
        std::fs::remove_file(&name).unwrap();
        for fd in [pipe, socket.into(), epoll.unwrap(), file.into()] {
            assert!(!is_eventfd(fd).unwrap());
        }
    }

    #[test]
    fn pipe_or_stream_is_told_from_other_files() {
        let (_reader, pipe) = rustix::pipe::pipe().unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(is_pipe_or_stream(pipe) && is_pipe_or_stream(stream));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let counter = eventfd(0, EventfdFlags::empty()).unwrap();
        for fd in [OwnedFd::from(tcp), datagrams.into(), counter] {
            assert!(!is_pipe_or_stream(fd));
        }
        for path in ["/proc/self/exe", "/dev/null", "/"] {
            assert!(!is_pipe_or_stream(std::fs::File::open(path).unwrap()), "{path}");
        }
    }
}
