//! The children of this process: started by `process.rs`, and waited for here, in one place, so that a process id is
//! signalled only while it is a child's.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// A child. Its process id may later be another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildId {
    pid: Pid,
    serial: u64,
}

/// The children that have not been waited for. Those of others, which this process may have got by exec, are left alone.
#[derive(Clone, Default)]
pub(crate) struct Children(Arc<Mutex<Running>>);

#[derive(Default)]
struct Running {
    children: HashMap<Pid, Child>,
    started: u64,
}

struct Child {
    serial: u64,
    ended: Option<oneshot::Sender<WaitStatus>>,
    /// Not to be waited for yet: see `hold`.
    is_held: bool,
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
        self.running().children.retain(|&pid, child| {
            if child.is_held {
                if child.ended.is_some() && has_ended(pid) {
                    child.ended = None;
                }
                return true;
            }
            match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(None) => true,
                Ok(Some((_, status))) => {
                    // Nobody waits if its channel was closed.
                    let _ = child.ended.take().map(|ended| ended.send(status));
                    false
                }
                Err(_) => false, // it is no child any more
            }
        });
    }

    /// Keeps a child's process id, and so its process group's, from becoming another one's, also when the child ends:
    /// until `release`.
    pub(crate) fn hold(&self, child: ChildId) {
        self.set_held(child, true);
    }

    /// Waits for the child again.
    pub(crate) fn release(&self, child: ChildId) {
        self.set_held(child, false);
        self.reap();
    }

    fn set_held(&self, child: ChildId, is_held: bool) {
        if let Some(found) = self.running().children.get_mut(&child.pid)
            && found.serial == child.serial
        {
            found.is_held = is_held;
        }
    }

    /// Starts a program, which becomes the leader of a process group. The receiver gets its end; of a child that is
    /// held, an error when it ends.
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
        running.children.insert(pid, Child { serial, ended: Some(sender), is_held: false });
        Ok((ChildId { pid, serial }, receiver))
    }

    /// Signals the process group of a child that has not been waited for.
    pub(crate) fn signal(&self, child: ChildId, signal: Signal) {
        let known = self.running().children.get(&child.pid).map(|it| it.serial);
        if known == Some(child.serial) {
            // The group exists as long as its leader has not been waited for.
            let _ = rustix::process::kill_process_group(child.pid, signal);
        }
    }
}

/// Whether a child has ended; it stays a zombie, whose process id is no other one's.
fn has_ended(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error: it is no child any more.
    !matches!(rustix::process::waitid(WaitId::Pid(pid), options), Ok(None))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn end_of_a_held_child_is_told_and_its_process_id_is_kept() {
        let children = Children::watch().unwrap();
        let (child, mut ended) = children.start(Command::new("sleep").arg("1000")).unwrap();
        children.hold(child);
        rustix::process::kill_process(child.pid, Signal::KILL).unwrap();
        assert!(timeout(Duration::from_secs(30), &mut ended).await.unwrap().is_err());
        assert!(rustix::process::test_kill_process(child.pid).is_ok());
        children.release(child);
        assert!(rustix::process::test_kill_process(child.pid).is_err());
    }
}
