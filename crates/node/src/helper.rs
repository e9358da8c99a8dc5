//! Threads that do for the worker what may take as long as a file system or another process pleases.
//!
//! A helper does one thing after the other, and wakes the worker for each answer, which its owner then finds. Its queue is
//! bounded, and the worker never waits for room in it: what finds the queue full is not done. A helper starts with
//! the first thing it is given, and ends with its owner; one that hangs then is left alone, as it holds nothing that
//! anybody waits for.
//!
//! Helpers need what the worker has given up: files of `/proc`, sockets to connect with. So the worker has a [`Starter`] start
//! them.
//!
//! [`Starter`]: vsock_virtio::starter::Starter

use std::sync::mpsc::{Sender, SyncSender, TrySendError, sync_channel};
use std::thread::Builder;

use crate::context::Context;

/// Things that may wait to be done.
const WAITING: usize = 256;

/// Enough for a few small files and a path.
const STACK: usize = 128 * 1024;

/// A thread that makes an answer of each task.
#[derive(Debug)]
pub(crate) struct Helper<T, A> {
    name: &'static str,
    work: fn(T) -> A,
    answers: Sender<A>,
    /// The thread's queue; `None`: it has not started.
    queue: Option<SyncSender<T>>,
}

impl<T: Send + 'static, A: Send + 'static> Helper<T, A> {
    /// A helper that has not started. `answers` is where its owner looks after it has been woken.
    pub(crate) fn new(name: &'static str, work: fn(T) -> A, answers: Sender<A>) -> Self {
        Self { name, work, answers, queue: None }
    }

    /// Gives the helper something to do. False: it cannot do it.
    pub(crate) fn give(&mut self, cx: &Context, task: T) -> bool {
        let Some(queue) = self.queue.take().or_else(|| self.start(cx)) else { return false };
        let given = queue.try_send(task);
        // A thread that has ended is replaced by the next.
        if !matches!(given, Err(TrySendError::Disconnected(_))) {
            self.queue = Some(queue);
        }
        given.is_ok()
    }

    fn start(&self, cx: &Context) -> Option<SyncSender<T>> {
        let (queue, tasks) = sync_channel(WAITING);
        let (work, answers, waker) = (self.work, self.answers.clone(), cx.sources.waker());
        let run = move || {
            for task in tasks {
                if answers.send(work(task)).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        let thread = Builder::new().name(self.name.to_owned()).stack_size(STACK);
        cx.starter.start(thread, run).ok().map(|_| queue)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;

    use vsock_sandbox::{Profile, Sandbox};
    use vsock_virtio::starter::Starter;

    use super::*;
    use crate::host::socket::Sockets;
    use crate::journal::Journal;
    use crate::reactor::{Events, Sources};

    /// A task that takes as long as the test likes. read(2) is among the calls of a helper; recv(2) is not.
    fn hangs(gate: UnixStream) {
        assert_eq!(rustix::io::read(gate, &mut [0]), Ok(0));
    }

    #[test]
    fn helper_that_hangs_takes_so_many_more_and_keeps_nobody_waiting() {
        let starter = Starter::new(Sandbox::default(), Profile::Helper, "starter").unwrap();
        let cx = Context::new(
            (Sources::new().unwrap(), Journal::new().unwrap(), starter),
            Sockets::alone(),
        );
        let (sender, answers) = channel();
        let mut helper = Helper::new("test", hangs, sender);
        let (gate, held) = UnixStream::pair().unwrap();
        let mut given = 0;
        while helper.give(&cx, held.try_clone().unwrap()) {
            given += 1;
        }
        // The thread may have taken the first one by then.
        assert!((WAITING..=WAITING + 1).contains(&given), "{given}");
        drop((gate, held));
        while given > 0 {
            cx.sources.wait(None, &mut Events::new(), &mut Vec::new()).unwrap();
            given -= answers.try_iter().count();
        }
    }
}
