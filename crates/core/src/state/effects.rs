//! What has to be done when the state of a connection changes.

use super::CloseReason;
use crate::packet::Shutdown;

/// A packet to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Say {
    /// None.
    #[default]
    Nothing,
    /// REQUEST.
    Request,
    /// RESPONSE.
    Response,
    /// RST.
    Reset,
    /// SHUTDOWN with these flags.
    Shutdown(Shutdown),
    /// CREDIT_UPDATE.
    CreditUpdate,
}

/// What to tell our user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tell {
    /// Nothing.
    #[default]
    Nothing,
    /// The peer asks for a connection.
    Offered,
    /// The peer agreed.
    Connected,
    /// All directions that the peer has shut.
    TheirsShutDown(Shutdown),
    /// It is over.
    Closed(CloseReason),
}

/// What to do with the timer of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Timer {
    /// Leave it.
    #[default]
    Keep,
    /// Wait for an answer to REQUEST, the peer's or our user's.
    Connect,
    /// Wait for RST.
    Close,
    /// None any more.
    Off,
}

/// What to do with a packet's payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Skip it; it was never part of the stream.
    #[default]
    Skip,
    /// Hand it to our user.
    Deliver,
    /// Nobody reads any more: count it as consumed.
    Discard,
}

/// What has to be done besides changing the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Effects {
    /// The packet to send.
    pub say: Say,
    /// What to tell our user.
    pub tell: Tell,
    /// The timer.
    pub timer: Timer,
    /// The payload.
    pub payload: Payload,
    /// Offer the same packet again, to the closed state: it is not about this connection.
    pub again: bool,
}

impl Effects {
    /// Nothing but what becomes of the payload.
    pub(crate) fn are_quiet(&self) -> bool {
        *self == Self { payload: self.payload, ..QUIET }
    }
}

/// Nothing to do, and payload is skipped.
pub(super) const QUIET: Effects = Effects {
    say: Say::Nothing,
    tell: Tell::Nothing,
    timer: Timer::Keep,
    payload: Payload::Skip,
    again: false,
};
