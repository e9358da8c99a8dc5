//! A guest is told before something is done to it: an attachment that ends in order says RST for each connection first,
//! as there is no way to say anything afterwards; and who changed a guest's CID waits until it knows.
//!
//! It is another thread that waits, and it bounds its wait: a guest that takes nothing (paused, or hostile) is worth a
//! moment. What a front end crash or a broken ring ends is not told here.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::Worker;
use super::source::LinkId;
use crate::link::{Link, RX_QUEUE};

/// Threads that wait until a guest has taken all there was to tell it.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    waiting: Vec<(LinkId, SyncSender<()>)>,
}

impl Worker {
    /// Ends all connections of a guest, each with RST, and lets none begin any more. What is returned yields when that
    /// is told, or its sending half goes with the guest.
    pub(crate) fn say_farewell(&mut self, id: LinkId) -> Receiver<()> {
        self.routes.retain(|_, to| *to != id);
        if let Some(slot) = self.links.get_mut(id)
            && let Some(guest) = slot.guest()
        {
            slot.is_leaving = true;
            self.reset_connections(id, guest);
            self.activate(id);
        }
        self.when_told(id)
    }

    /// Yields when the guest has taken what there is to tell it.
    pub(crate) fn when_told(&mut self, id: LinkId) -> Receiver<()> {
        let (sender, receiver) = sync_channel(1);
        self.awaited.waiting.push((id, sender));
        receiver
    }

    /// After a round: answers those whose guest has taken everything.
    pub(super) fn answer_awaiting(&mut self) {
        if self.awaited.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.awaited.waiting);
        waiting.retain(|(id, sender)| {
            let is_told = self.is_told(*id);
            if is_told {
                // Who waits may have lost its patience.
                let _ = sender.try_send(());
            }
            !is_told
        });
        self.awaited.waiting = waiting;
    }

    /// Nothing waits for the guest, or nothing can be said to it.
    fn is_told(&self, id: LinkId) -> bool {
        let Some(slot) = self.links.get(id) else { return true };
        let Link::Device(device) = &slot.link else { return true };
        let has_more = slot.endpoint.has_packet()
            || !slot.store.is_empty()
            || slot.guest().is_some_and(|cid| self.relay.has_packet(cid));
        !device.is_running(RX_QUEUE) || (!has_more && device.is_open())
    }
}
