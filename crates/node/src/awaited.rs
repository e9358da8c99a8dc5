//! Threads that wait until a guest has taken all there was to tell it, or until a userspace guest has sent all.
//!
//! It is another thread that waits, and it bounds its wait: a guest that takes nothing (paused, or hostile) is worth a
//! moment.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::flows::Flows;
use crate::links::{Entry, Forwarder, LinkId, Links};
use vsock_virtio::link::Link;
use vsock_virtio::spec::RX_QUEUE;

/// Threads that wait.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    told: Vec<(LinkId, SyncSender<()>)>,
    sent: Option<SyncSender<()>>,
}

impl Awaited {
    /// Yields when the guest has taken what there is to tell it, or its sending half goes with the guest.
    pub(crate) fn when_told(&mut self, id: LinkId) -> Receiver<()> {
        let (sender, receiver) = sync_channel(1);
        self.told.push((id, sender));
        receiver
    }

    /// Yields when all is sent that programs of a userspace guest have to send.
    pub(crate) fn when_sent(&mut self) -> Receiver<()> {
        let (sender, receiver) = sync_channel(1);
        self.sent = Some(sender);
        receiver
    }

    /// After a round: answers those for whom it is so.
    pub(crate) fn answer(&mut self, links: &Links, forwarder: &Forwarder, flows: &Flows) {
        if self.sent.is_some() && is_sent(links, flows) {
            // Whoever waited may have lost its patience.
            let _ = self.sent.take().map(|sender| sender.try_send(()));
        }
        self.told.retain(|(id, sender)| {
            let is_told = is_told(links, forwarder, *id);
            if is_told {
                let _ = sender.try_send(());
            }
            !is_told
        });
    }
}

/// Nothing that programs have sent is left here, nor that it has ended.
fn is_sent(links: &Links, flows: &Flows) -> bool {
    let uplink = links.routes.uplink().and_then(|id| links.get(id)).and_then(Entry::interface);
    let has_more = uplink.is_some_and(|it| it.endpoint().has_packet());
    !has_more && flows.is_all_sent()
}

/// Nothing waits for the guest, or nothing can be said to it.
fn is_told(links: &Links, forwarder: &Forwarder, id: LinkId) -> bool {
    let Some(interface) = links.get(id).and_then(Entry::interface) else { return true };
    let Link::Device(device) = interface.link() else { return true };
    let is_relayed = interface.role().guest().is_some_and(|cid| forwarder.has_packet(cid));
    let has_more = !interface.is_idle() || is_relayed;
    !device.is_running(RX_QUEUE) || (!has_more && device.has_handled_reset())
}
