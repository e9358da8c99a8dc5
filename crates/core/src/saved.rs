//! State as plain data: what an owner of this crate holds, saved, and rebuilt from it elsewhere.
//!
//! `Endpoint`, `Relay` and `Ports` can each be saved between two calls, in the midst of traffic: a
//! successor that restores them goes on where they were. Saved state has public fields, numbers
//! and lists only, and nothing that means something in one process alone: instants are kept as
//! time that is left or has passed. What follows from the rest (tables, timers, counts) is not
//! saved but made anew.
//!
//! Restoring checks everything, as it checks a guest's numbers: [`Unfit`] says what cannot be. So
//! a restored owner keeps the rules of this crate, whoever wrote what it was restored from. Ids
//! stay as they were, stale ones included.

use crate::time::{Duration, Instant};
use alloc::vec::Vec;

/// Slots as saved: for each its generation, and its value if it has one.
pub type SavedSlots<S> = Vec<(u32, Option<S>)>;

/// Why saved state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A generation of zero, or more slots than there are numbers.
    Slots,
    /// Two things with the same addresses, or an address that nobody can have.
    Address,
    /// A state, or a pair of a state and something else, in which nothing lives.
    State,
    /// Numbers of a credit window that cannot be together.
    Credit,
    /// More of something than the limits allow.
    TooMany,
    /// A queue names what is not there, or leaves out what has to be in it.
    Queue,
}

/// How long from now; none for what is due already.
pub(crate) fn left(at: Option<Instant>, now: Instant) -> Option<Duration> {
    at.map(|at| at.since(now))
}

/// The time of what is due after this wait.
pub(crate) fn due(wait: Option<Duration>, now: Instant) -> Option<Instant> {
    wait.map(|wait| now.after(wait))
}

/// The time of what was so long ago, or the earliest there is.
pub(crate) fn ago(age: Duration, now: Instant) -> Instant {
    Instant(now.0.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
}

/// `true`, or this is unfit.
pub(crate) const fn check(holds: bool, otherwise: Unfit) -> Result<(), Unfit> {
    if holds { Ok(()) } else { Err(otherwise) }
}

/// Whether a position is at or behind another on the circle of a wrapping counter.
pub(crate) const fn is_at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) < 1 << 31
}

#[cfg(test)]
mod tests;
