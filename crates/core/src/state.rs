//! placeholder
/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The peer answered REQUEST with RST.
    Refused,
    /// No answer in time: to REQUEST, to an offer, or to our SHUTDOWN(3).
    TimedOut,
    /// The peer broke the protocol (EPROTO); it was sent a RST.
    ProtocolError,
    /// The peer reset an open connection.
    Reset,
    /// A clean close finished.
    Done,
    /// The peer sent more than it was allowed to; it was sent a RST.
    OverCredit,
    /// The link to the peer is gone.
    LinkGone,
}
