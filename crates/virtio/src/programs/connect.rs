//! How an attempt to connect starts: the way, REQUEST, or why not; and the program's descriptor becomes the flow's.

use std::time::Duration;

use rustix::io::Errno;
use vsock_core::{Address, Cid, ConnectError, ConnectionId, FlowKey, Instant, SocketType};

use super::Parts;
use crate::flows::Flow;
use crate::host::program::Bound;
use crate::host::wire::{COOKIE_LEN, MESSAGE_LEN, Report};
use crate::links::{LinkId, Links};
use crate::reactor::{Owner, SourceId};
use crate::spec::F_SEQPACKET;

/// What a CONNECT asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) to: Address,
    /// How long the answer may take; `None`: the default.
    timeout: Option<Duration>,
    /// Receive buffer; 0: the default.
    pub(super) buffer: u32,
}

impl Attempt {
    pub(super) fn new(to: Address, timeout_ms: u32, buffer: u32) -> Self {
        let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into()));
        Self { to, timeout, buffer }
    }
}

/// What a CONNECT says beside what it asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) report: Report,
    pub(super) cookie: u64,
    /// Its length.
    pub(super) len: usize,
}

impl Held {
    /// Of a request with these bytes behind it.
    pub(super) fn new(report: Report, extra: &[u8]) -> Self {
        let cookie = extra.first_chunk::<COOKIE_LEN>().copied().map_or(0, u64::from_le_bytes);
        Self { report, cookie, len: MESSAGE_LEN + extra.len() }
    }

    /// How much of it is still in the socket.
    pub(super) fn unread(&self) -> usize {
        if self.report == Report::Reply { 0 } else { self.len }
    }
}

/// Why an attempt did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    Errno(Errno),
    /// A connection of this node to itself is between these addresses, and may only wait for our own answer.
    Again,
}

impl Denied {
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Errno(errno) => errno,
            Self::Again => Errno::ADDRINUSE,
        }
    }
}

impl From<Errno> for Denied {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Puts a flow where its program was.
pub(super) fn begin(parts: &mut Parts<'_>, id: SourceId, flow: Flow) {
    parts.links.activate(flow.link);
    parts.services.register.opened(flow.holdings.socket, id);
    // A program may have ended its data right behind the request, and that has been told already.
    parts.cx.sources.hand_over(flow.fd(), id, Owner::Flow);
    parts.flows.begin(id, flow);
}

/// Which link leads to a CID, for a socket of this kind; `None`: guests may have it, and none has.
///
/// Errors are those that the kernel's choice of a transport gives (kernel-semantics, 1.3): only a driver that runs
/// can have said that it knows SEQPACKET.
pub(super) fn route(links: &Links, cid: Cid, kind: SocketType) -> Result<Option<LinkId>, Errno> {
    let id = links.routes.to(cid);
    if id == Some(links.routes.loopback()) {
        return Ok(id);
    }
    if id.is_none() && cid == Cid::HYPERVISOR {
        return Err(Errno::NODEV);
    }
    let features = id.and_then(|id| links.get(id)).map_or(0, |it| it.features());
    if kind == SocketType::SeqPacket && features & F_SEQPACKET == 0 {
        return Err(Errno::SOCKTNOSUPPORT);
    }
    Ok(id)
}

/// Sends REQUEST over a link.
pub(super) fn start(
    now: Instant,
    links: &mut Links,
    link: LinkId,
    bound: Bound,
    attempt: Attempt,
    kind: SocketType,
) -> Result<(ConnectionId, FlowKey), Errno> {
    // Over loopback we are CID 1, whatever the other side was called.
    let cid = if link == links.routes.loopback() { Cid::LOCAL } else { links.routes.local() };
    let ours = Address { cid, port: bound.address.port };
    let key = FlowKey { ours, theirs: attempt.to };
    let endpoint = links.interface(link).ok_or(Errno::NODEV)?.endpoint_mut();
    let connection = endpoint.connect(now, key, kind, attempt.timeout);
    let connection = connection.map_err(|error| match error {
        ConnectError::InUse => Errno::ADDRINUSE,
        ConnectError::TooMany => Errno::NOBUFS,
    })?;
    Ok((connection, key))
}
