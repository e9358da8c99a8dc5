//! A guest's control thread as seen by the worker: what its front end does is carried out between two rounds, and has
//! been when the call returns.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::links::{LinkId, RingStart};
use crate::mailbox::Mailbox;
use crate::memory::GuestMemory;
use crate::ring::RingConfig;
use crate::vhost_user::{Attachment, Detach, PeerCredentials};
use crate::worker::Worker;

/// What a front end does whose memory is not shared: it gives up without a word.
const NO_MEMORY: &str = "its driver is up, but its hypervisor shares no memory with us: \
    QEMU needs the arguments that `vsock qemu-args` prints, share=on among them";

/// The worker's end of a guest's control thread.
pub(crate) struct GuestPort {
    mailbox: Mailbox<Worker>,
    link: LinkId,
    memory: Option<Arc<GuestMemory>>,
}

impl GuestPort {
    pub(crate) fn new(mailbox: Mailbox<Worker>, link: LinkId) -> Self {
        Self { mailbox, link, memory: None }
    }

    /// Runs on the worker's thread. A worker that has stopped uses nothing of the guest any more, so there is nothing
    /// left to do then, and the answer is the harmless one.
    fn call<R: Default + Send + 'static>(
        &self,
        request: impl FnOnce(&mut Worker, LinkId) -> R + Send + 'static,
    ) -> R {
        let link = self.link;
        self.mailbox.call(move |worker| request(worker, link)).unwrap_or_default()
    }
}

impl Attachment for GuestPort {
    fn attached(&mut self, peer: PeerCredentials) {
        self.call(move |worker, id| worker.fabric.links.attached(&worker.fabric.cx, id, peer));
    }

    fn refused(&mut self, peer: PeerCredentials) {
        self.call(move |worker, id| {
            let text = format!("pid {} also wants to be the front end", peer.pid);
            worker.fabric.links.note(&worker.fabric.cx, id, "refused", text);
        });
    }

    fn set_memory(&mut self, memory: Arc<GuestMemory>) {
        self.memory = Some(memory);
    }

    fn without_memory(&mut self) {
        self.call(move |worker, id| {
            worker.fabric.links.note(&worker.fabric.cx, id, "no-memory", NO_MEMORY)
        });
    }

    fn set_features(&mut self, features: u64) {
        self.call(move |worker, id| worker.fabric.links.set_features(id, features));
    }

    fn start_ring(
        &mut self,
        index: usize,
        config: RingConfig,
        kick: OwnedFd,
        call: Option<OwnedFd>,
    ) {
        let Some(memory) = self.memory.clone() else { return };
        let start = RingStart { queue: index, memory, config, kick, call };
        self.call(move |worker, id| worker.fabric.start_ring(id, start));
    }

    fn set_call(&mut self, index: usize, call: Option<OwnedFd>) {
        self.call(move |worker, id| worker.fabric.links.set_call(id, index, call));
    }

    fn stop_ring(&mut self, index: usize) -> u16 {
        self.call(move |worker, id| worker.fabric.stop_ring(id, index))
    }

    fn detached(&mut self, reason: Detach) {
        self.call(move |worker, id| worker.fabric.detached(id, &reason));
        self.memory = None;
    }
}
