//! Locks with an end to the waiting: among the threads that begin a connect or look at its outcome; and, at a listener,
//! among the threads and processes that look at a connection and take it.
//!
//! A process may be stopped while it holds one. So after a time a caller goes on without: what it does is then no longer
//! one step, but nobody waits for ever. A lock says which process and thread holds it: a fork copies the locks of threads
//! that the child does not have, and a signal handler may find one that its own thread holds.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sys::{self, Answer, Errno, Fd};

/// How long to try. One that is only behind, on a busy machine, is waited for.
const PATIENCE_MS: u64 = 1000;
/// How often to try before each further try waits a millisecond, as one that is behind needs the processor.
const YIELDS: u32 = 1000;

static CONNECTING: ThreadLock = ThreadLock::new();
static ACCEPTING: ThreadLock = ThreadLock::new();

/// Held by the thread that begins a connect or looks at its outcome, until it is dropped.
pub(crate) struct ConnectLock {
    _among_threads: Held,
}

impl ConnectLock {
    /// Waits for the lock.
    pub(crate) fn take() -> Self {
        Self { _among_threads: CONNECTING.take() }
    }
}

/// Held at a listener, until it is dropped.
pub(crate) struct ListenerLock {
    listener: Fd,
    is_alone: bool,
    among_threads: Held,
}

impl ListenerLock {
    /// Waits for the lock at `listener`: first among the threads, then among the processes that share it.
    pub(crate) fn take(listener: Fd) -> Self {
        let among_threads = ACCEPTING.take();
        let is_alone = try_until(|| !is_held_by_another(listener.lock(libc::F_WRLCK)));
        Self { listener, is_alone, among_threads }
    }

    /// Whether no other process has the lock.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone
    }
}

impl Drop for ListenerLock {
    fn drop(&mut self) {
        // The lock is the process's: a thread that could not have it leaves it to the one that has.
        if self.is_alone && self.among_threads.is_held() {
            let _ = self.listener.lock(libc::F_UNLCK); // fails if the socket has been closed
        }
    }
}

/// The process and the thread that hold it, 0 if none does.
struct ThreadLock(AtomicU64);

/// Gives the lock back when it is dropped.
struct Held(Option<&'static AtomicU64>);

impl ThreadLock {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn take(&'static self) -> Held {
        let (process, thread) = (sys::process_id(), sys::thread_id());
        let me = u64::from(process) << 32 | u64::from(thread);
        let mut is_mine = false;
        try_until(|| {
            let holder = self.0.load(Ordering::Relaxed);
            if holder == me {
                return true; // this is a signal handler
            }
            let is_free = holder >> 32 != u64::from(process);
            is_mine = is_free
                && self
                    .0
                    .compare_exchange(holder, me, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok();
            is_mine
        });
        Held(is_mine.then_some(&self.0))
    }
}

impl Held {
    fn is_held(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(holder) = self.0 {
            holder.store(0, Ordering::Release);
        }
    }
}

/// Tries until it succeeds or patience ends; false in the latter case.
fn try_until(mut attempt: impl FnMut() -> bool) -> bool {
    let mut tries = 0;
    let mut end = None;
    while !attempt() {
        let now = sys::now_ms();
        if now >= *end.get_or_insert(now + PATIENCE_MS) {
            return false;
        }
        if tries < YIELDS {
            sys::yield_now();
            tries += 1;
        } else {
            let _ = Fd::pause(1); // a signal only makes the next try come sooner
        }
    }
    true
}

fn is_held_by_another(answer: Answer<()>) -> bool {
    matches!(answer, Err(Errno(libc::EAGAIN | libc::EACCES)))
}
