//! What receive buffers may cost a node in all.
//!
//! A guest may fill the buffers of all its connections, and nobody has to read: they come out of a budget of the guest's
//! (`links/buffers.rs`). A program may ask for larger ones: what all of them have above the default comes out of one budget
//! of the node, too. A flow that finds it empty keeps the default. What was announced cannot be taken back (the other side
//! may have it under way), so a share goes back with its flow only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vsock_core::saved::Unfit;
use vsock_core::{ConnectionId, Endpoint};

use crate::links::{Buffers, Held};

/// Receive buffer of a connection whose program asks for none, bytes; what the core announces, too.
pub(crate) const DEFAULT_BUFFER: u32 = 262_144;

/// What all buffers of a node may have above that, bytes.
const BUDGET: u64 = 256 << 20;

/// A node's budget.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<AtomicU64>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(BUDGET)))
    }
}

/// What one flow has of both budgets; goes back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    /// Above the default.
    bytes: u64,
    held: Held,
}

impl Budget {
    /// Nothing of it yet, and what a new flow has of its guest's.
    pub(crate) fn share(&self, guest: &Buffers) -> Share {
        Share { budget: self.clone(), bytes: 0, held: guest.begin(DEFAULT_BUFFER) }
    }

    /// What a predecessor has given away of it and of the guest's, in bytes.
    pub(crate) fn restore(
        &self,
        guest: &Buffers,
        (bytes, held): (u64, u32),
    ) -> Result<Share, Unfit> {
        let mut share = Share { budget: self.clone(), bytes: 0, held: guest.restore(held) };
        share.take(bytes).map_err(|()| Unfit::TooMany)?;
        Ok(share)
    }

    #[cfg(test)]
    fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Gives a connection the receive buffer that its program asks for (0: the default, or as it is), or what is left for
    /// it. False: that is less.
    pub(crate) fn give(&mut self, endpoint: &mut Endpoint, id: ConnectionId, wanted: u32) -> bool {
        let asked = if wanted == 0 { DEFAULT_BUFFER } else { wanted };
        let granted = self.grant(self.held.possible(asked));
        self.held.raise(granted);
        // A guest that has many connections may still be sent as much at once, and messages as long.
        let ours = granted.max(asked.min(DEFAULT_BUFFER));
        if wanted != 0 {
            endpoint.set_buf_alloc(id, ours);
        }
        if granted < ours {
            endpoint.announce(id, granted);
        }
        granted == asked
    }

    /// The buffer that a flow gets that asks for `wanted` bytes: all of it, or at most the default and what it has had.
    fn grant(&mut self, wanted: u32) -> u32 {
        let above = u64::from(wanted.saturating_sub(DEFAULT_BUFFER));
        if self.take(above.saturating_sub(self.bytes)).is_err() {
            // Less than it asked for, but not less than was announced before it did.
            return DEFAULT_BUFFER + u32::try_from(self.bytes).unwrap_or(0);
        }
        wanted
    }

    /// Takes more of the budget.
    fn take(&mut self, more: u64) -> Result<(), ()> {
        let budget = &self.budget.0;
        let take = |left: u64| left.checked_sub(more);
        budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| ())?;
        self.bytes += more;
        Ok(())
    }

    /// Bytes of the node's budget.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the guest's.
    pub(crate) fn held(&self) -> u32 {
        self.held.bytes()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: u32 = 16 << 20;

    #[test]
    fn share_is_what_is_above_the_default_and_never_shrinks() {
        let budget = Budget::default();
        let mut share = budget.share(&Buffers::default());
        assert_eq!(share.grant(DEFAULT_BUFFER), DEFAULT_BUFFER);
        assert_eq!(budget.left(), BUDGET);
        for wanted in [DEFAULT_BUFFER + 1000, 1, DEFAULT_BUFFER + 1000] {
            assert_eq!(share.grant(wanted), wanted);
            assert_eq!(budget.left(), BUDGET - 1000);
        }
        drop(share);
        assert_eq!(budget.left(), BUDGET);
    }

    #[test]
    fn budget_that_is_used_up_gives_the_default_until_a_flow_ends() {
        let budget = Budget::default();
        let mut shares = Vec::new();
        let mut last = LARGE;
        while last == LARGE {
            shares.push(budget.share(&Buffers::default()));
            last = shares.last_mut().unwrap().grant(LARGE);
        }
        assert_eq!((shares.len(), last), (17, DEFAULT_BUFFER));
        // What is left is less than one needs that has something already: it keeps that.
        let left = u32::try_from(budget.left()).unwrap();
        assert_eq!(shares[16].grant(DEFAULT_BUFFER + left), DEFAULT_BUFFER + left);
        assert_eq!(shares[16].grant(LARGE), DEFAULT_BUFFER + left);
        assert_eq!(shares[16].grant(1000), 1000);
        shares.remove(0);
        assert_eq!(shares[15].grant(LARGE), LARGE);
    }
}
