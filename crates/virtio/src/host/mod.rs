//! The host's side: what programs say on Unix sockets, and their end of each connection.

pub(crate) mod accept_queue;
pub(crate) mod backlog;
pub(crate) mod budget;
pub(crate) mod client;
pub(crate) mod hybrid;
pub(crate) mod privilege;
pub(crate) mod record;
pub(crate) mod room;
pub(crate) mod sockets;
pub(crate) mod stream;
pub(crate) mod wire;
