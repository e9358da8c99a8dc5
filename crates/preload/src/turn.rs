//! Whose turn it is at a listener: one thread of one process at a time looks at a connection and takes it.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::sys::{Answer, Errno, Fd, give_way};

static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// How often to ask. Nobody waits for ever: a fork may have copied a turn that nobody ends, and a process may have been
/// stopped in the middle of its own.
const TRIES: u32 = 1000;

/// A turn, which ends when it is dropped.
pub(crate) struct Turn(Fd);

impl Turn {
    /// Waits for the turn at `listener`: first among the threads, then among the processes that share it.
    pub(crate) fn take(listener: Fd) -> Self {
        ask(|| !IS_TAKEN.swap(true, Ordering::Acquire));
        ask(|| !is_others(listener.lock(libc::F_WRLCK)));
        Self(listener)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.0.lock(libc::F_UNLCK); // fails where there was no lock to be had
        IS_TAKEN.store(false, Ordering::Release);
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
