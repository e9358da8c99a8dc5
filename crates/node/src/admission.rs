//! Describes attempts for `vsock_core::admission`: who asks, who is asked, and what is known of them. Says what a refused
//! call of a program returns, and explains decisions in words.

use rustix::io::Errno;
use vsock_core::admission::{Act, Attempt, Explanation, Party, Program, Refusal};
use vsock_core::{Address, Cid, FlowKey, Port, SocketType};

use crate::context::Context;
use crate::links::{Entry, LinkId, Links, Role};
use vsock_virtio::spec::F_SEQPACKET;
use vsock_virtio::sys::PeerCredentials;

/// What the kernel tells of a program by its socket. Whether it may use privileged ports is in files, and is found out
/// where that matters.
pub(crate) fn program(peer: PeerCredentials) -> Program {
    let user = (peer.pid > 0).then_some(peer.uid);
    Program { user, may_use_privileged: false }
}

impl Entry {
    /// The guest behind this link, which has this CID.
    pub(crate) fn as_guest(&self, cid: Cid) -> Party<'_> {
        Party::Guest { cid, groups: self.groups(), is_leaving: self.is_leaving }
    }

    /// What is behind this link, which is for this.
    pub(crate) fn party(&self, role: Role) -> Party<'_> {
        match role {
            Role::Guest(cid) => self.as_guest(cid),
            Role::Uplink => Party::Beyond,
            Role::Loopback => Party::PROGRAM,
        }
    }
}

impl Links {
    /// Who has a CID.
    pub(crate) fn party(&self, cid: Cid) -> Party<'_> {
        match (self.routes.to(cid), self.guest(cid)) {
            (Some(id), _) if id == self.routes.loopback() => Party::PROGRAM,
            (Some(_), Some(guest)) => guest.as_guest(cid),
            (Some(_), None) => Party::Beyond,
            (None, _) => Party::Nobody(cid),
        }
    }

    /// Whether the driver behind a link has said that it knows a socket type, which only one that runs can have.
    fn knows(&self, id: LinkId, kind: SocketType) -> bool {
        match kind {
            SocketType::Stream => true,
            _ if id == self.routes.loopback() => true,
            SocketType::SeqPacket => {
                self.get(id).is_some_and(|it| it.features() & F_SEQPACKET != 0)
            }
            SocketType::Datagram => {
                self.get(id).and_then(Entry::interface).is_some_and(|it| it.takes_datagrams())
            }
        }
    }

    /// A program here wants to begin something with a CID.
    pub(crate) fn attempt_of_program(
        &self,
        program: Program,
        act: Act,
        to: Address,
        kind: SocketType,
    ) -> Attempt<'_> {
        let is_kind_known = match self.routes.to(to.cid) {
            Some(id) => self.knows(id, kind),
            // The kernel looks for a transport that can have SEQPACKET before it looks for the way.
            None => kind != SocketType::SeqPacket,
        };
        let attempt = Attempt::connect(Party::Program(program), self.party(to.cid), to.port, kind);
        Attempt { act, is_kind_known, ..attempt }
    }

    /// The other side of a link, which is for this, wants to begin something with a program here.
    pub(crate) fn attempt_over(
        &self,
        (link, role): (LinkId, Role),
        act: Act,
        key: FlowKey,
        kind: SocketType,
    ) -> Attempt<'_> {
        let from = self.get(link).map_or(Party::Nobody(key.theirs.cid), |it| it.party(role));
        Attempt { act, ..Attempt::connect(from, Party::PROGRAM, key.ours.port, kind) }
    }

    /// The guest on a link wants to begin something with another guest.
    pub(crate) fn attempt_between(
        &self,
        act: Act,
        link: LinkId,
        (from, to): (Address, Address),
        kind: SocketType,
    ) -> Attempt<'_> {
        let target = self.routes.guest(to.cid).filter(|target| *target != link);
        let entry = target.and_then(|id| self.get(id));
        let asked = entry.map_or(Party::Nobody(to.cid), |it| it.as_guest(to.cid));
        let asker = self.get(link).map_or(Party::Nobody(from.cid), |it| it.as_guest(from.cid));
        // Of SEQPACKET the guest that is asked says so itself.
        let is_kind_known =
            kind != SocketType::Datagram || target.is_some_and(|id| self.knows(id, kind));
        Attempt { act, is_kind_known, ..Attempt::connect(asker, asked, to.port, kind) }
    }
}

/// What would be decided if the one asked the other for a connection, and why, in words.
pub(crate) fn explain(cx: &Context, links: &Links, from: Cid, to: Cid) -> Verdict {
    let attempt = Attempt::connect(
        links.party(from),
        links.party(to),
        Port::FIRST_UNPRIVILEGED,
        SocketType::Stream,
    );
    let name = |cid: Cid| match links.guest(cid) {
        Some(guest) => guest.options().name.clone(),
        None if cid == links.routes.local() => "host".into(),
        None => cid.to_string(),
    };
    let Explanation { is_allowed, rule, shared_group, refusal } = cx.admission.explain(&attempt);
    let (from, to) = (name(from), name(to));
    let reason = match (rule.as_str(), refusal, shared_group) {
        ("self", None, _) => format!("{from} reaches itself without asking"),
        ("host", None, _) => "the host and a guest may talk".into(),
        ("group", None, Some(group)) => format!("{from} and {to} share the group {group}"),
        (rule, None, _) => format!("the rule {rule:?} allows it"),
        (_, Some(Refusal::NoSharedGroup), _) => {
            format!("{from} and {to} share no group; give both the same one")
        }
        (_, Some(refusal), _) => format!("{from} -> {to}: {}", refusal.text()),
    };
    Verdict { is_allowed, rule, reason }
}

/// Whether one may talk to the other, which rule says so, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It may.
    pub is_allowed: bool,
    /// The name of the rule; empty: no rule was asked.
    pub rule: String,
    /// Why, for people.
    pub reason: String,
}

/// What a call of a program gives that is refused.
pub(crate) fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NoRoute | Refusal::NoHypervisor => Errno::NODEV,
        Refusal::TypeNotKnown => Errno::SOCKTNOSUPPORT,
        Refusal::NotConnectible => Errno::OPNOTSUPP,
        Refusal::PrivilegedPort | Refusal::NoSharedGroup | Refusal::Denied | Refusal::NoRule => {
            Errno::ACCESS
        }
        Refusal::PortInUse | Refusal::AddressesInUse => Errno::ADDRINUSE,
        Refusal::NotLocal | Refusal::PortsExhausted => Errno::ADDRNOTAVAIL,
        Refusal::NotBound => Errno::INVAL,
        Refusal::OverLimits | Refusal::UserOverLimits => Errno::NOBUFS,
        Refusal::OutOfDescriptors => Errno::MFILE,
        // As an answer of the other side would be.
        Refusal::Leaving
        | Refusal::NoListener
        | Refusal::NoHybridSocket
        | Refusal::ForeignSocket
        | Refusal::ListenerType
        | Refusal::QueueFull
        | Refusal::ListenerGone
        | Refusal::GivenUp => Errno::CONNRESET,
    }
}
