//! A running node is given away as plain data, and another goes on with it.
//!
//! The control threads of guests stop first, each between two messages of its front end; then the worker, between two
//! orders. Neither programs nor front ends are told anything.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use vsock_core::saved::{Unfit, check};

use super::{Guest, Held, Node, raise_descriptor_limit, random_seed, spawn_worker, starters};
use crate::fabric::Fabric;
use crate::flows::record;
use crate::guest_port::GuestPort;
use crate::host::socket::Sockets;
use crate::journal::Journal;
use crate::links::LinkId;
use crate::mailbox::{Mailbox, Reply};
use crate::orders::{Order, SaveError, SavedWorker};
use crate::polling::Polling;
use crate::reactor::Sources;
use crate::saved::{RestoredGuest, SavedGuest, SavedNode};
use crate::worker::Worker;
use vsock_virtio::saved::{Fds, SavedFds};
use vsock_virtio::starter::Starter;
use vsock_virtio::vhost_user::Paused;

/// Longer than anybody has a node look for packets.
const LONGEST_LOOK: Duration = Duration::from_secs(3600);

/// Why no node goes on.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The saved state cannot be.
    #[error("{0}")]
    Unfit(#[from] Unfit),
    /// The kernel gives no eventfd or thread.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A fault of ours, which has been printed.
    #[error("internal error while restoring a node")]
    Internal,
}

/// A guest whose control thread does not run.
struct PausedGuest {
    cid: u32,
    link: LinkId,
    paths: Vec<std::path::PathBuf>,
    control: Paused,
}

impl PausedGuest {
    fn resume(self, starter: &Starter) -> std::io::Result<(u32, Guest)> {
        let Self { cid, link, paths, control } = self;
        Ok((cid, Guest { link, control: control.resume(starter)?, paths }))
    }
}

impl Node {
    /// Gives everything away as plain data, with the descriptors that it names. This node is over then, and is as if it had
    /// been stopped, but nobody was told: programs and guests wait for the node that goes on with it. Threads that wait for
    /// an answer of this node are told that it is stopped. Its [`events`](Self::events) stay here.
    ///
    /// # Errors
    /// It cannot be saved, and goes on; or it has been stopped.
    pub fn save(&self) -> Result<(SavedNode, Vec<OwnedFd>), SaveError> {
        let mut held = self.held();
        if held.device.is_some() {
            return Err(SaveError::HasJoined);
        }
        let mut paused = Vec::new();
        let mut outcome = Ok(());
        for (cid, Guest { link, control, paths }) in std::mem::take(&mut held.guests) {
            match control.pause() {
                Ok(control) => paused.push(PausedGuest { cid, link, paths, control }),
                Err(control) => {
                    outcome = Err(SaveError::NoControl(cid));
                    held.guests.insert(cid, Guest { link, control, paths });
                }
            }
        }
        match outcome.and_then(|()| self.save_paused(&held, &paused)) {
            Ok(saved) => {
                if let Some(thread) = std::mem::take(&mut *held).worker {
                    // It has given away what there is, so it can only end well.
                    let _ = thread.wait();
                }
                Ok(saved)
            }
            Err(mut error) => {
                for guest in paused {
                    let link = guest.link;
                    match guest.resume(&self.controls) {
                        Ok((cid, guest)) => {
                            held.guests.insert(cid, guest);
                        }
                        Err(no_thread) => {
                            // Nobody serves its front end any more. A worker that is gone has no link either.
                            let _ = self.mailbox.call(|reply| Order::RemoveGuest { link, reply });
                            error = no_thread.into();
                        }
                    }
                }
                Err(error)
            }
        }
    }

    fn save_paused(
        &self,
        held: &Held,
        paused: &[PausedGuest],
    ) -> Result<(SavedNode, Vec<OwnedFd>), SaveError> {
        let mut list = SavedFds::new();
        let mut guests = Vec::new();
        for PausedGuest { cid, link, paths, control } in paused {
            let (link, cid, paths) = (*link, *cid, paths.clone());
            guests.push(SavedGuest { link, cid, paths, control: control.save(&mut list) });
        }
        let mut fds = list.duplicate()?;
        let (links, before) = (paused.iter().map(|it| it.link).collect(), fds.len());
        // Nothing can fail once the worker has given its state away.
        let saved = self.mailbox.call(|reply| Order::Save { guests: links, before, reply })??;
        let SavedWorker { fabric, polling, fds: rest } = saved;
        fds.extend(rest);
        for (guest, paused) in guests.iter_mut().zip(paused) {
            // Until then the worker may have found fault with one.
            guest.control.detach = paused.control.ordered_detach();
        }
        let (paths, wants_flows) = (held.paths.clone(), self.journal.wants_flows());
        let options = self.options;
        Ok((SavedNode { paths, guests, options, wants_flows, polling, fabric }, fds))
    }

    /// A node that goes on where another was, with the descriptors that came beside the data.
    ///
    /// # Errors
    /// The saved state cannot be, and everything in it is gone; or the kernel refuses an eventfd or a thread.
    pub fn restore(saved: SavedNode, fds: Vec<OwnedFd>) -> Result<Self, RestoreError> {
        raise_descriptor_limit();
        record::prepare()?;
        let SavedNode { paths, guests, options, wants_flows, polling, fabric } = saved;
        let (sources, journal) = (Sources::new()?, Journal::new()?);
        let mailbox = Mailbox::new(sources.waker());
        journal.set_wants_flows(wants_flows);
        let mut fds = Fds::new(fds);
        let (mut paused, mut restored) = (HashMap::new(), HashMap::new());
        for SavedGuest { link, cid, paths, control } in guests {
            check(fabric.links.cid(link) == Some(cid), Unfit::Address)?;
            let port = GuestPort::new(mailbox.clone(), link);
            let control = Paused::restore(control, Box::new(port), &mut fds)?;
            let guest = RestoredGuest {
                memory: control.memory().cloned(),
                runs: std::array::from_fn(|queue| control.runs(queue)),
                control: control.control(),
            };
            check(restored.insert(link, guest).is_none(), Unfit::State)?;
            paused.insert(cid, PausedGuest { cid, link, paths, control });
        }
        let local = fabric.links.local;
        let (reply, outcome) = Reply::new();
        let (its_journal, its_mailbox) = (journal.clone(), mailbox.clone());
        let (controls, helpers) = starters(options.sandbox)?;
        let sockets = Sockets::new(sources.reaper(helpers.clone()), options);
        let others = controls.state().clone().and(helpers.state());
        let (worker, state) = spawn_worker(local.0, options.sandbox, journal.clone(), move || {
            let at = (sources, sockets, its_journal, helpers);
            let fabric = Fabric::restore(fabric, &restored, fds, at, random_seed());
            let (fabric, outcome) = match fabric {
                Ok(fabric) => (Some(fabric), Ok(())),
                Err(unfit) => (None, Err(unfit)),
            };
            reply.send(outcome);
            Some(Worker::of(fabric?, Polling::up_to(polling.min(LONGEST_LOOK)), its_mailbox))
        })?;
        // Without an answer it has panicked.
        outcome.recv().map_err(|_| RestoreError::Internal)??;
        let held = Held { worker: Some(worker), paths, ..Held::default() };
        let (held, threads_left) = (Mutex::new(held), AtomicU64::new(0));
        let state = state.and(&others);
        let node = Self { options, mailbox, journal, held, controls, state, threads_left };
        for (_, guest) in paused {
            let (cid, guest) = guest.resume(&node.controls)?;
            node.held().guests.insert(cid, guest);
        }
        Ok(node)
    }
}
