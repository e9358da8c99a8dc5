//! Threads that do for the worker what may take as long as a file system or another process pleases.
//!
//! A helper does one thing after the other, and wakes the worker for each answer, which its owner then finds. Its queue is
//! bounded, and the worker never waits for room in it: what finds the queue full is not done. A helper starts with
//! the first thing it is given, and ends with its owner; one that hangs then is left alone, as it holds nothing that
//! anybody waits for.

//!
//! A thread has no more rights than the one that starts it, and helpers need what the worker has given up: files of `/proc`,
//! sockets to connect with. So one more thread starts them, which serves nobody else.

use std::io;
use std::sync::mpsc::{Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::Builder;

use vsock_sandbox::{Profile, Sandbox};
use vsock_virtio::joinable::Joinable;

use crate::context::Context;

/// Things that may wait to be done.
const WAITING: usize = 256;

/// Enough for a few small files and a path.
const STACK: usize = 128 * 1024;

/// A thread that is to be started.
struct Wanted {
    name: &'static str,
    run: Box<dyn FnOnce() + Send>,
    /// Told whether there is such a thread.
    is_started: Sender<bool>,
}

/// The thread that starts helpers. It ends with its node.
#[derive(Debug)]
pub(crate) struct Starter {
    sandbox: Sandbox,
    wanted: Sender<Wanted>,
}

impl Starter {
    /// Starts it.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub(crate) fn new(sandbox: Sandbox) -> io::Result<Self> {
        let (wanted, list) = channel();
        let builder = Builder::new().name("vsock-helpers".to_owned()).stack_size(STACK);
        let run = move || {
            for Wanted { name, run, is_started } in list {
                let started = Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run);
                // Nobody listens only if the worker is gone.
                let _ = is_started.send(started.is_ok());
            }
        };
        // What it could not give up, the state of the worker tells as well.
        Joinable::spawn_in((sandbox, Profile::Starter), builder, run)?;
        Ok(Self { sandbox, wanted })
    }

    /// Starts a helper. That takes as long as a system call: this thread does nothing else.
    fn start(&self, name: &'static str, run: Box<dyn FnOnce() + Send>) -> bool {
        let (is_started, started) = channel();
        self.wanted.send(Wanted { name, run, is_started }).is_ok() && started.recv() == Ok(true)
    }
}

/// A thread that makes an answer of each task.
#[derive(Debug)]
pub(crate) struct Helper<T, A> {
    name: &'static str,
    profile: Profile,
    work: fn(T) -> A,
    answers: Sender<A>,
    /// The thread's queue; `None`: it has not started.
    queue: Option<SyncSender<T>>,
}

impl<T: Send + 'static, A: Send + 'static> Helper<T, A> {
    /// A helper that has not started, and then has what `profile` needs. `answers` is where its owner looks after it has been
    /// woken.
    pub(crate) fn new(
        name: &'static str,
        profile: Profile,
        work: fn(T) -> A,
        answers: Sender<A>,
    ) -> Self {
        Self { name, profile, work, answers, queue: None }
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
        let (sandbox, profile) = (cx.starter.sandbox, self.profile);
        let run = move || {
            // What it cannot give up now, the thread that started it has: its own list and all other helpers'.
            let _ = sandbox.enter(profile);
            for task in tasks {
                if answers.send(work(task)).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        cx.starter.start(self.name, Box::new(run)).then_some(queue)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::journal::Journal;
    use crate::reactor::{Events, Sources};

    /// A task that takes as long as the test likes.
    fn hangs(mut gate: UnixStream) {
        gate.read_exact(&mut [0]).unwrap_or_default();
    }

    #[test]
    fn helper_that_hangs_takes_so_many_more_and_keeps_nobody_waiting() {
        let starter = Starter::new(Sandbox::default()).unwrap();
        let cx = Context::new(Sources::new().unwrap(), Journal::new().unwrap(), starter);
        let (sender, answers) = channel();
        let mut helper = Helper::new("test", Profile::Asking, hangs, sender);
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
