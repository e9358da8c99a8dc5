//! What can happen to a connection: packets, wishes of our user, and time.

use crate::packet::Shutdown;

/// What can happen to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// REQUEST came.
    Request,
    /// REQUEST came again, and nothing since the first that proves RESPONSE arrived.
    RequestRepeated,
    /// RESPONSE came.
    Response,
    /// RST came.
    Rst,
    /// SHUTDOWN came.
    Shutdown {
        /// Its flags.
        flags: Shutdown,
        /// Whether there are bytes that our user has not consumed.
        unread: bool,
    },
    /// RW came, within credit.
    Rw,
    /// RW came, beyond credit.
    RwOverCredit,
    /// CREDIT_UPDATE came.
    CreditUpdate,
    /// CREDIT_REQUEST came.
    CreditRequest,
    /// A packet with operation zero came.
    Invalid,
    /// A packet with another unknown operation came.
    Unknown,
    /// RW came that cannot be right: its length is wrong, or our RESPONSE has not left yet.
    Garbled,
    /// Our user wants a connection.
    Connect,
    /// Our user takes the offer.
    Accept,
    /// Our user does not take the offer.
    Refuse,
    /// Our user shuts directions down.
    ShutDown(Shutdown),
    /// Our user has consumed all data.
    Drained,
    /// Our user is gone.
    Close,
    /// Our user wants it to end at once.
    Reset,
    /// The timer of the state ran out.
    Expired,
    /// The link is gone.
    LinkGone,
}
