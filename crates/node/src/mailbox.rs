//! How other threads ask the worker to do something: a function that runs on the worker's thread, between two batches.
//!
//! The control plane's requests, and what front ends say over vhost-user, are rare; the worker's state is therefore
//! owned by its thread alone and has no locks. `call` returns after the function has run, so that whoever replaces
//! guest memory or stops a ring knows that nothing uses the old one any more.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use crate::reactor::Waker;

/// A request: runs once with the worker's state.
type Request<W> = Box<dyn FnOnce(&mut W) + Send>;

/// The worker is not there any more, so nothing was done.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the node is stopped")]
pub struct Stopped;

struct Queue<W> {
    requests: VecDeque<Request<W>>,
    open: bool,
}

/// The sending side; cheap to clone.
pub(crate) struct Mailbox<W> {
    queue: Arc<Mutex<Queue<W>>>,
    waker: Waker,
}

impl<W> Clone for Mailbox<W> {
    fn clone(&self) -> Self {
        Self { queue: Arc::clone(&self.queue), waker: self.waker.clone() }
    }
}

impl<W> Mailbox<W> {
    /// An open mailbox that wakes the worker for each request.
    pub(crate) fn new(waker: Waker) -> Self {
        let queue = Queue { requests: VecDeque::new(), open: true };
        Self { queue: Arc::new(Mutex::new(queue)), waker }
    }

    /// Runs `request` on the worker's thread and returns its answer.
    ///
    /// Never call it from the worker's own thread: it would wait for itself.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        request: impl FnOnce(&mut W) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.post(move |worker| {
            // The caller waits below, so this can only fail if it panicked.
            let _ = sender.send(request(worker));
        })?;
        receiver.recv().map_err(|_| Stopped)
    }

    /// Runs `request` on the worker's thread some time soon.
    pub(crate) fn post(
        &self,
        request: impl FnOnce(&mut W) + Send + 'static,
    ) -> Result<(), Stopped> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.open {
            return Err(Stopped);
        }
        queue.requests.push_back(Box::new(request));
        drop(queue);
        self.waker.wake();
        Ok(())
    }

    /// The oldest request not yet run; for the worker.
    pub(crate) fn take(&self) -> Option<Request<W>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).requests.pop_front()
    }

    /// Ends it: waiting callers and later ones get [`Stopped`].
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.open = false;
        queue.requests.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{Events, Sources};

    #[test]
    fn call_runs_on_the_other_thread_and_returns_its_answer() {
        let reactor = Sources::new().unwrap();
        let mailbox = Mailbox::<u32>::new(reactor.waker());
        let worker_side = mailbox.clone();
        let worker = std::thread::spawn(move || {
            let (mut state, mut seen) = (41u32, Vec::new());
            while state == 41 {
                reactor.wait(None, &mut Events::new(), &mut seen).unwrap();
                while let Some(request) = worker_side.take() {
                    request(&mut state);
                }
            }
        });
        let answer = mailbox.call(|state| {
            *state += 1;
            *state
        });
        assert_eq!(answer.unwrap(), 42);
        worker.join().unwrap();
    }

    #[test]
    fn closed_mailbox_refuses_new_and_waiting_requests() {
        let reactor = Sources::new().unwrap();
        let mailbox = Mailbox::<()>::new(reactor.waker());
        let waiting = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || mailbox.call(|()| ()))
        };
        mailbox.close();
        assert!(waiting.join().unwrap().is_err());
        assert!(mailbox.post(|()| ()).is_err());
    }
}
