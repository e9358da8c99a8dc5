//! All flows as plain data.

use std::time::Duration;

use vsock_core::saved::{Unfit, check, check_counts};
use vsock_core::{Event, Instant};

use super::flow::State;
use super::{Flow, FlowId, Flows, SavedFlow};
use crate::links::{Buffers, Entry, Links};
use crate::saved::Restoring;
use vsock_virtio::saved::SavedFds;

/// [`Flows`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFlows {
    /// All flows.
    pub flows: Vec<SavedFlow>,
    /// Receive buffers that are smaller than asked for.
    pub buffers_cut: u64,
    /// How long nothing may be taken of what a program sent before it closed.
    pub linger_timeout: Duration,
    /// Flows that ended with data undelivered.
    pub linger_timeouts: u64,
}

impl Flows {
    /// As plain data.
    pub(crate) fn save<'a>(&'a self, now: Instant, fds: &mut SavedFds<'a>) -> SavedFlows {
        SavedFlows {
            flows: self.iter().map(|(id, flow)| flow.save(id, now, fds)).collect(),
            buffers_cut: self.buffers_cut,
            linger_timeout: self.linger_timeout,
            linger_timeouts: self.linger_timeouts,
        }
    }

    /// Flows that go on where others were, over these links.
    pub(crate) fn restore(
        saved: SavedFlows,
        links: &Links,
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let SavedFlows { flows: saved, buffers_cut, linger_timeout, linger_timeouts } = saved;
        check_counts([buffers_cut, linger_timeouts])?;
        let mut flows = Self { buffers_cut, linger_timeout, linger_timeouts, ..Self::new() };
        for saved in saved {
            let id = saved.id;
            let interface = links.get(saved.link).and_then(Entry::interface);
            // Its link may have gone before its program has taken all.
            let guest = interface.map_or_else(Buffers::default, |it| it.buffers().clone());
            let flow = Flow::restore(saved, (&flows.buffers, &guest), restoring)?;
            if matches!(flow.state, State::Draining(_)) {
                flows.table.insert(id, Box::new(flow));
                continue;
            }
            check_connection(&flow, links)?;
            check(flows.of(flow.link, flow.connection).is_none(), Unfit::State)?;
            flows.begin(id, flow);
        }
        Ok(flows)
    }

    /// When flows whose programs have closed are to be looked at.
    pub(crate) fn lingering(&self) -> impl Iterator<Item = (FlowId, Instant)> {
        let timeout = self.linger_timeout;
        self.iter().filter_map(move |(id, flow)| Some((id, flow.linger?.due(timeout))))
    }
}

/// A flow is that of its connection, and holds no more than came over it; or the end of the connection is still to come.
fn check_connection(flow: &Flow, links: &Links) -> Result<(), Unfit> {
    let interface = links.get(flow.link).and_then(Entry::interface).ok_or(Unfit::State)?;
    let endpoint = interface.endpoint();
    let Some(info) = endpoint.info(flow.connection) else {
        let is_end = |it: &Event| matches!(it, Event::Closed { id, .. } if *id == flow.connection);
        return check(endpoint.coming_events().any(is_end), Unfit::State);
    };
    let parties = &flow.parties;
    check((info.key.ours, info.key.theirs) == (parties.ours, parties.theirs), Unfit::Address)?;
    check(info.kind == parties.kind, Unfit::State)?;
    check(flow.backlog() <= info.unread as usize, Unfit::Credit)
}
