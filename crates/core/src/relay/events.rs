//! What becomes of requests of one guest to another, for whoever keeps a record of that.

use alloc::collections::VecDeque;

use super::flow::Flow;
use super::state::{Effects, End};
use crate::address::{Address, SocketType};
use crate::state::CloseReason;

/// The flow that a guest has asked another for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Who asked.
    pub source: Address,
    /// Who was asked.
    pub destination: Address,
    /// Socket type.
    pub kind: SocketType,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// It is open.
    Opened(Asked),
    /// It ended before it was open.
    NotOpened(Asked, CloseReason),
}

/// What has become of requests, the first first, until somebody takes it.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<RelayEvent>);

impl Events {
    /// A flow is about to change like this.
    pub(super) fn note(&mut self, flow: &Flow, effects: &Effects) {
        let Flow { source, destination, kind, .. } = *flow;
        let asked = Asked { source, destination, kind };
        if effects.is_answered {
            self.0.push_back(RelayEvent::Opened(asked));
        }
        if let Some(end) = effects.end
            && flow.state.is_asked()
        {
            self.0.push_back(RelayEvent::NotOpened(asked, reason(end)));
        }
    }

    pub(super) fn next(&mut self) -> Option<RelayEvent> {
        self.0.pop_front()
    }
}

/// Why a flow ended that was not open yet.
fn reason(end: End) -> CloseReason {
    match end {
        End::Refused => CloseReason::Refused,
        End::Reset | End::Forgotten | End::GivenUp => CloseReason::Done,
        End::ProtocolError => CloseReason::ProtocolError,
        End::OverCredit | End::OverPackets => CloseReason::OverCredit,
        End::TimedOut => CloseReason::TimedOut,
        End::Gone => CloseReason::LinkGone,
    }
}
