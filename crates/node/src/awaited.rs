//! Threads that wait until a guest has taken all there was to tell it, or until a userspace guest has sent all.
//!
//! It is another thread that waits, and it bounds its wait: a guest that takes nothing (paused, or hostile) is worth a
//! moment.

use crate::flows::Flows;
use crate::links::{Entry, Forwarder, LinkId, Links};
use crate::mailbox::Reply;
use vsock_virtio::link::Link;
use vsock_virtio::spec::RX_QUEUE;

/// Threads that wait.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    told: Vec<(LinkId, Reply<()>)>,
    sent: Option<Reply<()>>,
}

impl Awaited {
    /// Answers when the guest has taken what there is to tell it, or is gone.
    pub(crate) fn when_told(&mut self, id: LinkId, reply: Reply<()>) {
        self.told.push((id, reply));
    }

    /// Answers when all is sent that programs of a userspace guest have to send.
    pub(crate) fn when_sent(&mut self, reply: Reply<()>) {
        self.sent = Some(reply);
    }

    /// After a round: answers those for whom it is so.
    pub(crate) fn answer(&mut self, links: &Links, forwarder: &Forwarder, flows: &Flows) {
        if let Some(reply) = self.sent.take_if(|_| is_sent(links, flows)) {
            reply.done();
        }
        let is_told = |waiting: &mut (LinkId, Reply<()>)| is_told(links, forwarder, waiting.0);
        for (_, reply) in self.told.extract_if(.., is_told) {
            reply.done();
        }
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
