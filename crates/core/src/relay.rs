//! placeholder
use crate::address::{Address, Cid, SocketType};
use crate::packet::{Header, RawHeader};
use crate::time::{Duration, Instant};

/// What a relay may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// The most credit one direction of a flow announces.
    pub max_flow_credit: u32,
    /// The credit that all flows from one guest to another announce together.
    pub pair_budget: u32,
    /// The least credit of a direction, budget or not.
    pub min_flow_credit: u32,
    /// Flows that one guest may have opened.
    pub max_flows_per_guest: usize,
    /// Of these, not yet answered.
    pub max_half_open_per_guest: usize,
    /// RSTs that wait for room on one guest's link.
    pub max_replies: usize,
    /// How long a REQUEST may stay unanswered.
    pub half_open_timeout: Duration,
    /// How long a flow that one side shut completely may stay.
    pub close_timeout: Duration,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            max_flow_credit: 262_144,
            pair_budget: 32 << 20,
            min_flow_credit: 4096,
            max_flows_per_guest: 4096,
            max_half_open_per_guest: 256,
            max_replies: 256,
            half_open_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(30),
        }
    }
}

/// What the shell has to do with a packet between guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Pass it on with this header, and `header.len` bytes of payload, to `header.dst.cid`.
    Forward(Header),
    /// Nothing is passed on; RSTs may have been queued.
    Drop,
}

/// A frozen snapshot of one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Names the flow for ever.
    pub id: u64,
    /// Socket type.
    pub kind: SocketType,
    /// Who asked for it.
    pub source: Address,
    /// Who was asked.
    pub destination: Address,
    /// Name of its state.
    pub state: &'static str,
    /// Payload bytes from source to destination.
    pub bytes_out: u64,
    /// Payload bytes from destination to source.
    pub bytes_in: u64,
    /// RW packets from source to destination.
    pub packets_out: u64,
    /// RW packets from destination to source.
    pub packets_in: u64,
    /// When it was asked for.
    pub opened_at: Instant,
}

/// Counters of a relay since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStats {
    /// Flows at the moment.
    pub flows: u64,
}

impl RelayStats {
    /// Every counter with its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 1] {
        [("flows", self.flows)]
    }
}

/// All flows between guests of one node.
#[derive(Debug)]
pub struct Relay {
    limits: RelayLimits,
}

#[allow(unused_variables, clippy::unused_self, missing_docs)]
impl Relay {
    /// A relay without flows; `hash_seed` must be unknown to guests.
    #[must_use]
    pub fn new(limits: RelayLimits, hash_seed: u64) -> Self {
        Self { limits }
    }
    /// Takes a packet of one guest for another. The caller has checked that `header.src.cid` is
    /// the guest that sent it and that `header.dst.cid` is a guest of this node; `allow` is asked
    /// for a REQUEST only.
    pub fn receive(
        &mut self,
        now: Instant,
        header: &Header,
        allow: impl FnOnce() -> bool,
    ) -> Verdict {
        Verdict::Drop
    }
    /// Whether there is room for the replies that a packet of this guest may cause; while not,
    /// leave its packets in the ring.
    #[must_use]
    pub fn accepts_packets(&self, from: Cid) -> bool {
        true
    }
    /// Whether there is a control packet for this guest.
    #[must_use]
    pub fn has_packet(&self, to: Cid) -> bool {
        false
    }
    /// The next control packet for this guest; goes out before anything forwarded later.
    pub fn next_packet(&mut self, to: Cid) -> Option<RawHeader> {
        None
    }
    /// A guest that has control packets waiting which were queued since it was last named here.
    pub fn next_ready(&mut self) -> Option<Cid> {
        None
    }
    /// A guest was removed or its link reset: its flows end, the other sides get a RST.
    pub fn remove_guest(&mut self, guest: Cid) {}
    /// When `expire` is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }
    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Instant) {}
    /// Snapshots of all flows.
    pub fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        core::iter::empty()
    }
    /// Counters.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        RelayStats::default()
    }
}
