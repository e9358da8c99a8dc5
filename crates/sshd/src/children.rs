//! The children of this process: started by `process.rs`, waited for here, in one place, so that a process id is signalled only
//! while it is a child's.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// The children that have not been waited for.
#[derive(Clone, Default)]
pub(crate) struct Children(Arc<Mutex<HashMap<Pid, oneshot::Sender<WaitStatus>>>>);

impl Children {
    /// Starts waiting for children. Needs a runtime with one thread: a child is in the map before `reap` runs.
    pub(crate) fn watch() -> io::Result<Children> {
        let children = Children::default();
        let mut ended = signal(SignalKind::child())?;
        let reaper = children.clone();
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                reaper.reap();
            }
        });
        Ok(children)
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<WaitStatus>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(ended) = self.map().remove(&pid) {
                // Nobody waits if its channel was closed.
                let _ = ended.send(status);
            }
        }
    }

    /// Starts a program, which becomes the leader of a process group. The receiver gets its end.
    pub(crate) fn start(
        &self,
        command: &mut Command,
    ) -> io::Result<(Pid, oneshot::Receiver<WaitStatus>)> {
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, receiver) = oneshot::channel();
        self.map().insert(pid, sender);
        Ok((pid, receiver))
    }

    /// Signals the process group of a child that has not ended.
    pub(crate) fn signal(&self, pid: Pid, signal: Signal) {
        if self.has(pid) {
            // The group exists as long as its leader has not been waited for.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    pub(crate) fn has(&self, pid: Pid) -> bool {
        self.map().contains_key(&pid)
    }
}
