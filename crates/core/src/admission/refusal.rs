//! Why something may not begin, and how often that was so.

use crate::endpoint::ConnectError;
use crate::ports::{BindError, ListenError};
use crate::saved::{Unfit, check_counts};
use alloc::vec::Vec;

/// Declares the reasons once: as variants, as names of counters, and in words.
macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident $name:ident $text:literal,)*) => {
        /// Why something may not begin.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        impl Refusal {
            /// Every reason.
            pub const ALL: [Self; COUNT] = [$(Self::$variant,)*];

            /// Its short stable name, as counters have it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!("refused_", stringify!($name)),)*
                }
            }

            /// The reason for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        const COUNT: usize = [$(Refusal::$variant,)*].len();
    };
}

refusals! {
    /// Nobody has this CID.
    NoRoute no_route "no such guest",
    /// CID 0 is the hypervisor's, and there is none.
    NoHypervisor no_hypervisor "no hypervisor is there",
    /// The guest is about to be removed.
    Leaving leaving "the guest is leaving",
    /// Two guests without a group in common.
    NoSharedGroup no_shared_group "they share no group",
    /// A port below 1024 without the right to it.
    PrivilegedPort privileged_port "the port is below 1024",
    /// A rule of the operator.
    Denied denied "a rule forbids it",
    /// No rule says anything about it.
    NoRule no_rule "no rule allows it",
    /// The other side has not said that it knows this socket type.
    TypeNotKnown type_not_known "not with this socket type",
    /// Datagram sockets neither connect nor listen.
    NotConnectible not_connectible "datagram sockets have no connections",
    /// The CID is not one of this node.
    NotLocal not_local "the CID is not ours",
    /// Somebody is bound to the port.
    PortInUse port_in_use "the port is in use",
    /// No free ephemeral port was found.
    PortsExhausted ports_exhausted "no free port was found",
    /// The socket is not bound.
    NotBound not_bound "the socket is not bound",
    /// There is a connection between these addresses.
    AddressesInUse addresses_in_use "there is a connection between these addresses",
    /// The guest has as many connections as it may have, or as many that are not answered.
    OverLimits over_limits "over a guest's limits",
    /// Nobody listens.
    NoListener no_listener "nobody listens there",
    /// Nobody listens, and no program takes connections at the guest's hybrid socket either.
    NoHybridSocket no_hybrid_socket "nobody listens there, nor at the hybrid socket",
    /// Beside the guest's hybrid socket is a file that the node does not connect to.
    ForeignSocket foreign_socket "what is beside the hybrid socket is no socket of the directory's owner",
    /// The listener has another socket type.
    ListenerType listener_type "the listener has another socket type",
    /// The listener's queue is full.
    QueueFull queue_full "its queue is full",
    /// The listening program could not be handed the connection.
    ListenerGone listener_gone "the listening program does not take it",
    /// Whoever asked has given up.
    GivenUp given_up "given up already",
    /// The user of the program has as many connections as one may have.
    UserOverLimits user_over_limits "its user has as many connections as one may have",
    /// The process has no descriptor left.
    OutOfDescriptors out_of_descriptors "no descriptor is left",
}

impl From<BindError> for Refusal {
    fn from(error: BindError) -> Self {
        match error {
            BindError::InUse => Self::PortInUse,
            BindError::NotLocal => Self::NotLocal,
            BindError::Exhausted => Self::PortsExhausted,
        }
    }
}

impl From<ListenError> for Refusal {
    fn from(error: ListenError) -> Self {
        match error {
            ListenError::NotBound => Self::NotBound,
            ListenError::NotConnectible => Self::NotConnectible,
        }
    }
}

impl From<ConnectError> for Refusal {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::InUse => Self::AddressesInUse,
            ConnectError::TooMany => Self::OverLimits,
        }
    }
}

/// [`RefusalCounts`] as plain data: reasons and how often each was given.
pub type SavedRefusals = Vec<(Refusal, u64)>;

/// How often each reason was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusalCounts([u64; COUNT]);

impl RefusalCounts {
    /// One more.
    pub(super) fn count(&mut self, reason: Refusal) {
        self.0[reason as usize] += 1;
    }

    /// How often this reason was given.
    #[must_use]
    pub fn of(&self, reason: Refusal) -> u64 {
        self.0[reason as usize]
    }

    /// As plain data.
    #[must_use]
    pub fn save(&self) -> SavedRefusals {
        Refusal::ALL.into_iter().map(|reason| (reason, self.of(reason))).collect()
    }

    /// From plain data. A reason that is not there has not been given.
    ///
    /// # Errors
    /// More than anybody can have counted.
    pub fn restore(saved: &SavedRefusals) -> Result<Self, Unfit> {
        check_counts(saved.iter().map(|(_, count)| *count))?;
        let mut counts = Self::default();
        for &(reason, count) in saved {
            counts.0[reason as usize] = count;
        }
        Ok(counts)
    }

    /// Every count with its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let counts = self.0;
        Refusal::ALL.into_iter().map(Refusal::name).zip(counts)
    }
}
