//! What is said of connections to whoever asked for it (`vsock switch --log-level debug`): one record where one opens,
//! one where one is refused, with who and whom. Nothing is done while nobody asks, and the journal bounds the rest.
//!
//! Decisions are made elsewhere; a call here says what came of them.

use rustix::io::Errno;
use vsock_core::{Address, Cid, CloseReason, FlowKey, Header, Op, Port, SocketType, Verdict};

use super::Worker;
use super::source::{Flow, Greeting, LinkId, Phase, Source};
use crate::reactor::Token;
use crate::vhost_user::PeerCredentials;

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

impl Worker {
    /// A flow of a program here is open.
    pub(super) fn note_opened(&self, flow: &Flow, is_hybrid: bool) {
        // What we ask ourselves is said where it was asked.
        if flow.is_outgoing || flow.link != self.loopback {
            self.note(OPENED, &self.attempt_of(flow, is_hybrid), "");
        }
    }

    /// A program's attempt came to nothing.
    pub(super) fn note_not_connected(&self, flow: &Flow, reason: CloseReason) {
        let is_hybrid = flow.phase == Phase::Connecting(Greeting::Hybrid);
        self.note(REFUSED, &self.attempt_of(flow, is_hybrid), said_of(reason));
    }

    /// A program's attempt did not even start.
    pub(super) fn note_denied(&self, token: Token, to: Address, errno: Errno) {
        let (kind, program, bound, is_hybrid) = match self.sources.get(token) {
            Some(Source::Client(client)) => (client.kind, client.peer, client.bound, false),
            Some(Source::HybridClient(client)) => (SocketType::Stream, client.peer, None, true),
            Some(_) | None => return,
        };
        let port = bound.map_or(Port::ANY, |bound| bound.address.port);
        let source = Address { cid: self.local, port };
        let guest = if self.routes.contains_key(&to.cid) { to.cid } else { self.local };
        let program = Some(program);
        let attempt = Attempt { guest, source, destination: to, kind, program, is_hybrid };
        match errno {
            Errno::NODEV => self.note(REFUSED, &attempt, "no such guest"),
            Errno::SOCKTNOSUPPORT => self.note(REFUSED, &attempt, "not with this socket type"),
            _ => self.note(REFUSED, &attempt, &errno.to_string()),
        }
    }

    /// The other side of a link asked for a connection that nobody here took.
    pub(super) fn note_unwanted(&self, link: LinkId, key: FlowKey, kind: SocketType, why: &str) {
        if link == self.loopback {
            return; // said where it was asked
        }
        let guest = self.links.get(link).map_or(self.local, |slot| Cid(slot.label()));
        let (source, destination) = (key.theirs, key.ours);
        let attempt = Attempt { guest, source, destination, kind, program: None, is_hybrid: false };
        self.note(REFUSED, &attempt, why);
    }

    /// A guest asked for a CID that no other guest has.
    pub(super) fn note_unroutable(&self, header: &Header) {
        if header.op == Op::Request {
            self.note_between(REFUSED, header, "no such guest");
        }
    }

    /// What became of a packet between guests; `was_asked`: its flow waited for an answer.
    pub(super) fn note_relayed(
        &self,
        (from, to): (LinkId, LinkId),
        header: &Header,
        verdict: Verdict,
        was_asked: bool,
    ) {
        let is_passed_on = matches!(verdict, Verdict::Forward(_));
        match header.op {
            Op::Request if !is_passed_on => {
                let links = self.links.get(from).zip(self.links.get(to));
                let may = links.is_some_and(|(source, target)| source.shares_group(target));
                let why = if may { "over a guest's limits" } else { "they share no group" };
                self.note_between(REFUSED, header, why);
            }
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

    fn attempt_of(&self, flow: &Flow, is_hybrid: bool) -> Attempt {
        let (source, destination) =
            if flow.is_outgoing { (flow.ours, flow.theirs) } else { (flow.theirs, flow.ours) };
        let guest = self.links.get(flow.link).map_or(self.local, |slot| Cid(slot.label()));
        let program = (flow.peer.pid > 0).then_some(flow.peer);
        Attempt { guest, source, destination, kind: flow.kind, program, is_hybrid }
    }

    fn note(&self, what: &'static str, attempt: &Attempt, why: &str) {
        self.journal.write_of_flow(what, attempt.guest.0, || {
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
        let guest = self.routes.get(&cid).and_then(|&id| self.links.get(id));
        match guest {
            Some(slot) => format!("{}:{}({})", cid.0, port.0, slot.options.name),
            None if cid == Cid::HOST => format!("{}:{}(host)", cid.0, port.0),
            None => format!("{}:{}", cid.0, port.0),
        }
    }
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
