//! Messages of the endpoint protocol, as `docs/reference/endpoint-protocol.md` lays them out.

use crate::address::Address;
use crate::sys::{Answer, Errno};

/// Bytes in a request and in a reply.
pub(crate) const MESSAGE: usize = 32;
/// Bytes behind a held CONNECT, the socket's cookie first: enough to keep one with the smallest send buffer from being
/// writable.
pub(crate) const PADDING: usize = 2016;

/// Bytes of what accepted sockets inherit: left with a LISTEN, given back with each ACCEPT.
pub(crate) const INHERITED: usize = 32;

const VERSION: u8 = 1;

/// Flag of a CONNECT that the node leaves unread until its outcome is known.
pub(crate) const HELD: u16 = 1;

/// Flag of a held CONNECT of which the node says at once that it has begun.
pub(crate) const PROMPT: u16 = 2;

/// Value of a FLOW: the connection receives no more.
pub(crate) const REFUSES: u32 = 1;

/// What a message is about.
pub(crate) mod op {
    pub(crate) const BIND: u8 = 1;
    pub(crate) const CONNECT: u8 = 2;
    pub(crate) const LISTEN: u8 = 3;
    pub(crate) const ACCEPT: u8 = 4;
    pub(crate) const ACCEPTED: u8 = 5;
    pub(crate) const LOCAL_CID: u8 = 6;
    pub(crate) const FLOW: u8 = 8;
}

/// From us to the node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request {
    pub(crate) op: u8,
    pub(crate) flags: u16,
    pub(crate) cid: u32,
    pub(crate) port: u32,
    pub(crate) value: u32,
    pub(crate) buffer: u64,
    pub(crate) extra: u32,
}

impl Request {
    /// A request with no more to say.
    pub(crate) fn new(op: u8) -> Self {
        Self { op, ..Self::default() }
    }

    /// The bytes to send.
    pub(crate) fn encode(&self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[0] = VERSION;
        bytes[1] = self.op;
        bytes[2..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.cid.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.port.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.value.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.buffer.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.extra.to_le_bytes());
        bytes
    }
}

/// From the node to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) ours: Address,
    pub(crate) theirs: Address,
    pub(crate) peer_buffer: u32,
    pub(crate) flow: u64,
}

impl Reply {
    /// Reads the reply to `op`: what it says, or the error in it. EPROTO if it is none.
    pub(crate) fn decode(bytes: &[u8; MESSAGE], op: u8) -> Answer<Self> {
        let (reply, error) = Self::decode_verdict(bytes, op)?;
        error.map_or(Ok(reply), Err)
    }

    /// Reads the reply to `op` with the error that may be in it: that of a connect says what the socket is bound to.
    pub(crate) fn decode_verdict(bytes: &[u8; MESSAGE], op: u8) -> Answer<(Self, Option<Errno>)> {
        if bytes[0] != VERSION || bytes[1] != op {
            return Err(Errno(libc::EPROTO));
        }
        let reply = Self {
            ours: Address { cid: u32_at(bytes, 4), port: u32_at(bytes, 8) },
            theirs: Address { cid: u32_at(bytes, 12), port: u32_at(bytes, 16) },
            peer_buffer: u32_at(bytes, 20),
            flow: u64::from(u32_at(bytes, 24)) | u64::from(u32_at(bytes, 28)) << 32,
        };
        let error = match u16::from_le_bytes([bytes[2], bytes[3]]) {
            0 => None,
            errno => Some(Errno(errno.into())),
        };
        Ok((reply, error))
    }
}

fn u32_at(bytes: &[u8; MESSAGE], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_has_each_field_where_the_specification_says() {
        let request = Request {
            op: op::CONNECT,
            flags: HELD | PROMPT,
            cid: 3,
            port: 5000,
            value: 1500,
            buffer: 65536,
            extra: 2016,
        };
        let bytes = request.encode();
        assert_eq!(bytes[..4], [1, 2, 3, 0]);
        assert_eq!(u32_at(&bytes, 4), 3);
        assert_eq!(u32_at(&bytes, 8), 5000);
        assert_eq!(u32_at(&bytes, 12), 1500);
        assert_eq!(u32_at(&bytes, 16), 65536);
        assert_eq!(u32_at(&bytes, 24), 2016);
        assert_eq!(bytes[28..], [0; 4]);
    }

    #[test]
    fn reply_is_read_and_foreign_ones_are_refused() {
        let mut bytes = [0; MESSAGE];
        bytes[..2].copy_from_slice(&[1, op::ACCEPT]);
        bytes[4] = 2;
        bytes[16] = 7;
        bytes[20] = 8;
        bytes[28] = 9;
        let reply = Reply::decode(&bytes, op::ACCEPT).unwrap();
        assert_eq!((reply.ours.cid, reply.theirs.port), (2, 7));
        assert_eq!((reply.peer_buffer, reply.flow), (8, 9 << 32));
        assert_eq!(Reply::decode(&bytes, op::BIND), Err(Errno(libc::EPROTO)));
        bytes[2] = 98;
        assert_eq!(Reply::decode(&bytes, op::ACCEPT), Err(Errno(98)));
        bytes[0] = 2;
        assert_eq!(Reply::decode(&bytes, op::ACCEPT), Err(Errno(libc::EPROTO)));
    }
}
