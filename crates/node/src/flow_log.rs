//! What is said of connections to whoever asked for it (`vsock switch --log-level debug`): one record where one opens,
//! one where one is refused, with who and whom. Nothing is done while nobody asks, and the journal bounds the rest.
//!
//! Decisions are made elsewhere; a call here says what came of them.

use vsock_core::{Address, Cid, CloseReason, FlowKey, Header, Op, Refused, SocketType, Verdict};

use crate::context::Context;
use crate::flows::{Greeting, NotConnected, Parties};
use crate::links::{Entry, LinkId, Links};
use vsock_virtio::sys::PeerCredentials;

/// A connection is open.
const OPENED: &str = "flow";

/// A connection was asked for and did not come about.
const REFUSED: &str = "flow-refused";

/// One connection, or the attempt, as a record says it.
struct Attempt {
    /// Whose record it is: the guest that took part, or asked another guest.
    guest: Cid,
    source: Address,
    destination: Address,
    kind: SocketType,
    /// The program on this node, if there is one.
    program: Option<PeerCredentials>,
    is_hybrid: bool,
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
        greeting: Option<Greeting>,
    ) {
        // What we ask ourselves is said where it was asked.
        if parties.is_outgoing || link != self.links.routes.loopback() {
            let is_hybrid = greeting == Some(Greeting::Hybrid);
            self.note(OPENED, &attempt_of(label, parties, is_hybrid), "");
        }
    }

    /// A program's attempt came to nothing.
    pub(crate) fn not_connected(&self, attempt: &NotConnected) {
        let interface = self.links.get(attempt.link).and_then(Entry::interface);
        let label = interface.map_or(self.links.routes.local(), |it| it.role().label());
        let is_hybrid = attempt.greeting == Greeting::Hybrid;
        let why = said_of(attempt.reason);
        self.note(REFUSED, &attempt_of(label, &attempt.parties, is_hybrid), why);
    }

    /// A program's attempt did not even start.
    pub(crate) fn denied(&self, parties: &Parties, is_hybrid: bool, refused: Refused) {
        let to = parties.theirs.cid;
        let guest =
            if self.links.routes.guest(to).is_some() { to } else { self.links.routes.local() };
        self.note(REFUSED, &attempt_of(guest, parties, is_hybrid), refused.reason().text());
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
        let (source, destination) = (key.theirs, key.ours);
        let (guest, program, is_hybrid) = (label, None, false);
        let attempt = Attempt { guest, source, destination, kind, program, is_hybrid };
        self.note(REFUSED, &attempt, refused.reason().text());
    }

    /// A guest asked for a connection that it does not get.
    pub(crate) fn refused_between(&self, request: &Header, refused: Refused) {
        self.note_between(REFUSED, request, refused.reason().text());
    }

    /// What became of a packet between guests; `was_asked`: its flow waited for an answer.
    pub(crate) fn relayed(&self, header: &Header, verdict: Verdict, was_asked: bool) {
        let is_passed_on = matches!(verdict, Verdict::Forward(_));
        match header.op {
            Op::Response if is_passed_on => self.note_between(OPENED, &asked(header), ""),
            Op::Rst if was_asked => {
                let why = said_of(CloseReason::Refused);
                self.note_between(REFUSED, &asked(header), why);
            }
            Op::Request
            | Op::Response
            | Op::Rst
            | Op::Shutdown
            | Op::Rw
            | Op::CreditUpdate
            | Op::CreditRequest
            | Op::Invalid
            | Op::Unknown => {}
        }
    }

    /// `request` is what was asked, or would be; only addresses and type of it count.
    fn note_between(&self, what: &'static str, request: &Header, why: &str) {
        let (source, destination, kind) = (request.src, request.dst, request.kind);
        let guest = source.cid;
        let attempt = Attempt { guest, source, destination, kind, program: None, is_hybrid: false };
        self.note(what, &attempt, why);
    }

    fn note(&self, what: &'static str, attempt: &Attempt, why: &str) {
        self.cx.journal.write_of_flow(what, attempt.guest.0, || {
            let mut text = format!(
                "from={} to={} type={}",
                self.named(attempt.source),
                self.named(attempt.destination),
                match attempt.kind {
                    SocketType::Stream => "stream",
                    SocketType::SeqPacket => "seqpacket",
                    SocketType::Datagram => "dgram",
                },
            );
            if let Some(PeerCredentials { pid, uid, .. }) = attempt.program {
                text += &format!(" pid={pid} uid={uid} program={:?}", program_of(pid));
            }
            if attempt.is_hybrid {
                text += " by=hybrid";
            }
            if !why.is_empty() {
                text += &format!(": {why}");
            }
            text
        });
    }

    /// An address with the name of whose it is, such as `3:5000(alpha)`.
    fn named(&self, address: Address) -> String {
        let Address { cid, port } = address;
        let guest = self.links.guest(cid);
        match guest {
            Some(guest) => format!("{}:{}({})", cid.0, port.0, guest.options().name),
            None if cid == Cid::HOST => format!("{}:{}(host)", cid.0, port.0),
            None => format!("{}:{}", cid.0, port.0),
        }
    }
}

fn attempt_of(guest: Cid, parties: &Parties, is_hybrid: bool) -> Attempt {
    let (source, destination) = parties.source_and_destination();
    let program = (parties.peer.pid > 0).then_some(parties.peer);
    Attempt { guest, source, destination, kind: parties.kind, program, is_hybrid }
}

/// The request that a packet of its destination answers.
fn asked(answer: &Header) -> Header {
    Header::outbound(answer.inbound_key(), answer.kind, Op::Request)
}

fn said_of(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Refused | CloseReason::Reset => "nobody accepts there",
        CloseReason::TimedOut => "no answer in time",
        CloseReason::LinkGone => "the guest is gone",
        CloseReason::ProtocolError | CloseReason::OverCredit => "the other side broke the protocol",
        CloseReason::Done => "given up",
    }
}

/// What a program calls itself, which is no more than that; read while it lives, as its number is another's after it.
fn program_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end_matches('\n').to_owned()
}
