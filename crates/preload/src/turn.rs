//! Whose turn it is: of the threads that begin a connect or look how one ends; and at a listener, of the threads and
//! processes that look at a connection and take it.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::sys::{Answer, Errno, Fd, give_way};

/// How often to ask. Nobody waits for ever: a fork may have copied a turn that nobody ends, and a process may have been
/// stopped in the middle of its own.
const TRIES: u32 = 1000;

static CONNECTING: AtomicBool = AtomicBool::new(false);
static ACCEPTING: AtomicBool = AtomicBool::new(false);

/// A thread's turn, which ends when it is dropped.
pub(crate) struct Turn(&'static AtomicBool);

impl Turn {
    /// Waits for the turn to begin a connect, or to look how one ends.
    pub(crate) fn connecting() -> Self {
        Self::take(&CONNECTING)
    }

    fn take(is_taken: &'static AtomicBool) -> Self {
        ask(|| !is_taken.swap(true, Ordering::Acquire));
        Self(is_taken)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A turn at a listener, which ends when it is dropped.
pub(crate) struct ListenerTurn {
    listener: Fd,
    _among_threads: Turn,
}

impl ListenerTurn {
    /// Waits for the turn at `listener`: first among the threads, then among the processes that share it.
    pub(crate) fn take(listener: Fd) -> Self {
        let among_threads = Turn::take(&ACCEPTING);
        ask(|| !is_others(listener.lock(libc::F_WRLCK)));
        Self { listener, _among_threads: among_threads }
    }
}

impl Drop for ListenerTurn {
    fn drop(&mut self) {
        let _ = self.listener.lock(libc::F_UNLCK); // fails where there was no lock to be had
    }
}

fn ask(mut is_ours: impl FnMut() -> bool) {
    let mut tries = 0;
    while !is_ours() && tries < TRIES {
        give_way();
        tries += 1;
    }
}

fn is_others(answer: Answer<()>) -> bool {
    matches!(answer, Err(Errno(libc::EAGAIN | libc::EACCES)))
}
