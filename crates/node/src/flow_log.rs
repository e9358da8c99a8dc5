//! What is said of connections to whoever asked for it (`vsock switch --log-level debug`): one record where one opens,
//! one where one is refused, with who and whom. Nothing is done while nobody asks, and the journal bounds the rest.
//!
//! Decisions are made elsewhere; a call here says what came of them.

use vsock_core::relay::{Asked, RelayEvent};
use vsock_core::{Address, Cid, FlowKey, Header, Refused, SocketType};

use crate::context::Context;
use crate::events::{Event, FlowRecord, Kind, Named, NotOpened, Program};
use crate::flows::{NotConnected, Parties};
use crate::host::handshake::Handshake;
use crate::links::{Entry, LinkId, Links};
use vsock_virtio::sys::PeerCredentials;

/// Between whom a connection is, or would be.
struct Who {
    source: Address,
    destination: Address,
    kind: SocketType,
    /// The program on this node, if there is one and it can be seen.
    program: Option<PeerCredentials>,
    /// The convention by which the program was reached, or asked, if it was not the client protocol.
    by: Option<&'static Handshake>,
}

impl Who {
    /// A program here, and the other side of a link.
    fn of(parties: &Parties, by: Option<&'static Handshake>) -> Self {
        let program = (parties.peer.pid > 0).then_some(parties.peer);
        let between = Self::between(parties.source_and_destination(), parties.kind);
        Self { program, by, ..between }
    }

    fn between((source, destination): (Address, Address), kind: SocketType) -> Self {
        Self { source, destination, kind, program: None, by: None }
    }
}

/// Where these records go, and what the names in them are taken from.
pub(crate) struct FlowLog<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) links: &'a Links,
}

impl FlowLog<'_> {
    /// A flow of a program here, over a link to `label`, is open.
    pub(crate) fn opened(
        &self,
        (link, label): (LinkId, Cid),
        parties: &Parties,
        by: Option<&'static Handshake>,
    ) {
        // What we ask ourselves is said where it was asked.
        if parties.is_outgoing || link != self.links.routes.loopback() {
            self.opened_by(label, &Who::of(parties, by));
        }
    }

    /// A program's attempt came to nothing.
    pub(crate) fn not_connected(&self, attempt: &NotConnected) {
        let interface = self.links.get(attempt.link).and_then(Entry::interface);
        let label = interface.map_or(self.links.routes.local(), |it| it.role().label());
        let who = Who::of(&attempt.parties, attempt.greeting.handshake());
        self.refused(label, &who, NotOpened::Closed(attempt.reason));
    }

    /// A program's attempt did not even start.
    pub(crate) fn denied(
        &self,
        parties: &Parties,
        by: Option<&'static Handshake>,
        refused: Refused,
    ) {
        let to = parties.theirs.cid;
        let guest =
            if self.links.routes.guest(to).is_some() { to } else { self.links.routes.local() };
        let why = NotOpened::Refused(refused.reason());
        self.refused(guest, &Who::of(parties, by), why);
    }

    /// The other side of a link, `label`, asked for a connection that nobody here took.
    pub(crate) fn unwanted(
        &self,
        (link, label): (LinkId, Cid),
        key: FlowKey,
        kind: SocketType,
        refused: Refused,
    ) {
        if link == self.links.routes.loopback() {
            return; // said where it was asked
        }
        let who = Who::between((key.theirs, key.ours), kind);
        self.refused(label, &who, NotOpened::Refused(refused.reason()));
    }

    /// A guest asked for a connection that it does not get.
    pub(crate) fn refused_between(&self, request: &Header, refused: Refused) {
        let who = Who::between((request.src, request.dst), request.kind);
        self.refused(request.src.cid, &who, NotOpened::Refused(refused.reason()));
    }

    /// What became of a request of one guest to another that was passed on.
    pub(crate) fn relayed(&self, event: RelayEvent) {
        match event {
            RelayEvent::Opened(Asked { source, destination, kind }) => {
                self.opened_by(source.cid, &Who::between((source, destination), kind));
            }
            RelayEvent::NotOpened(Asked { source, destination, kind }, reason) => {
                let who = Who::between((source, destination), kind);
                self.refused(source.cid, &who, NotOpened::Closed(reason));
            }
        }
    }

    fn opened_by(&self, guest: Cid, who: &Who) {
        let event = || Event::FlowOpened(self.record(who));
        self.cx.journal.write_of_flow(guest, Kind::Flow, event);
    }

    fn refused(&self, guest: Cid, who: &Who, why: NotOpened) {
        let event = || Event::FlowRefused(self.record(who), why);
        self.cx.journal.write_of_flow(guest, Kind::FlowRefused, event);
    }

    /// The same with names.
    fn record(&self, who: &Who) -> Box<FlowRecord> {
        let program =
            who.program.map(|it| Program { pid: it.pid, uid: it.uid, name: String::new() });
        Box::new(FlowRecord {
            source: self.named(who.source),
            destination: self.named(who.destination),
            kind: who.kind,
            program,
            by: who.by.map(|handshake| handshake.name),
        })
    }

    fn named(&self, address: Address) -> Named {
        let guest = self.links.guest(address.cid).map(|it| it.options().name.clone());
        Named { address, guest }
    }
}
