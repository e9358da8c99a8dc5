//! One connection of a machine, and what came in over several.

use vsock_core::ConnectionId;

use crate::clock;
use crate::service::Service;

/// One connection.
pub(super) struct Flow {
    pub(super) id: ConnectionId,
    pub(super) group: u32,
    pub(super) service: Service,
    /// The other side has accepted, or we have.
    pub(super) is_open: bool,
    /// To be sent as soon as credit allows: echoes and greetings.
    pub(super) pending: Vec<u8>,
    /// Place in the stream, for the content check.
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) tally: Tally,
}

impl Flow {
    pub(super) fn new(id: ConnectionId, group: u32, service: Service) -> Self {
        Self {
            id,
            group,
            service,
            is_open: false,
            pending: Vec::new(),
            received: 0,
            sent: 0,
            tally: Tally::default(),
        }
    }
}

/// What came in since it was last reset.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    /// When the first and the last came.
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// How often content was wrong; counted only when contents are checked.
    pub(crate) wrong: u64,
}

impl Tally {
    /// Notes what came at `now` in some packets.
    pub(crate) fn note(&mut self, now: u64, bytes: u64, packets: u32, is_wrong: bool) {
        if self.first == 0 {
            self.first = now;
        }
        self.last = now;
        self.bytes += bytes;
        self.packets += u64::from(packets);
        self.wrong += u64::from(is_wrong);
    }

    /// The sum and each flow's share, as members of a JSON object.
    pub(crate) fn json(tallies: impl IntoIterator<Item = Vec<Self>>) -> String {
        let tallies: Vec<Self> = tallies.into_iter().flatten().collect();
        let sum = |of: fn(&Self) -> u64| tallies.iter().map(of).sum::<u64>();
        let seen = || tallies.iter().filter(|tally| tally.bytes > 0);
        let first = seen().map(|tally| tally.first).min().unwrap_or(0);
        let last = seen().map(|tally| tally.last).max().unwrap_or(0);
        let flows: Vec<String> = tallies.iter().map(|tally| tally.bytes.to_string()).collect();
        format!(
            "\"bytes\": {}, \"packets\": {}, \"wrong\": {}, \"seconds\": {:.6}, \"flows\": [{}]",
            sum(|tally| tally.bytes),
            sum(|tally| tally.packets),
            sum(|tally| tally.wrong),
            clock::seconds(last.saturating_sub(first)),
            flows.join(", "),
        )
    }
}
