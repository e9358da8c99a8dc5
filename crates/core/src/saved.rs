//! State as plain data: `Endpoint`, `Relay` and `Ports` can be saved, and restored elsewhere.
//!
//! Each can be saved between two calls, in the midst of traffic, and a successor that restores it
//! goes on from there. Saved state is public fields: numbers, enums and lists. Nothing in it
//! depends on the process: instants are saved as time that is left or has passed. Tables, timers
//! and counts that follow from the rest are made anew.
//!
//! Restoring checks every number, as this crate checks those of a guest; [`Unfit`] says what is
//! wrong. Keys stay what they were, and stale keys stay stale.

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
    /// A state that cannot be, by itself or together with something else.
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

#[cfg(test)]
mod tests;
