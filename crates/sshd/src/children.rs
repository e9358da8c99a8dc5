//! The children of this process: started by `process.rs`, and waited for here, in one place, so that a process id is
//! signalled only while it is a child's.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// A child. Its process id may later be another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildId {
    pid: Pid,
    serial: u64,
}

/// The children that have not been waited for.
#[derive(Clone, Default)]
pub(crate) struct Children(Arc<Mutex<Running>>);

#[derive(Default)]
struct Running {
    children: HashMap<Pid, (u64, oneshot::Sender<WaitStatus>)>,
    started: u64,
}

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

    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some((_, ended)) = self.running().children.remove(&pid) {
                // Nobody waits if its channel was closed.
                let _ = ended.send(status);
            }
        }
    }

    /// Starts a program, which becomes the leader of a process group. The receiver gets its end.
    pub(crate) fn start(
        &self,
        command: &mut Command,
    ) -> io::Result<(ChildId, oneshot::Receiver<WaitStatus>)> {
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, receiver) = oneshot::channel();
        let mut running = self.running();
        running.started += 1;
        let serial = running.started;
        running.children.insert(pid, (serial, sender));
        Ok((ChildId { pid, serial }, receiver))
    }

    /// Signals the process group of a child that has not ended.
    pub(crate) fn signal(&self, child: ChildId, signal: Signal) {
        let known = self.running().children.get(&child.pid).map(|(serial, _)| *serial);
        if known == Some(child.serial) {
            // The group exists as long as its leader has not been waited for.
            let _ = rustix::process::kill_process_group(child.pid, signal);
        }
    }
}
