//! Threads that wait until a guest has taken all there was to tell it, or until a userspace guest has sent all.
//!
//! It is another thread that waits, and it bounds its wait: a guest that takes nothing (paused, or hostile) is worth a
//! moment.

use std::time::Duration;

use crate::flows::Flows;
use crate::links::{Entry, Forwarder, LinkId, Links};
use crate::mailbox::Reply;
use vsock_core::Instant;
use vsock_virtio::link::Link;
use vsock_virtio::spec::RX_QUEUE;

/// How often the node looks whether a guest has taken its packets, while a thread waits for that.
const LOOK: Duration = Duration::from_millis(1);

/// How long a guest may take to look at packets that are in its ring, and that it has been signalled.
const TAKING: Duration = Duration::from_millis(300);

/// A thread that waits for a guest.
#[derive(Debug)]
struct Told {
    link: LinkId,
    reply: Reply<()>,
    /// Since when all is in the guest's ring.
    sent_at: Option<Instant>,
}

/// Threads that wait.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    told: Vec<Told>,
    sent: Option<Reply<()>>,
}

impl Awaited {
    /// Answers when the guest has taken what there is to tell it, or is gone.
    pub(crate) fn when_told(&mut self, id: LinkId, reply: Reply<()>) {
        self.told.push(Told { link: id, reply, sent_at: None });
    }

    /// Answers when all is sent that programs of a userspace guest have to send.
    pub(crate) fn when_sent(&mut self, reply: Reply<()>) {
        self.sent = Some(reply);
    }

    /// How long the node may sleep at most: a guest that takes its packets signals nothing.
    pub(crate) fn longest_sleep(&self) -> Option<Duration> {
        (!self.told.is_empty()).then_some(LOOK)
    }

    /// After a round: answers those for whom it is so.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        links: &Links,
        forwarder: &Forwarder,
        flows: &Flows,
    ) {
        if let Some(reply) = self.sent.take_if(|_| is_sent(links, flows)) {
            reply.done();
        }
        let is_told = |it: &mut Told| match state_of(links, forwarder, it.link) {
            State::Waiting => false,
            State::Sent => now.since(*it.sent_at.get_or_insert(now)) >= TAKING,
            State::Told => true,
        };
        for told in self.told.extract_if(.., is_told) {
            told.reply.done();
        }
    }
}

/// Nothing that programs have sent is left here, nor that it has ended.
fn is_sent(links: &Links, flows: &Flows) -> bool {
    let uplink = links.routes.uplink().and_then(|id| links.get(id)).and_then(Entry::interface);
    let has_more = uplink.is_some_and(|it| it.endpoint().has_packet());
    !has_more && flows.is_all_sent()
}

/// How far what there is to tell a guest has come.
enum State {
    /// Some of it waits here.
    Waiting,
    /// All of it is in the guest's ring.
    Sent,
    /// The guest has taken it, or nothing can be said to it.
    Told,
}

fn state_of(links: &Links, forwarder: &Forwarder, id: LinkId) -> State {
    let Some(interface) = links.get(id).and_then(Entry::interface) else { return State::Told };
    let Link::Device(device) = interface.link() else { return State::Told };
    let is_relayed = interface.role().guest().is_some_and(|cid| forwarder.has_packet(cid));
    if !device.is_running(RX_QUEUE) {
        State::Told
    } else if !interface.is_idle() || is_relayed || !device.has_handled_reset() {
        State::Waiting
    } else if device.has_taken_all() {
        State::Told
    } else {
        State::Sent
    }
}
