//! How an attempt to connect starts: REQUEST, or why not; and the program's descriptor becomes the flow's.

use std::time::Duration;

use vsock_core::{Address, Cid, ConnectionId, FlowKey, Refusal, SocketType};

use super::Parts;
use crate::context::Context;
use crate::flows::Flow;
use crate::host::places::{Holder, Place};
use crate::host::program::Bound;
use crate::host::wire::{COOKIE_LEN, MESSAGE_LEN, Report};
use crate::links::{LinkId, Links};
use crate::reactor::{Owner, SourceId};

/// How long an answer may take at most, whatever a program says: until then an attempt takes one of the guest's places.
const MOST_PATIENCE: Duration = Duration::from_secs(300);

/// Whom a CONNECT asks for, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) to: Address,
    /// How long the answer may take; `None`: the default.
    timeout: Option<Duration>,
    /// Receive buffer; 0: the default.
    pub(super) buffer: u32,
}

impl Target {
    pub(super) fn new(to: Address, timeout_ms: u32, buffer: u32) -> Self {
        let timeout = Duration::from_millis(timeout_ms.into()).min(MOST_PATIENCE);
        let timeout = (timeout_ms > 0).then_some(timeout);
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
    Refused(Refusal),
    /// A connection of this node to itself is between these addresses, and may only wait for our own answer.
    Again,
}

impl Denied {
    pub(super) fn reason(self) -> Refusal {
        match self {
            Self::Refused(reason) => reason,
            Self::Again => Refusal::AddressesInUse,
        }
    }
}

impl From<Refusal> for Denied {
    fn from(reason: Refusal) -> Self {
        Self::Refused(reason)
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

/// Sends REQUEST over a link.
///
/// # Errors
/// There is a connection between these addresses, or the user or the guest has as many attempts under way as may be.
pub(super) fn start(
    cx: &Context,
    links: &mut Links,
    (link, user): (LinkId, u32),
    bound: Bound,
    target: Target,
    kind: SocketType,
) -> Result<(ConnectionId, FlowKey, Place), Refusal> {
    // Over loopback we are CID 1, whatever the other side was called.
    let cid = if link == links.routes.loopback() { Cid::LOCAL } else { links.routes.local() };
    let ours = Address { cid, port: bound.address.port };
    let key = FlowKey { ours, theirs: target.to };
    let endpoint = links.interface(link).ok_or(Refusal::NoRoute)?.endpoint_mut();
    let attempt = cx.sockets.places.take(Holder::Attempts(link, user));
    let attempt = attempt.ok_or(Refusal::UserOverLimits)?;
    let connection = endpoint.connect(cx.now, key, kind, target.timeout)?;
    Ok((connection, key, attempt))
}

#[cfg(test)]
mod tests {
    use vsock_core::Port;

    use super::*;

    #[test]
    fn patience_of_a_program_ends_after_five_minutes() {
        let to = Address { cid: Cid(3), port: Port(1) };
        let timeout = |ms| Target::new(to, ms, 0).timeout;
        assert_eq!(timeout(0), None);
        assert_eq!(timeout(250), Some(Duration::from_millis(250)));
        assert_eq!(timeout(u32::MAX), Some(MOST_PATIENCE));
    }
}
