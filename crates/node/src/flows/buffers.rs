//! What receive buffers larger than the default may cost a node in all.
//!
//! A program may ask for a larger buffer for each of its connections, its guest may fill them all, and nobody has to
//! read. So what all of them have above the default comes out of one budget; who finds it empty keeps the default. What
//! was announced cannot be taken back (the other side may have it under way), so a share goes back with its flow only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vsock_core::saved::Unfit;
use vsock_core::{ConnectionId, Endpoint};

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

/// What one flow has of the budget; goes back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    /// Nothing of it yet.
    pub(crate) fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }

    /// A part of it that a predecessor has given away, in bytes.
    pub(crate) fn restore(&self, bytes: u64) -> Result<Share, Unfit> {
        let mut share = self.share();
        share.take(bytes).map_err(|()| Unfit::TooMany)?;
        Ok(share)
    }

    #[cfg(test)]
    fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Gives a connection the receive buffer that its program asks for (0: as it is), or what is left for it. False: that
    /// is less.
    pub(crate) fn give(&mut self, endpoint: &mut Endpoint, id: ConnectionId, wanted: u32) -> bool {
        if wanted == 0 {
            return true;
        }
        let granted = self.grant(wanted);
        endpoint.set_buf_alloc(id, granted);
        granted == wanted
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

    /// Bytes of the budget.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
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
        let mut share = budget.share();
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
            shares.push(budget.share());
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
