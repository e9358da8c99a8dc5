//! A thread that is waited for with a deadline: one that serves somebody hostile may never end.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use vsock_sandbox::{Profile, Sandbox, State};

use crate::starter::Starter;

/// A running thread.
pub struct Joinable<T = ()> {
    thread: JoinHandle<()>,
    /// What the thread has come to; hangs up when it has panicked.
    ended: Receiver<T>,
}

impl<T: Send + 'static> Joinable<T> {
    /// Starts a thread that has what the calling one has.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn spawn(builder: Builder, run: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        Self::by(run, |run| builder.spawn(run))
    }

    /// Starts a thread that has what the threads of `starter` have.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn spawn_by(
        starter: &Starter,
        builder: Builder,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        Self::by(run, |run| starter.start(builder, run))
    }

    /// Starts a thread that first gives up what `profile` does not need, and says what it has given up.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn spawn_in(
        (sandbox, profile): (Sandbox, Profile),
        builder: Builder,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<(Self, State)> {
        let (entered, state) = channel();
        let thread = Self::spawn(builder, move || {
            // Nobody listens only if the caller is gone.
            let _ = entered.send(sandbox.enter(profile));
            run()
        })?;
        let state = state.recv().map_err(io::Error::other)?;
        Ok((thread, state))
    }

    fn by(
        run: impl FnOnce() -> T + Send + 'static,
        start: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
    ) -> io::Result<Self> {
        let (end, ended) = channel();
        let thread = start(Box::new(move || {
            // Nobody listens to a thread that was left behind.
            let _ = end.send(run());
        }))?;
        Ok(Self { thread, ended })
    }

    /// Waits for the thread without a deadline; `None`: it has panicked.
    pub fn wait(self) -> Option<T> {
        let outcome = self.ended.recv().ok();
        // A panic has been printed.
        let _ = self.thread.join();
        outcome
    }

    /// Waits for the thread until `deadline`. False: it is left behind, and ends by itself or never.
    #[must_use]
    pub fn join(self, deadline: Instant) -> bool {
        let patience = deadline.saturating_duration_since(Instant::now());
        match self.ended.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) => false,
            Ok(_) | Err(RecvTimeoutError::Disconnected) => {
                // A panic has been printed; there is nothing left to end.
                let _ = self.thread.join();
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn thread_that_does_not_end_is_left_behind() {
        let (go, wait) = channel::<()>();
        let thread = Joinable::spawn(Builder::new(), move || {
            let _ = wait.recv();
        })
        .unwrap();
        assert!(!thread.join(soon()));
        drop(go);
    }

    #[test]
    fn thread_that_ends_or_panics_is_joined() {
        let late = Instant::now() + Duration::from_secs(20);
        assert!(Joinable::spawn(Builder::new(), || ()).unwrap().join(late));
        let panics = Joinable::spawn(Builder::new(), || std::panic::resume_unwind(Box::new(())));
        assert!(panics.unwrap().join(late));
    }
}
