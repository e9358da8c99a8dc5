//! A guest is told before something is done to it: an attachment that ends in order says RST for each connection first,
//! as there is no way to say anything afterwards; and who changed a guest's CID waits until it knows.
//!
//! It is another thread that waits, and it bounds its wait: a guest that takes nothing (paused, or hostile) is worth a
//! moment. What a front end crash or a broken ring ends is not told here.
//!
//! And what was said before an end is heard: packets that lie in a ring when it is stopped, and, when a userspace guest
//! leaves, what its programs have written.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::Worker;
use super::inbound::Drained;
use super::source::{LinkId, Phase, Source};
use crate::link::{Link, RX_QUEUE, TX_QUEUE};

/// Threads that wait until a guest has taken all there was to tell it.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    waiting: Vec<(LinkId, SyncSender<()>)>,
    /// Who waits until the node, a userspace guest, has sent all.
    leaving: Option<SyncSender<()>>,
}

/// Turns of taking packets from a ring that is stopped, or of filling it: far more than it can hold at a time.
const LAST_TURNS: usize = 64;

impl Worker {
    /// Ends all connections of a guest, each with RST, and lets none begin any more. What was sent before, either way,
    /// goes first as far as it can at once. What is returned yields when all is told, or its sending half goes with the
    /// guest.
    pub(crate) fn say_farewell(&mut self, id: LinkId) -> Receiver<()> {
        self.hear_out(id, TX_QUEUE);
        self.speak_out(id);
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

    /// A ring is about to be stopped, perhaps because its guest leaves: what the guest has put there is taken first.
    pub(crate) fn hear_out(&mut self, id: LinkId, queue: usize) {
        for _ in 0..if queue == TX_QUEUE { LAST_TURNS } else { 0 } {
            let drained = self.drain_inbound(id);
            self.settle(id);
            // A ring that is broken has said all that can be understood.
            if !matches!(drained, Ok(Drained::Budget)) {
                break;
            }
        }
    }

    /// What programs have sent a guest goes into its ring, as far as there is room.
    fn speak_out(&mut self, id: LinkId) {
        for _ in 0..LAST_TURNS {
            let filled = self.fill_outbound(id);
            self.settle(id);
            if !matches!(filled, Ok(true)) {
                break;
            }
        }
    }

    /// A userspace guest is about to leave: its programs can send no more, and what they have sent goes out. Yields when
    /// it has.
    pub(crate) fn end_programs(&mut self) -> Receiver<()> {
        let open: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, it)| matches!(it, Source::Flow(flow) if flow.phase == Phase::Open))
            .map(|(token, _)| token)
            .collect();
        for token in open {
            if let Some(flow) = self.flow(token) {
                // What is in the socket can still be read, and then the end.
                flow.stream.refuse_data();
                flow.stream.readable = true;
            }
            self.queue_flow(token);
        }
        let (sender, receiver) = sync_channel(1);
        self.awaited.leaving = Some(sender);
        receiver
    }

    /// Nothing that programs have sent is left here, nor that it has ended.
    fn is_sent(&self) -> bool {
        let link = self.default_route.and_then(|id| self.links.get(id));
        let has_more = link.is_some_and(|slot| slot.endpoint.has_packet());
        !has_more && !self.sources.iter().any(|(_, it)| {
            matches!(it, Source::Flow(flow) if flow.phase == Phase::Open && !flow.our_end_sent)
        })
    }

    /// Yields when the guest has taken what there is to tell it.
    pub(crate) fn when_told(&mut self, id: LinkId) -> Receiver<()> {
        let (sender, receiver) = sync_channel(1);
        self.awaited.waiting.push((id, sender));
        receiver
    }

    /// After a round: answers those whose guest has taken everything.
    pub(super) fn answer_awaiting(&mut self) {
        if self.awaited.leaving.is_some() && self.is_sent() {
            // Who waits may have lost its patience.
            let _ = self.awaited.leaving.take().map(|sender| sender.try_send(()));
        }
        if self.awaited.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.awaited.waiting);
        waiting.retain(|(id, sender)| {
            let is_told = self.is_told(*id);
            if is_told {
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
