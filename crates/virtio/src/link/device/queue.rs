//! One queue of a device that runs, and the order in which its chains are given back.
//!
//! They are given back in the order they were popped (see [`queue`](crate::queue)). A chain that is of no use (no packet
//! fits) cannot be given back at once when older ones are still in use; it waits in `skipped`.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::super::packet::{LinkError, LinkStats};
use crate::queue::{Chain, DeviceQueue, QueueError};
use vsock_guest_memory::slice::Slices;

/// Descriptors looked at in chains of no use, in a row, before others have their turn: a driver may offer such chains as
/// fast as they are given back, and chooses how long they are.
const MOST_STEPS: u32 = 256;

/// Chains of no use that wait for older ones, at most: what is kept of them must not grow with the size of the queue,
/// which the guest chooses.
const MOST_WAITING: usize = 1024;

/// A queue that runs.
pub(super) struct RunningQueue {
    pub(super) virtqueue: DeviceQueue,
    pub(super) kick: OwnedFd,
    pub(super) call: Option<OwnedFd>,
    /// Number of chains popped, and of chains given back: free-running.
    popped: u16,
    done: u16,
    /// Chains of no use that wait for their turn: number and head.
    skipped: VecDeque<(u16, u16)>,
}

impl RunningQueue {
    /// A queue from which nothing was popped yet.
    pub(super) fn new(virtqueue: DeviceQueue, kick: OwnedFd, call: Option<OwnedFd>) -> Self {
        Self { virtqueue, kick, call, popped: 0, done: 0, skipped: VecDeque::new() }
    }

    /// Pops the next chain that is of use; those before it are given back and counted, and what they added to `slices` is
    /// taken out. Also returns how many descriptors were looked at. Where nothing sensible comes, the cause may be memory that is
    /// gone.
    #[inline]
    pub(super) fn pop_useful(
        &mut self,
        number: usize,
        slices: &mut Slices,
        stats: &mut LinkStats,
        is_useful: impl Fn(&Chain) -> bool,
    ) -> Result<Option<(Chain, u32)>, LinkError> {
        let mut steps = 0;
        while steps < MOST_STEPS {
            match self.pop(slices) {
                Ok(Some(chain)) if is_useful(&chain) => {
                    steps += chain.descriptors;
                    return Ok(Some((chain, steps)));
                }
                Ok(Some(chain)) => {
                    steps += chain.descriptors;
                    slices.truncate(chain.readable.start);
                    if self.skipped.len() >= MOST_WAITING {
                        self.popped = self.popped.wrapping_sub(1);
                        self.virtqueue.unpop(1);
                        break;
                    }
                    stats.skipped += self.skip(chain.head);
                }
                Ok(None) if !self.virtqueue.is_dead() => return Ok(None),
                Err(error) if !self.virtqueue.is_dead() => {
                    return Err(LinkError::Queue { queue: number, error });
                }
                Ok(None) | Err(_) => return Err(LinkError::MemoryDead),
            }
        }
        Ok(None)
    }

    #[inline]
    fn pop(&mut self, slices: &mut Slices) -> Result<Option<Chain>, QueueError> {
        let chain = self.virtqueue.pop(slices)?;
        if chain.is_some() {
            self.popped = self.popped.wrapping_add(1);
        }
        Ok(chain)
    }

    /// Gives a chain back, and those of no use right behind it. Returns how many those were.
    #[inline]
    pub(super) fn complete(&mut self, head: u16, len: u32) -> u64 {
        self.virtqueue.push_used(head, len);
        self.done = self.done.wrapping_add(1);
        self.flush_skipped()
    }

    /// The chain popped last is of no use.
    fn skip(&mut self, head: u16) -> u64 {
        self.skipped.push_back((self.popped.wrapping_sub(1), head));
        self.flush_skipped()
    }

    #[inline]
    fn flush_skipped(&mut self) -> u64 {
        let mut count = 0;
        while let Some(&(_, head)) = self.skipped.front().filter(|(n, _)| *n == self.done) {
            self.skipped.pop_front();
            self.virtqueue.push_used(head, 0);
            self.done = self.done.wrapping_add(1);
            count += 1;
        }
        count
    }

    /// Returns the last `n` chains that were of use, and with them all that came in between.
    pub(super) fn unpop(&mut self, n: u16) {
        let mut useful = n;
        let mut count = 0;
        while self.popped != self.done {
            let newest = self.popped.wrapping_sub(1);
            if self.skipped.back().is_some_and(|(n, _)| *n == newest) {
                self.skipped.pop_back();
            } else if useful > 0 {
                useful -= 1;
            } else {
                break;
            }
            self.popped = newest;
            count += 1;
        }
        self.virtqueue.unpop(count);
    }
}
