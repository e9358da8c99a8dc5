//! How other threads reach the worker: a queue of orders, which it carries out between two rounds.
//!
//! The worker's state is owned by its thread alone and has no locks. [`call`](Mailbox::call) returns after the order has been
//! carried out, so that a thread that replaces guest memory or stops a ring knows that nothing uses the old one any more.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::reactor::Waker;

/// The worker is not there any more, so nothing was done.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the node is stopped")]
pub struct Stopped;

/// The way back for one answer. Dropped without one, it tells the caller that nothing was done.
#[derive(Debug)]
pub(crate) struct Reply<R>(SyncSender<R>);

impl<R> Reply<R> {
    /// A way back, and its other end.
    pub(crate) fn new() -> (Self, Receiver<R>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), receiver)
    }

    /// Answers. Never waits: there is room for one.
    pub(crate) fn send(self, answer: R) {
        // A caller that has lost its patience is not there any more.
        let _ = self.0.send(answer);
    }
}

impl Reply<()> {
    /// Says that it is done.
    pub(crate) fn done(self) {
        self.send(());
    }
}

struct Queue<O> {
    orders: VecDeque<O>,
    open: bool,
}

/// Both sides of the queue; cheap to clone.
pub(crate) struct Mailbox<O> {
    queue: Arc<Mutex<Queue<O>>>,
    waker: Waker,
}

impl<O> Clone for Mailbox<O> {
    fn clone(&self) -> Self {
        Self { queue: Arc::clone(&self.queue), waker: self.waker.clone() }
    }
}

impl<O> Mailbox<O> {
    /// An open mailbox that wakes the worker for each order.
    pub(crate) fn new(waker: Waker) -> Self {
        let queue = Queue { orders: VecDeque::new(), open: true };
        Self { queue: Arc::new(Mutex::new(queue)), waker }
    }

    /// Gives the order that `order` makes of a way back, and waits for its answer.
    ///
    /// Never call it from the worker's own thread: it would wait for itself.
    pub(crate) fn call<R>(&self, order: impl FnOnce(Reply<R>) -> O) -> Result<R, Stopped> {
        self.ask(order)?.recv().map_err(|_| Stopped)
    }

    /// The same without waiting: the answer comes where it is returned.
    pub(crate) fn ask<R>(&self, order: impl FnOnce(Reply<R>) -> O) -> Result<Receiver<R>, Stopped> {
        let (reply, answer) = Reply::new();
        self.post(order(reply))?;
        Ok(answer)
    }

    /// Gives an order that has no answer.
    pub(crate) fn post(&self, order: O) -> Result<(), Stopped> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.open {
            return Err(Stopped);
        }
        queue.orders.push_back(order);
        drop(queue);
        self.waker.wake();
        Ok(())
    }

    /// The oldest order not yet carried out; for the worker.
    pub(crate) fn take(&self) -> Option<O> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).orders.pop_front()
    }

    /// Ends it: waiting callers and later ones get [`Stopped`].
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.open = false;
        let orders = std::mem::take(&mut queue.orders);
        // What an order holds may be long to drop.
        drop(queue);
        drop(orders);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{Events, Sources};

    /// To add one, and say what it is then.
    struct Increment(Reply<u32>);

    #[test]
    fn order_is_carried_out_by_the_other_thread_and_answered() {
        let reactor = Sources::new().unwrap();
        let mailbox = Mailbox::new(reactor.waker());
        let worker_side = mailbox.clone();
        let worker = std::thread::spawn(move || {
            let (mut state, mut seen) = (41u32, Vec::new());
            while state == 41 {
                reactor.wait(None, &mut Events::new(), &mut seen).unwrap();
                while let Some(Increment(reply)) = worker_side.take() {
                    state += 1;
                    reply.send(state);
                }
            }
        });
        assert_eq!(mailbox.call(Increment).unwrap(), 42);
        worker.join().unwrap();
    }

    #[test]
    fn closed_mailbox_refuses_new_and_waiting_orders() {
        let reactor = Sources::new().unwrap();
        let mailbox = Mailbox::new(reactor.waker());
        let waiting = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || mailbox.call(Increment))
        };
        mailbox.close();
        assert!(waiting.join().unwrap().is_err());
        assert!(mailbox.ask(Increment).is_err());
    }

    #[test]
    fn order_that_is_dropped_unanswered_was_not_carried_out() {
        let mailbox = Mailbox::new(Sources::new().unwrap().waker());
        let answer = mailbox.ask(Increment).unwrap();
        drop(mailbox.take());
        assert!(answer.recv().is_err());
    }
}
