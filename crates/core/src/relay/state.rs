//! The states of a flow between two guests: `step(state, input) -> (state, effects)`, and nothing
//! else.
//!
//! The relay stands between two machines that run the states of `crate::state` against each other.
//! It follows them as far as it must know when a flow is over, and ends what must not go on. The
//! function is pure, and a test walks every pair; `docs/internals/relay-states.md` is printed from
//! it.
//!
//! ```text
//!  ┌────────┐ REQUEST  ┌───────┐ RESPONSE  ┌──────┐  RST, a broken rule, time is up,
//!  │ closed ├─────────►│ asked ├──────────►│ open │  or a guest that is gone: closed
//!  └────────┘          └───────┘           └──────┘
//! ```
//!
//! Rules behind the table:
//! - Before RESPONSE the destination may say RESPONSE and RST only: Linux takes anything else as a
//!   broken attempt (EPROTO), so the flow ends for both. The source may tell of its buffer and shut
//!   directions, but not send.
//! - The source may have given its attempt up in silence and repeat it. As long as nothing has come
//!   that proves that the source takes the flow as open, a second REQUEST is passed on.
//! - Any other REQUEST means that its sender has forgotten the flow: the old one ends, the request is
//!   looked at anew. The other side gets a RST, unless the sender had shut both directions: then the
//!   other side has freed the addresses by itself, and a RST would hit the new flow.
//! - A side that has shut both directions is to be answered with RST, which ends the flow; a timer
//!   sees to it that it ends.

use crate::packet::Shutdown;

/// Which guest a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The guest that asked for the flow.
    Source,
    /// The guest that was asked.
    Destination,
}

impl Side {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 1,
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// Where a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// There is none.
    Closed,
    /// The source asked; the destination has not answered.
    Asked {
        /// The source has proved that it takes the flow as open.
        is_proved: bool,
        /// Directions that the source has shut.
        shut: Shutdown,
    },
    /// Both agreed.
    Open {
        /// The source has proved that it takes the flow as open.
        is_proved: bool,
        /// Directions that each side has shut, the source's first.
        shut: [Shutdown; 2],
    },
}

impl State {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Asked { .. } => "connecting",
            Self::Open { .. } if self.is_closing() => "closing",
            Self::Open { shut, .. } if shut.iter().all(|shut| shut.is_none()) => "open",
            Self::Open { .. } => "half-closed",
        }
    }

    /// Whether a side has shut both directions and waits for RST.
    #[must_use]
    pub fn is_closing(self) -> bool {
        matches!(self, Self::Open { shut, .. } if shut.iter().any(|shut| shut.is_both()))
    }

    /// Whether the destination has not answered yet.
    #[must_use]
    pub const fn is_asked(self) -> bool {
        matches!(self, Self::Asked { .. })
    }
}

/// What a packet is, as far as the states are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packet {
    /// REQUEST.
    Request,
    /// RESPONSE.
    Response,
    /// RST.
    Rst,
    /// SHUTDOWN with these flags.
    Shutdown(Shutdown),
    /// RW, within credit.
    Rw,
    /// RW without payload that ends no message.
    RwEmpty,
    /// RW, more bytes than the receiver has announced.
    RwOverCredit,
    /// RW, more packets than the flow may have unacknowledged.
    RwOverPackets,
    /// CREDIT_UPDATE.
    CreditUpdate,
    /// CREDIT_REQUEST.
    CreditRequest,
    /// INVALID, or an operation that the specification does not name.
    Unknown,
}

/// What can happen to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A packet of one side came. In the closed state its sender is the source.
    Packet {
        /// Whose it is.
        from: Side,
        /// What it is.
        packet: Packet,
        /// Only a sender that takes the flow as open sends it: RW, or a `fwd_cnt` that is not zero.
        is_proof: bool,
    },
    /// The timer of the state ran out.
    Expired,
    /// A packet of the flow could not be passed on.
    GivenUp,
    /// One side is gone: its guest was removed, or its link reset.
    Gone(Side),
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Passing {
    /// It goes no further.
    #[default]
    Drop,
    /// It goes on to the other side.
    Forward,
    /// It is answered with RST.
    Answer,
}

/// Who gets a RST because the flow is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reset {
    /// Neither.
    #[default]
    Nobody,
    /// One side.
    One(Side),
    /// Both.
    Both,
}

/// What to do with the timer of the flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Timer {
    /// Leave it.
    #[default]
    Keep,
    /// Wait for the destination's answer.
    Answer,
    /// Wait for RST.
    Close,
    /// None any more.
    Off,
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The destination answered a request with RST.
    Refused,
    /// A side reset it: the source before there was an answer, or either later.
    Reset,
    /// A side had forgotten it and asked again.
    Forgotten,
    /// A side broke the protocol.
    ProtocolError,
    /// A side sent more bytes than announced.
    OverCredit,
    /// A side sent too many packets.
    OverPackets,
    /// An answer did not come in time.
    TimedOut,
    /// A packet could not be passed on.
    GivenUp,
    /// A side is gone.
    Gone,
}

/// What has to be done besides changing the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Effects {
    /// The packet.
    pub packet: Passing,
    /// Who is told that the flow is over.
    pub reset: Reset,
    /// The timer.
    pub timer: Timer,
    /// The destination has agreed.
    pub is_answered: bool,
    /// Why the flow ended, if it did.
    pub end: Option<End>,
    /// Offer the same packet again, to the closed state: it is not about this flow.
    pub again: bool,
}

type Step = (State, Effects);

const QUIET: Effects = Effects {
    packet: Passing::Drop,
    reset: Reset::Nobody,
    timer: Timer::Keep,
    is_answered: false,
    end: None,
    again: false,
};

impl Effects {
    /// Nothing but what becomes of the packet.
    pub(super) fn are_quiet(&self) -> bool {
        self.end.is_none() && self.timer == Timer::Keep && !self.is_answered
    }
}

/// The next state and what to do.
#[must_use]
#[inline(always)] // once per packet
pub fn step(state: State, input: Input) -> Step {
    match (state, input) {
        (State::Closed, _) => closed(input),
        (_, Input::Expired) => end(End::TimedOut, Reset::Both),
        (_, Input::GivenUp) => end(End::GivenUp, Reset::Both),
        (_, Input::Gone(side)) => end(End::Gone, Reset::One(side.other())),
        (State::Asked { is_proved, shut }, Input::Packet { from, packet, is_proof }) => {
            let heard = is_proved || (is_proof && from == Side::Source);
            asked(Known { is_proved, heard }, shut, from, packet)
        }
        (State::Open { is_proved, shut }, Input::Packet { from, packet, is_proof }) => {
            let heard = is_proved || (is_proof && from == Side::Source);
            open(Known { is_proved, heard }, shut, from, packet)
        }
    }
}

/// Whether the source has proved that it takes the flow as open: before this packet, and with it.
#[derive(Clone, Copy)]
struct Known {
    is_proved: bool,
    heard: bool,
}

const fn forward(state: State) -> Step {
    (state, Effects { packet: Passing::Forward, ..QUIET })
}

const fn drop(state: State) -> Step {
    (state, QUIET)
}

const fn end(why: End, reset: Reset) -> Step {
    (State::Closed, Effects { reset, timer: Timer::Off, end: Some(why), ..QUIET })
}

const fn broken() -> Step {
    end(End::ProtocolError, Reset::Both)
}

/// A side resets the flow: its packet tells the other.
const fn reset(why: End) -> Step {
    let (state, effects) = end(why, Reset::Nobody);
    (state, Effects { packet: Passing::Forward, ..effects })
}

/// A side asks again that has shut these directions.
fn forgotten(from: Side, shut: Shutdown) -> Step {
    let reset = if shut.is_both() { Reset::Nobody } else { Reset::One(from.other()) };
    let (state, effects) = end(End::Forgotten, reset);
    (state, Effects { again: true, ..effects })
}

fn closed(input: Input) -> Step {
    let Input::Packet { packet, .. } = input else { return drop(State::Closed) };
    match packet {
        Packet::Request => (
            State::Asked { is_proved: false, shut: Shutdown::NONE },
            Effects { packet: Passing::Forward, timer: Timer::Answer, ..QUIET },
        ),
        Packet::Rst => drop(State::Closed),
        Packet::Response
        | Packet::Shutdown(_)
        | Packet::Rw
        | Packet::RwEmpty
        | Packet::RwOverCredit
        | Packet::RwOverPackets
        | Packet::CreditUpdate
        | Packet::CreditRequest
        | Packet::Unknown => (State::Closed, Effects { packet: Passing::Answer, ..QUIET }),
    }
}

fn asked(known: Known, shut: Shutdown, from: Side, packet: Packet) -> Step {
    let state = State::Asked { is_proved: known.heard, shut };
    match (from, packet) {
        (Side::Source, Packet::Rst) => reset(End::Reset),
        (Side::Destination, Packet::Rst) => reset(End::Refused),
        (_, Packet::Unknown) => drop(state),
        (Side::Source, Packet::Request) if !known.is_proved && !shut.is_both() => forward(state),
        (Side::Source, Packet::Request) => forgotten(from, shut),
        (Side::Destination, Packet::Request) => forgotten(from, Shutdown::NONE),
        (Side::Destination, Packet::Response) => {
            // A source that has shut both directions still has to be answered in time.
            let timer = if shut.is_both() { Timer::Keep } else { Timer::Off };
            let open = State::Open { is_proved: known.heard, shut: [shut, Shutdown::NONE] };
            (open, Effects { packet: Passing::Forward, timer, is_answered: true, ..QUIET })
        }
        (Side::Source, Packet::Shutdown(flags)) => {
            forward(State::Asked { is_proved: known.heard, shut: shut.with(flags) })
        }
        (Side::Source, Packet::CreditUpdate | Packet::CreditRequest) => forward(state),
        (Side::Source, Packet::Response)
        | (Side::Destination, Packet::Shutdown(_) | Packet::CreditUpdate | Packet::CreditRequest)
        | (_, Packet::Rw | Packet::RwEmpty | Packet::RwOverCredit | Packet::RwOverPackets) => {
            broken()
        }
    }
}

#[inline(always)] // once per packet
fn open(known: Known, shut: [Shutdown; 2], from: Side, packet: Packet) -> Step {
    let state = State::Open { is_proved: known.heard, shut };
    let theirs = shut[from.index()];
    match packet {
        Packet::Rw | Packet::RwEmpty | Packet::RwOverCredit | Packet::RwOverPackets
            if theirs.contains(Shutdown::SEND) =>
        {
            broken()
        }
        Packet::Rw | Packet::CreditUpdate | Packet::CreditRequest => forward(state),
        Packet::RwEmpty | Packet::Unknown => drop(state),
        Packet::RwOverCredit => end(End::OverCredit, Reset::Both),
        Packet::RwOverPackets => end(End::OverPackets, Reset::Both),
        Packet::Rst => reset(End::Reset),
        // The destination has made a second connection; the bytes of the two must not mix.
        Packet::Response => broken(),
        Packet::Request if from == Side::Source && !known.is_proved && !theirs.is_both() => {
            forward(state)
        }
        Packet::Request => forgotten(from, theirs),
        Packet::Shutdown(flags) => {
            let mut all = shut;
            all[from.index()] = theirs.with(flags);
            let is_new = all[from.index()].is_both() && !theirs.is_both();
            let timer = if is_new { Timer::Close } else { Timer::Keep };
            let state = State::Open { is_proved: known.heard, shut: all };
            (state, Effects { packet: Passing::Forward, timer, ..QUIET })
        }
    }
}

#[cfg(test)]
mod tests;
