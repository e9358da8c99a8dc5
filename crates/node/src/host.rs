//! What programs say on Unix sockets, what is known of them, and where their sockets are.

pub(crate) mod client;
pub(crate) mod directory;
pub(crate) mod handshake;
pub(crate) mod places;
pub(crate) mod program;
pub(crate) mod socket;
pub(crate) mod wire;
