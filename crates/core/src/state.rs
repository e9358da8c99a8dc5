//! The states of a connection: `step(state, input) -> (state, effects)`, and nothing else.
//!
//! The function does not know whether we are device or driver, host or guest; it is pure, and a
//! test walks every pair. `docs/internals/state-machine.md` is printed from it.
//!
//! ```text
//!            REQUEST ┌─────────┐ accept
//!          ┌────────►│ offered ├───────┐      close, SHUTDOWN(3) sent
//!  ┌───────┴┐        └─────────┘       ▼        ┌─────────┐   RST, or time is up
//!  │ closed │                        ┌──────┐──►│ closing ├──────────► closed
//!  └───────┬┘        ┌────────────┐  │ open │   └─────────┘
//!          └────────►│ connecting ├─►└──────┘─────────────────────────► closed
//!           connect  └────────────┘ RESPONSE   RST, or both directions shut by
//!                                              the peer and all data consumed
//! ```
//!
//! Rules behind the table, after Linux (kernel-semantics, sections 9 and 12.5):
//! - A RST is never answered. Whatever belongs to no connection is answered with RST.
//! - Before RESPONSE, anything but RESPONSE and RST ends the attempt (EPROTO) with a RST.
//! - Directions shut by the peer accumulate. Both: RST once our user has consumed everything; the
//!   address pair is free at once.
//! - While an offer waits for our user nothing may be sent, credit updates included; RESPONSE
//!   must be first.
//!
//! - An attempt that our user gives up ends in silence, so the peer may see REQUEST twice. As long
//!   as nothing has come that proves RESPONSE arrived, the second one is ignored: the RESPONSE
//!   under way serves it.
//!
//! Where it differs: Linux ignores every REQUEST between addresses that have a live connection, so
//! the new attempt times out. A peer that has used a connection asks again only when it has
//! forgotten it (restart, restored snapshot), so here the old one ends and the new request is
//! looked at. Payload after SHUTDOWN(SEND) ends the connection; Linux would queue it. A RESPONSE
//! to an open connection ends it as well, where Linux looks away: the peer has made a second one
//! between the same addresses, and the bytes of the two must not mix.

mod effects;
mod input;

use crate::packet::Shutdown;
use effects::QUIET;
pub use effects::{Effects, Payload, Say, Tell, Timer};
pub use input::Input;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The peer answered REQUEST with RST.
    Refused,
    /// No answer in time: to REQUEST, to an offer, or to our SHUTDOWN(3).
    TimedOut,
    /// The peer broke the protocol (EPROTO); it was sent a RST.
    ProtocolError,
    /// The peer reset an open connection, or has forgotten it.
    Reset,
    /// A clean close finished.
    Done,
    /// The peer sent more than it was allowed to; it was sent a RST.
    OverCredit,
    /// The link to the peer is gone.
    LinkGone,
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is none.
    Closed,
    /// The peer asked; our user has not answered.
    Offered {
        /// Directions the peer has shut meanwhile.
        theirs: Shutdown,
    },
    /// We asked; the peer has not answered.
    Connecting {
        /// Directions our user has shut meanwhile; told after RESPONSE.
        ours: Shutdown,
    },
    /// Both agreed.
    Open {
        /// Directions we have shut.
        ours: Shutdown,
        /// Directions the peer has shut. Both: our user still has data to consume.
        theirs: Shutdown,
    },
    /// Our user is gone; the peer has been told and is to answer with RST.
    Closing {
        /// Directions the peer has shut.
        theirs: Shutdown,
    },
}

impl State {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Offered { .. } => "offered",
            Self::Connecting { .. } => "connecting",
            Self::Closing { .. } => "closing",
            Self::Open { theirs, .. } if theirs.is_both() => "draining",
            Self::Open { ours, theirs } if ours.is_none() && theirs.is_none() => "open",
            Self::Open { .. } => "half-closed",
        }
    }

    /// Whether our user may send payload.
    #[must_use]
    pub fn can_send(self) -> bool {
        match self {
            Self::Open { ours, theirs } => {
                !ours.contains(Shutdown::SEND) && !theirs.contains(Shutdown::RCV)
            }
            Self::Closed
            | Self::Offered { .. }
            | Self::Connecting { .. }
            | Self::Closing { .. } => false,
        }
    }

    /// Whether packets that carry credit may be sent.
    #[must_use]
    pub fn can_talk(self) -> bool {
        match self {
            Self::Open { theirs, .. } | Self::Closing { theirs } => !theirs.is_both(),
            Self::Closed | Self::Offered { .. } | Self::Connecting { .. } => false,
        }
    }

    /// Whether the address pair belongs to this connection.
    #[must_use]
    pub fn has_address(self) -> bool {
        match self {
            Self::Closed => false,
            Self::Open { theirs, .. } => !theirs.is_both(),
            Self::Offered { .. } | Self::Connecting { .. } | Self::Closing { .. } => true,
        }
    }
}

type Step = (State, Effects);

/// The next state and what to do.
#[must_use]
pub fn step(state: State, input: Input) -> Step {
    match state {
        State::Closed => closed(input),
        State::Offered { theirs } => offered(theirs, input),
        State::Connecting { ours } => connecting(ours, input),
        State::Open { ours, theirs } => open(ours, theirs, input),
        State::Closing { theirs } => closing(theirs, input),
    }
}

const fn stay(state: State) -> Step {
    (state, QUIET)
}

/// The end, with a packet to the peer and a word to our user.
const fn end(say: Say, tell: Tell) -> Step {
    (State::Closed, Effects { say, tell, timer: Timer::Off, ..QUIET })
}

/// The end because the peer did what it must not.
const fn broken() -> Step {
    end(Say::Reset, Tell::Closed(CloseReason::ProtocolError))
}

/// The peer has forgotten this connection and asks for a new one.
const fn forgotten(reason: CloseReason) -> Step {
    let (state, effects) = end(Say::Nothing, Tell::Closed(reason));
    (state, Effects { again: true, ..effects })
}

fn closed(input: Input) -> Step {
    match input {
        Input::Request | Input::RequestRepeated => (
            State::Offered { theirs: Shutdown::NONE },
            Effects { tell: Tell::Offered, timer: Timer::Connect, ..QUIET },
        ),
        Input::Connect => (
            State::Connecting { ours: Shutdown::NONE },
            Effects { say: Say::Request, timer: Timer::Connect, ..QUIET },
        ),
        Input::Response
        | Input::Shutdown { .. }
        | Input::Rw
        | Input::RwOverCredit
        | Input::CreditUpdate
        | Input::CreditRequest
        | Input::Invalid
        | Input::Unknown
        | Input::Garbled => (State::Closed, Effects { say: Say::Reset, ..QUIET }),
        Input::Rst
        | Input::Accept
        | Input::Refuse
        | Input::ShutDown(_)
        | Input::Drained
        | Input::Close
        | Input::Reset
        | Input::Expired
        | Input::LinkGone => stay(State::Closed),
    }
}

fn offered(theirs: Shutdown, input: Input) -> Step {
    let state = State::Offered { theirs };
    match input {
        Input::Accept => {
            let tell = if theirs.is_none() { Tell::Nothing } else { Tell::TheirsShutDown(theirs) };
            (
                State::Open { ours: Shutdown::NONE, theirs },
                Effects { say: Say::Response, tell, timer: Timer::Off, ..QUIET },
            )
        }
        Input::Shutdown { flags, .. } if theirs.with(flags).is_both() => {
            end(Say::Reset, Tell::Closed(CloseReason::Reset))
        }
        Input::Shutdown { flags, .. } => stay(State::Offered { theirs: theirs.with(flags) }),
        Input::Request => forgotten(CloseReason::Reset),
        Input::Rst => end(Say::Nothing, Tell::Closed(CloseReason::Reset)),
        Input::Rw | Input::RwOverCredit | Input::Garbled => broken(),
        Input::Refuse | Input::Reset => end(Say::Reset, Tell::Nothing),
        Input::Close => end(Say::Reset, Tell::Closed(CloseReason::Done)),
        Input::Expired => end(Say::Reset, Tell::Closed(CloseReason::TimedOut)),
        Input::LinkGone => end(Say::Nothing, Tell::Closed(CloseReason::LinkGone)),
        Input::RequestRepeated
        | Input::Response
        | Input::CreditUpdate
        | Input::CreditRequest
        | Input::Invalid
        | Input::Unknown
        | Input::Connect
        | Input::ShutDown(_)
        | Input::Drained => stay(state),
    }
}

fn connecting(ours: Shutdown, input: Input) -> Step {
    let state = State::Connecting { ours };
    match input {
        Input::Response => {
            let say = if ours.is_none() { Say::Nothing } else { Say::Shutdown(ours) };
            (
                State::Open { ours, theirs: Shutdown::NONE },
                Effects { say, tell: Tell::Connected, timer: Timer::Off, ..QUIET },
            )
        }
        Input::Rst => end(Say::Nothing, Tell::Closed(CloseReason::Refused)),
        Input::Request
        | Input::RequestRepeated
        | Input::Shutdown { .. }
        | Input::Rw
        | Input::RwOverCredit
        | Input::CreditUpdate
        | Input::CreditRequest
        | Input::Unknown
        | Input::Garbled => broken(),
        Input::ShutDown(how) => stay(State::Connecting { ours: ours.with(how) }),
        // In silence: a RST could hit the next attempt between the same addresses, which a late
        // RESPONSE may serve; without one it will get its RST.
        Input::Close => end(Say::Nothing, Tell::Closed(CloseReason::Done)),
        Input::Expired => end(Say::Nothing, Tell::Closed(CloseReason::TimedOut)),
        Input::Reset => end(Say::Nothing, Tell::Nothing),
        Input::LinkGone => end(Say::Nothing, Tell::Closed(CloseReason::LinkGone)),
        Input::Invalid | Input::Connect | Input::Accept | Input::Refuse | Input::Drained => {
            stay(state)
        }
    }
}

fn open(ours: Shutdown, theirs: Shutdown, input: Input) -> Step {
    let state = State::Open { ours, theirs };
    // A peer that shut both directions is waiting for our RST and nothing else.
    let is_last_word_ours = theirs.is_both();
    let is_over = is_last_word_ours || ours.is_both();
    match input {
        Input::Request => forgotten(CloseReason::Reset),
        Input::Rst if is_over => end(Say::Nothing, Tell::Closed(CloseReason::Done)),
        Input::Rst => end(Say::Nothing, Tell::Closed(CloseReason::Reset)),
        Input::Shutdown { flags, unread } => their_shutdown(ours, theirs, flags, unread),
        Input::Rw if theirs.contains(Shutdown::SEND) => broken(),
        Input::Garbled | Input::Response => broken(),
        Input::Rw if ours.contains(Shutdown::RCV) => {
            (state, Effects { payload: Payload::Discard, ..QUIET })
        }
        Input::Rw => (state, Effects { payload: Payload::Deliver, ..QUIET }),
        Input::RwOverCredit => end(Say::Reset, Tell::Closed(CloseReason::OverCredit)),
        Input::CreditRequest if !is_last_word_ours => {
            (state, Effects { say: Say::CreditUpdate, ..QUIET })
        }
        Input::ShutDown(how) => our_shutdown(ours, theirs, how),
        Input::Drained | Input::Close if is_last_word_ours => {
            end(Say::Reset, Tell::Closed(CloseReason::Done))
        }
        Input::Close => {
            let say = if ours.is_both() { Say::Nothing } else { Say::Shutdown(Shutdown::BOTH) };
            (State::Closing { theirs }, Effects { say, timer: Timer::Close, ..QUIET })
        }
        Input::Reset => end(Say::Reset, Tell::Nothing),
        Input::LinkGone => end(Say::Nothing, Tell::Closed(CloseReason::LinkGone)),
        Input::RequestRepeated
        | Input::CreditUpdate
        | Input::CreditRequest
        | Input::Invalid
        | Input::Unknown
        | Input::Connect
        | Input::Accept
        | Input::Refuse
        | Input::Drained
        | Input::Expired => stay(state),
    }
}

/// Our user shuts directions of an open connection down.
fn our_shutdown(ours: Shutdown, theirs: Shutdown, how: Shutdown) -> Step {
    let is_said = !theirs.is_both() && !how.is_none();
    let say = if is_said { Say::Shutdown(how) } else { Say::Nothing };
    (State::Open { ours: ours.with(how), theirs }, Effects { say, ..QUIET })
}

/// SHUTDOWN on an open connection.
fn their_shutdown(ours: Shutdown, theirs: Shutdown, flags: Shutdown, unread: bool) -> Step {
    let all = theirs.with(flags);
    if all.is_both() && !unread {
        return end(Say::Reset, Tell::Closed(CloseReason::Done));
    }
    let tell = if all == theirs { Tell::Nothing } else { Tell::TheirsShutDown(all) };
    (State::Open { ours, theirs: all }, Effects { tell, ..QUIET })
}

fn closing(theirs: Shutdown, input: Input) -> Step {
    let state = State::Closing { theirs };
    match input {
        Input::Rst => end(Say::Nothing, Tell::Closed(CloseReason::Done)),
        Input::Request => forgotten(CloseReason::Done),
        Input::Shutdown { flags, .. } if theirs.with(flags).is_both() => {
            end(Say::Reset, Tell::Closed(CloseReason::Done))
        }
        Input::Shutdown { flags, .. } => stay(State::Closing { theirs: theirs.with(flags) }),
        Input::Rw => (state, Effects { payload: Payload::Discard, ..QUIET }),
        Input::RwOverCredit => end(Say::Reset, Tell::Closed(CloseReason::OverCredit)),
        Input::Garbled => broken(),
        Input::CreditRequest => (state, Effects { say: Say::CreditUpdate, ..QUIET }),
        Input::Expired => end(Say::Reset, Tell::Closed(CloseReason::TimedOut)),
        Input::Reset => end(Say::Reset, Tell::Nothing),
        Input::LinkGone => end(Say::Nothing, Tell::Closed(CloseReason::LinkGone)),
        Input::RequestRepeated
        | Input::Response
        | Input::CreditUpdate
        | Input::Invalid
        | Input::Unknown
        | Input::Connect
        | Input::Accept
        | Input::Refuse
        | Input::ShutDown(_)
        | Input::Drained
        | Input::Close => stay(state),
    }
}

#[cfg(test)]
mod tests;
