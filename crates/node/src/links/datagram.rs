//! The datagram that comes in over a link: the core says which packets it is made of, here are its bytes.

use vsock_core::datagram::{Arrived, Reassembly, SavedReassembly, check};
use vsock_core::saved::{self, Unfit};
use vsock_core::{Address, RawHeader};

use vsock_guest_memory::slice::{self, Slice};

/// A whole datagram.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) bytes: Vec<u8>,
}

/// What became of a packet.
#[derive(Debug)]
pub(super) enum Assembled {
    /// More is to come, or it belongs to a datagram that is lost.
    Nothing,
    /// It was the last.
    Whole(Datagram),
    /// The datagram is longer than one can be, and lost.
    TooLong,
    /// It is no packet of a datagram.
    Malformed,
}

/// The datagram of which not all packets have come.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    packets: Reassembly,
    bytes: Vec<u8>,
}

impl Incoming {
    /// Takes a packet that came with `payload_len` bytes.
    pub(super) fn take(
        &mut self,
        raw: &RawHeader,
        payload_len: u32,
        payload: &[Slice],
    ) -> Assembled {
        let header = match check(raw) {
            Ok(header) if header.len <= payload_len => header,
            Ok(_) | Err(_) => return Assembled::Malformed,
        };
        let (at, is_last) = match self.packets.receive(&header) {
            Arrived::Part { at, is_last } => (at as usize, is_last),
            Arrived::Lost => return Assembled::Nothing,
            Arrived::TooLong => {
                self.bytes = Vec::new();
                return Assembled::TooLong;
            }
        };
        self.bytes.resize(at + header.len as usize, 0);
        slice::copy_out(payload, &mut self.bytes[at..]);
        if !is_last {
            return Assembled::Nothing;
        }
        let bytes = std::mem::take(&mut self.bytes);
        Assembled::Whole(Datagram { from: header.src, to: header.dst, bytes })
    }
}

/// The datagram of which not all packets have come, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedIncoming {
    /// Which packets have come.
    pub packets: SavedReassembly,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

impl Incoming {
    /// As plain data.
    pub(super) fn save(&self) -> SavedIncoming {
        SavedIncoming { packets: self.packets.save(), bytes: self.bytes.clone() }
    }

    /// From plain data.
    pub(super) fn restore(saved: SavedIncoming) -> Result<Self, Unfit> {
        let SavedIncoming { packets, bytes } = saved;
        // Of one that is too long nothing is kept.
        let len = packets.filter(|it| !it.is_lost).map_or(0, |it| it.len as usize);
        saved::check(bytes.len() == len, Unfit::Queue)?;
        Ok(Self { packets: Reassembly::restore(packets)?, bytes })
    }
}
