//! What fuzz targets call of parsers and parts that are otherwise our own affair.

mod switch;

pub use self::switch::Switch;
use crate::host::handshake::{HYBRID, Parsed};
use crate::host::wire::{MESSAGE_LEN, Request};

/// It will never be a CONNECT line, whatever comes behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotALine;

/// A line of a hybrid socket: port and length of the line, `None` while its end is missing, or an error.
///
/// # Errors
/// See [`NotALine`].
pub fn hybrid_line(bytes: &[u8]) -> Result<Option<(u32, usize)>, NotALine> {
    match HYBRID.parse_head(bytes) {
        Parsed::Incomplete => Ok(None),
        Parsed::Request { port, len } => Ok(Some((port.0, len))),
        Parsed::Bad => Err(NotALine),
    }
}

/// How many bytes belong to a request of the client protocol behind its own; `None` if it is no request.
#[must_use]
pub fn request(bytes: &[u8; MESSAGE_LEN]) -> Option<usize> {
    Request::decode(bytes).ok().map(|request| request.extra())
}
