//! State as plain data: `Endpoint`, `Relay`, `Ports`, `Reassembly` and the counts of refusals can be
//! saved, and restored elsewhere.
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

/// One count in each nanosecond for a hundred years.
const MOST_COUNTED: u64 = u64::MAX / 4;

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
    /// More of something than the limits allow, or than anybody can have counted.
    TooMany,
    /// A queue names what is not there, or leaves out what has to be in it.
    Queue,
    /// A descriptor of the shell's is not there, is used twice, or is used for nothing.
    Descriptor,
}

impl core::fmt::Display for Unfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Slots => "saved slots that cannot be",
            Self::Address => "saved addresses that cannot be",
            Self::State => "a saved state that cannot be",
            Self::Credit => "a saved credit window that cannot be",
            Self::TooMany => "more of something saved than the limits allow",
            Self::Queue => "a saved queue that cannot be",
            Self::Descriptor => "descriptors that do not belong to the saved state",
        })
    }
}

impl core::error::Error for Unfit {}

/// How long from now; none for what is due already.
#[must_use]
pub fn left(at: Option<Instant>, now: Instant) -> Option<Duration> {
    at.map(|at| at.since(now))
}

/// The time of what is due after this wait.
#[must_use]
pub fn due(wait: Option<Duration>, now: Instant) -> Option<Instant> {
    wait.map(|wait| now.after(wait))
}

/// The time of what was so long ago, or the earliest there is.
#[must_use]
pub fn ago(age: Duration, now: Instant) -> Instant {
    Instant(now.0.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
}

/// Counters that are within reason: counting on from them never overflows.
///
/// # Errors
/// [`Unfit::TooMany`]: one is beyond what anybody can have counted.
pub fn check_counts(counts: impl IntoIterator<Item = u64>) -> Result<(), Unfit> {
    check(counts.into_iter().all(|count| count <= MOST_COUNTED), Unfit::TooMany)
}

/// `true`, or this is unfit.
///
/// # Errors
/// `otherwise`, if it does not hold.
pub const fn check(holds: bool, otherwise: Unfit) -> Result<(), Unfit> {
    if holds { Ok(()) } else { Err(otherwise) }
}

#[cfg(test)]
mod tests;
