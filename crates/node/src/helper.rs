//! Threads that do for the worker what may take as long as a file system or another process pleases.
//!
//! A helper does one thing after the other and answers each with an order. Its queue is bounded, and the worker never waits
//! for room in it: what finds the queue full is not done. A helper starts with the first thing it is given, and ends
//! with the worker; one that hangs then is left alone, as it holds nothing that anybody waits for.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use crate::mailbox::Mailbox;
use crate::orders::Order;

/// Things that may wait to be done.
const WAITING: usize = 256;

/// Enough for a few small files and a path.
const STACK: usize = 128 * 1024;

/// A thread that makes an order of each `E`.
#[derive(Debug)]
pub(crate) struct Helper<E> {
    name: &'static str,
    work: fn(E) -> Order,
    /// The thread's queue; `None`: it has not started.
    queue: Option<SyncSender<E>>,
}

impl<E: Send + 'static> Helper<E> {
    /// A helper that has not started.
    pub(crate) fn new(name: &'static str, work: fn(E) -> Order) -> Self {
        Self { name, work, queue: None }
    }

    /// Gives the helper something to do, whose answer goes to `orders`. False: it cannot do it.
    pub(crate) fn give(&mut self, orders: &Mailbox<Order>, task: E) -> bool {
        let Some(queue) = self.queue.take().or_else(|| self.start(orders.clone())) else {
            return false;
        };
        let given = queue.try_send(task);
        // A thread that has ended is replaced by the next.
        if !matches!(given, Err(TrySendError::Disconnected(_))) {
            self.queue = Some(queue);
        }
        given.is_ok()
    }

    fn start(&self, orders: Mailbox<Order>) -> Option<SyncSender<E>> {
        let (queue, tasks) = sync_channel(WAITING);
        let work = self.work;
        let thread = std::thread::Builder::new().name(self.name.to_owned()).stack_size(STACK);
        let run = move || {
            for task in tasks {
                if orders.post(work(task)).is_err() {
                    return;
                }
            }
        };
        thread.spawn(run).ok().map(|_| queue)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::reactor::{Events, Sources};

    /// A task that takes as long as the test likes.
    fn hangs(mut gate: UnixStream) -> Order {
        gate.read_exact(&mut [0]).unwrap_or_default();
        Order::Stop
    }

    #[test]
    fn helper_that_hangs_takes_so_many_more_and_keeps_nobody_waiting() {
        let sources = Sources::new().unwrap();
        let orders = Mailbox::new(sources.waker());
        let mut helper = Helper::new("test", hangs);
        let (gate, held) = UnixStream::pair().unwrap();
        let mut given = 0;
        while helper.give(&orders, held.try_clone().unwrap()) {
            given += 1;
        }
        // The thread may have taken the first one by then.
        assert!((WAITING..=WAITING + 1).contains(&given), "{given}");
        drop((gate, held));
        while given > 0 {
            sources.wait(None, &mut Events::new(), &mut Vec::new()).unwrap();
            while let Some(Order::Stop) = orders.take() {
                given -= 1;
            }
        }
    }
}
