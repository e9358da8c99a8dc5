//! What the receive buffers of a guest's connections may have together.
//!
//! A guest may fill each buffer that was announced to it, and no program has to read: what has come waits in this process.
//! So the buffers come out of a budget of the guest's. A new connection has the usual buffer as long as that is no more
//! than a share of what is left, and later the share. What was announced cannot be taken back, as it may be under way;
//! so a part of the budget, the least buffer for each connection that a guest may have, is set aside.
//!
//! A flow holds its part, and not its connection: when that has ended, what has come still waits for the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a guest has if no setting says otherwise, bytes.
pub(crate) const BUFFER_LIMIT: u64 = 64 << 20;

/// The least buffer.
const LEAST: u32 = 4096;

/// Flows for each of which that is set aside: as many as a link has connections.
const MOST_FLOWS: u64 = 4096;

/// What of the rest a new flow may have: the buffers of a few hundred flows become smaller little by little.
const SHARE: u64 = 64;

#[derive(Debug)]
struct Counts {
    limit: AtomicU64,
    taken: AtomicU64,
    flows: AtomicU64,
}

/// The budget of one link.
#[derive(Clone, Debug)]
pub(crate) struct Buffers(Arc<Counts>);

impl Default for Buffers {
    /// Without a limit.
    fn default() -> Self {
        let (limit, taken, flows) =
            (AtomicU64::new(u64::MAX), AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Counts { limit, taken, flows }))
    }
}

impl Buffers {
    /// From now on; flows keep what they have.
    pub(super) fn set_limit(&self, bytes: u64) {
        self.0.limit.store(bytes, Ordering::Relaxed);
    }

    /// There are as many flows as the least buffer is set aside for: no more may be asked for.
    pub(crate) fn are_used_up(&self) -> bool {
        let is_limited = self.0.limit.load(Ordering::Relaxed) < u64::MAX;
        is_limited && self.0.flows.load(Ordering::Relaxed) >= MOST_FLOWS
    }

    /// A flow begins.
    pub(crate) fn begin(&self, usual: u32) -> Held {
        let mut held = self.restore(LEAST.min(usual));
        let share = u32::try_from(self.left() / SHARE).unwrap_or(u32::MAX);
        held.take(share.min(usual - held.bytes));
        held
    }

    /// A flow goes on that has so much.
    pub(crate) fn restore(&self, bytes: u32) -> Held {
        self.0.flows.fetch_add(1, Ordering::Relaxed);
        let mut held = Held { of: self.clone(), bytes: 0 };
        held.take(bytes);
        held
    }

    /// What is left above that which is set aside.
    fn left(&self) -> u64 {
        let [limit, taken, flows] =
            [&self.0.limit, &self.0.taken, &self.0.flows].map(|it| it.load(Ordering::Relaxed));
        let set_aside = MOST_FLOWS.saturating_sub(flows) * u64::from(LEAST);
        limit.saturating_sub(taken).saturating_sub(set_aside)
    }
}

/// What a flow has of it; goes back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    of: Buffers,
    bytes: u32,
}

impl Held {
    /// Bytes that may be announced.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// What a flow may have that wants so much.
    pub(crate) fn possible(&self, wanted: u32) -> u32 {
        let left = u32::try_from(self.of.left()).unwrap_or(u32::MAX);
        wanted.min(self.bytes.saturating_add(left))
    }

    /// Has so much, if it has less, which is [`possible`](Self::possible).
    pub(crate) fn raise(&mut self, bytes: u32) {
        self.take(bytes.saturating_sub(self.bytes));
    }

    fn take(&mut self, more: u32) {
        self.of.0.taken.fetch_add(u64::from(more), Ordering::Relaxed);
        self.bytes += more;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.0.taken.fetch_sub(u64::from(self.bytes), Ordering::Relaxed);
        self.of.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: u32 = 262_144;

    fn buffers() -> Buffers {
        let buffers = Buffers::default();
        buffers.set_limit(BUFFER_LIMIT);
        buffers
    }

    #[test]
    fn flows_have_the_usual_buffer_then_less_and_all_together_the_limit() {
        let buffers = buffers();
        let mut flows = Vec::new();
        while !buffers.are_used_up() {
            flows.push(buffers.begin(USUAL));
        }
        let sizes: Vec<u32> = flows.iter().map(Held::bytes).collect();
        assert_eq!((sizes.len(), &sizes[..120]), (4096, [USUAL; 120].as_slice()));
        assert!(sizes.is_sorted_by(|before, after| before >= after));
        assert!(sizes[200] > 65_536 && sizes[4095] >= LEAST, "{} {}", sizes[200], sizes[4095]);
        let all: u64 = sizes.iter().copied().map(u64::from).sum();
        assert!(all <= BUFFER_LIMIT, "{all}");
        drop(flows);
        assert_eq!(buffers.begin(USUAL).bytes(), USUAL);
    }

    #[test]
    fn larger_buffer_is_possible_as_far_as_the_limit_goes() {
        let buffers = buffers();
        let mut held = buffers.begin(USUAL);
        assert_eq!(held.possible(16 << 20), 16 << 20);
        held.raise(16 << 20);
        let mut other = buffers.begin(USUAL);
        let rest = other.possible(u32::MAX);
        assert!((31 << 20..33 << 20).contains(&rest), "{rest}");
        other.raise(rest);
        assert_eq!((other.possible(u32::MAX), other.possible(1)), (rest, 1));
        assert_eq!(buffers.begin(USUAL).bytes(), LEAST);
    }

    #[test]
    fn limit_that_is_lowered_takes_nothing_back() {
        let buffers = buffers();
        let held = buffers.begin(USUAL);
        buffers.set_limit(1);
        assert_eq!((held.bytes(), held.possible(u32::MAX)), (USUAL, USUAL));
        assert_eq!(buffers.begin(USUAL).bytes(), LEAST);
    }
}
