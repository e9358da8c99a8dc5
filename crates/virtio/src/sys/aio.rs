//! Signals on an eventfd in a way that never waits: see docs/decisions/0016-signals-that-cannot-wait.md.
//!
//! A write(2) to an eventfd whose counter is full waits for a reader, and the other side decides whether one ever comes.
//! `O_NONBLOCK` does not help: it belongs to the open file description, which the other side shares. The kernel itself
//! signals an eventfd without waiting when an AIO request is over (`IOCB_FLAG_RESFD`, io_submit(2)), and fails with EINVAL
//! if the file is no eventfd. So a signal is a request that reads no bytes from a file of ours.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;

use rustix::fs::{MemfdFlags, memfd_create};

/// Requests under way at most. Each is over when io_submit returns; what fills is the ring of results, which the kernel
/// makes larger than this. The sum over all processes is limited (`fs.aio-max-nr`).
const REQUESTS: libc::c_int = 64;

/// Results taken in one call.
const RESULTS: usize = 128;

/// IOCB_CMD_PREAD.
const READ: u16 = 0;

/// IOCB_FLAG_RESFD: signal `result` when the request is over.
const SIGNALS_RESULT: u32 = 1;

/// `struct iocb` of linux/aio_abi.h; the first fields are not used.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key_and_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result: u32,
}

/// `struct io_event`.
type Outcome = [u64; 4];

/// An AIO context: its requests are over when they have been submitted.
struct Context {
    id: libc::c_ulong,
    /// Nothing is read from it.
    empty: OwnedFd,
}

impl Context {
    fn new() -> io::Result<Self> {
        let empty = memfd_create("vsock-signal", MemfdFlags::CLOEXEC)?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word to a live local.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &raw mut id) };
        if result == 0 { Ok(Self { id, empty }) } else { Err(io::Error::last_os_error()) }
    }

    fn signal(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let descriptor = |fd: &dyn AsRawFd| fd.as_raw_fd().cast_unsigned();
        let mut request = Request {
            opcode: READ,
            file: descriptor(&self.empty),
            flags: SIGNALS_RESULT,
            result: descriptor(&eventfd),
            ..Request::default()
        };
        match self.submit(&mut request) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.take_results();
                self.submit(&mut request)
            }
            other => other,
        }
    }

    fn submit(&self, request: &mut Request) -> io::Result<()> {
        let mut list = [&raw mut *request];
        // SAFETY: the list has one pointer, to a live `iocb`. The request reads no bytes, so the kernel writes to no buffer,
        // and is over when the call returns.
        let result =
            unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1_i64, list.as_mut_ptr()) };
        if result == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Makes room for more results. How the requests ended says nothing: the signal came with the end.
    fn take_results(&self) {
        let mut results: [Outcome; RESULTS] = [[0; 4]; RESULTS];
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most `RESULTS` outcomes, which is what there is room for, and only reads the time.
        // An error leaves the ring full, and the caller's next attempt says so.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0_i64,
                RESULTS as i64,
                results.as_mut_ptr(),
                &raw const at_once,
            )
        };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nothing is under way. Fails only if it is not there, as in a forked process.
        let _ = unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

thread_local! {
    /// Of the thread that signals. A context of the whole process would not be there after a
    /// fork.
    static CONTEXT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// Signals on an eventfd without waiting, whatever the state of its counter; a full counter stays full. If [`check`] says
/// that this process has no AIO, `eventfd` must be one of our own that does not block.
///
/// # Errors
/// EINVAL: the file is no eventfd. Else the kernel has no more AIO for us.
pub(crate) fn signal_at_once(eventfd: BorrowedFd<'_>) -> io::Result<()> {
    if check().is_err() {
        return super::signal(eventfd);
    }
    with_context(|context| context.signal(eventfd))
}

/// Makes what this thread signals with, so that its first signal costs no more than others.
///
/// # Errors
/// The kernel has no (more) AIO for us.
pub fn prepare() -> io::Result<()> {
    with_context(|_| Ok(()))
}

fn with_context(act: impl FnOnce(&Context) -> io::Result<()>) -> io::Result<()> {
    CONTEXT.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(Context::new()?),
        };
        act(context)
    })
}

/// Whether the kernel has AIO for us; it is asked once.
///
/// # Errors
/// It has not (ENOSYS), a filter of system calls forbids it (EPERM), or other processes use all of it (EAGAIN).
pub fn check() -> io::Result<()> {
    static ANSWER: LazyLock<Result<(), i32>> = LazyLock::new(|| {
        Context::new().map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::ENOSYS))
    });
    (*ANSWER).map_err(io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{read, write};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn count(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        read(fd, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn eventfd_counts_every_signal_of_many() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        for _ in 0..10_000 {
            signal_at_once(fd.as_fd()).unwrap();
        }
        assert_eq!(count(&fd), 10_000);
    }

    /// S4: the other side may fill the counter at any moment, so there must be no moment at which that matters.
    #[test]
    fn signal_on_a_full_eventfd_that_blocks_does_not_wait() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (done, over) = channel();
        let same = fd.try_clone().unwrap();
        std::thread::spawn(move || {
            (0..1000).for_each(|_| signal_at_once(same.as_fd()).unwrap());
            done.send(()).unwrap();
        });
        over.recv_timeout(Duration::from_secs(20)).expect("a signal does not wait");
        assert!(count(&fd) >= u64::MAX - 1);
    }

    #[test]
    fn other_files_are_not_touched() {
        let (reader, pipe) = rustix::pipe::pipe().unwrap();
        let flags = SocketFlags::CLOEXEC;
        let (socket, other) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
        for fd in [&pipe, &socket, &file] {
            let error = signal_at_once(fd.as_fd()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        for fd in [&reader, &other] {
            assert_eq!(rustix::io::ioctl_fionread(fd).unwrap(), 0);
        }
    }

    #[test]
    fn threads_signal_at_the_same_time() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| signal_at_once(fd.as_fd()).unwrap()));
            }
        });
        assert_eq!(count(&fd), 4000);
    }
}
