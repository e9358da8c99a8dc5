//! The connections over a link, and which of them have something to send.

use vsock_core::saved::{Unfit, check};
use vsock_core::{ConnectionId, Endpoint, Instant, Limits, Shutdown};

use super::ready::Ready;
use super::users::{Sends, Update};

/// The connections over a link.
pub(super) struct Connections {
    pub(super) endpoint: Endpoint,
    pub(super) ready: Ready,
}

impl Connections {
    pub(super) fn new(limits: Limits, seed: u64) -> Self {
        Self { endpoint: Endpoint::new(limits, seed), ready: Ready::default() }
    }

    /// From plain data: the connections, and those with something to send, by turns.
    pub(super) fn restore(endpoint: Endpoint, turns: Vec<ConnectionId>) -> Result<Self, Unfit> {
        let mut ready = Ready::default();
        for id in turns {
            check(endpoint.info(id).is_some() && !ready.contains(id), Unfit::Queue)?;
            ready.push(id, &endpoint);
        }
        Ok(Self { endpoint, ready })
    }

    /// Does what the user of a connection asks for by what it has done.
    pub(super) fn update(&mut self, now: Instant, id: ConnectionId, update: Update) {
        if update.bytes > 0 || update.packets > 0 {
            self.endpoint.consumed(id, update.bytes, update.packets);
        }
        if update.stops_receiving {
            self.endpoint.shut_down(now, id, Shutdown::RCV);
        }
        match update.sends {
            Sends::Nothing => {}
            Sends::More => self.ready.push(id, &self.endpoint),
            Sends::Ended => self.endpoint.shut_down(now, id, Shutdown::SEND),
            Sends::Closed => self.endpoint.close(now, id),
            Sends::Failed => self.endpoint.reset(id),
        }
    }
}
