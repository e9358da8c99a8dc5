//! Datagrams on a link: a run of RW packets of type 3 with neither credit nor answers, the last one with EOM.

use vsock_core::{Address, EOM, Op, RawHeader, SocketType};

use crate::host::wire::MAX_DATAGRAM;
use crate::slice::{self, Slice};

/// A datagram, or the beginning of one.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) bytes: Vec<u8>,
}

/// What became of a packet.
#[derive(Debug)]
pub(super) enum Assembled {
    /// More is to come.
    Part,
    /// It was the last.
    Whole(Datagram),
    /// The datagram is longer than one can be, and forgotten.
    TooLong,
    /// It is no packet of a datagram.
    Malformed,
}

/// The datagram of which not all packets have come.
#[derive(Debug, Default)]
pub(super) struct Reassembly(Option<Datagram>);

impl Reassembly {
    /// Takes a packet.
    pub(super) fn take(
        &mut self,
        raw: &RawHeader,
        payload_len: u32,
        payload: &[Slice],
    ) -> Assembled {
        // Addresses are checked like those of any packet; the type is none that connections have.
        let as_stream = RawHeader { kind: SocketType::Stream.to_wire(), ..*raw };
        let header = match as_stream.check() {
            Ok(header) if header.op == Op::Rw && header.len <= payload_len => header,
            Ok(_) | Err(_) => return Assembled::Malformed,
        };
        let mut datagram = match self.0.take() {
            Some(one) if one.from == header.src && one.to == header.dst => one,
            // One whose end never came.
            Some(_) | None => Datagram { from: header.src, to: header.dst, bytes: Vec::new() },
        };
        let before = datagram.bytes.len();
        let len = header.len as usize;
        if before + len > MAX_DATAGRAM {
            return Assembled::TooLong;
        }
        datagram.bytes.resize(before + len, 0);
        slice::copy_out(payload, &mut datagram.bytes[before..]);
        if header.flags & EOM == 0 {
            self.0 = Some(datagram);
            return Assembled::Part;
        }
        Assembled::Whole(datagram)
    }
}

/// The header of a packet.
pub(super) fn header(from: Address, to: Address, len: u32, is_last: bool) -> RawHeader {
    RawHeader {
        src_cid: from.cid.0.into(),
        dst_cid: to.cid.0.into(),
        src_port: from.port.0,
        dst_port: to.port.0,
        len,
        kind: SocketType::Datagram.to_wire(),
        op: Op::Rw.to_wire(),
        flags: if is_last { EOM } else { 0 },
        ..RawHeader::default()
    }
}
