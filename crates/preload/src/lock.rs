//! Locks with an end to the waiting: among the threads that begin a connect or look at its outcome; and, at a listener,
//! among the threads and processes that look at a connection and take it.
//!
//! A lock that a fork copies is never given free in the child, and a process may be stopped while it holds one. So after
//! a number of tries a caller goes on without: what it does is then no longer one step, but nobody waits for ever.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::sys::{Answer, Errno, Fd, yield_now};

const TRIES: u32 = 1000;

static CONNECTING: AtomicBool = AtomicBool::new(false);
static ACCEPTING: AtomicBool = AtomicBool::new(false);

/// Held by the thread that begins a connect or looks at its outcome, until it is dropped.
pub(crate) struct ConnectLock {
    _among_threads: ThreadLock,
}

impl ConnectLock {
    /// Waits for the lock.
    pub(crate) fn take() -> Self {
        Self { _among_threads: ThreadLock::take(&CONNECTING) }
    }
}

/// Held at a listener, until it is dropped.
pub(crate) struct ListenerLock {
    listener: Fd,
    _among_threads: ThreadLock,
}

impl ListenerLock {
    /// Waits for the lock at `listener`: first among the threads, then among the processes that share it.
    pub(crate) fn take(listener: Fd) -> Self {
        let among_threads = ThreadLock::take(&ACCEPTING);
        try_until(|| !is_held_by_another(listener.lock(libc::F_WRLCK)));
        Self { listener, _among_threads: among_threads }
    }
}

impl Drop for ListenerLock {
    fn drop(&mut self) {
        let _ = self.listener.lock(libc::F_UNLCK); // fails if the lock could not be had
    }
}

struct ThreadLock(&'static AtomicBool);

impl ThreadLock {
    fn take(is_taken: &'static AtomicBool) -> Self {
        try_until(|| !is_taken.swap(true, Ordering::Acquire));
        Self(is_taken)
    }
}

impl Drop for ThreadLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn try_until(mut is_taken: impl FnMut() -> bool) {
    let mut tries = 0;
    while !is_taken() && tries < TRIES {
        yield_now();
        tries += 1;
    }
}

fn is_held_by_another(answer: Answer<()>) -> bool {
    matches!(answer, Err(Errno(libc::EAGAIN | libc::EACCES)))
}
