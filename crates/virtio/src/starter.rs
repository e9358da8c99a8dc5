//! Threads that share one sandbox. A thread has what the one that starts it has, so one that has entered the sandbox starts
//! them.
//!
//! Each could enter a sandbox of its own. But the kernel compiles every filter, frees it in a queue of its own, one after the
//! other, and can be brought to a halt by thousands: a node has as many filters with a thousand guests as with one.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use vsock_sandbox::{Profile, Sandbox, State};

use crate::joinable::Joinable;

/// Enough to start others.
const STACK: usize = 128 * 1024;

/// A thread that is to be started.
struct Wanted {
    builder: Builder,
    run: Box<dyn FnOnce() + Send>,
    started: Sender<io::Result<JoinHandle<()>>>,
}

/// Starts threads in a sandbox. Its own thread ends with its last clone; those that it has started go on.
#[derive(Clone, Debug)]
pub struct Starter {
    /// `None`: there is no sandbox to be in.
    wanted: Option<Sender<Wanted>>,
    state: State,
}

impl Starter {
    /// Starts threads of `profile`; `name` is its own thread's.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn new(sandbox: Sandbox, profile: Profile, name: &str) -> io::Result<Self> {
        match sandbox {
            Sandbox::Disabled => Ok(Self { wanted: None, state: State::Disabled }),
            Sandbox::Enforced => {
                let (wanted, list) = channel();
                let run = move || {
                    for Wanted { builder, run, started } in list {
                        // Nobody listens only if the caller is gone.
                        let _ = started.send(builder.spawn(run));
                    }
                };
                let builder = Builder::new().name(name.to_owned()).stack_size(STACK);
                let (_thread, state) = Joinable::spawn_in((sandbox, profile), builder, run)?;
                Ok(Self { wanted: Some(wanted), state })
            }
        }
    }

    /// What its threads have given up.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Starts a thread. That takes as long as a system call: the thread that does it does nothing else.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn start(
        &self,
        builder: Builder,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let Some(wanted) = &self.wanted else { return builder.spawn(run) };
        let (started, thread) = channel();
        let is_gone = || io::Error::other("the thread that starts others has ended");
        wanted.send(Wanted { builder, run: Box::new(run), started }).map_err(|_| is_gone())?;
        thread.recv().map_err(|_| is_gone())?
    }
}
