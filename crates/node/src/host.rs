//! What programs say on Unix sockets, and what is known of them.

pub(crate) mod client;
pub(crate) mod handshake;
pub(crate) mod places;
pub(crate) mod program;
pub(crate) mod socket;
pub(crate) mod wire;
