//! SOCK_DGRAM over a link: one datagram as a run of packets, and back.
//!
//! A datagram has neither connection nor credit, and is never answered. On a link it is a run of
//! RW packets of type 3, each as long as its buffer allows. The last one has EOM. The packets of a
//! datagram come in order, and not mixed with those of another, so a packet of other addresses
//! begins the next datagram, and the unfinished one is lost.
//!
//! As everywhere in this crate, only lengths are handled: [`Split`] says which bytes go into which
//! buffer, [`Reassembly`] where in the datagram the payload of a packet belongs.

use crate::address::{Address, FlowKey, SocketType};
use crate::packet::{EOM, Header, MAX_PAYLOAD, Malformed, Op, RawHeader};
use crate::saved::{Unfit, check as holds};

/// The most bytes of a datagram, as with VMCI.
pub const MAX_DATAGRAM: u32 = 17 * 4096 - 24;

/// The checked header of a packet of type 3.
///
/// # Errors
/// The first field that cannot be used; no operation but RW can.
pub fn check(raw: &RawHeader) -> Result<Header, Malformed> {
    if raw.kind != SocketType::Datagram.to_wire() {
        return Err(Malformed::Type);
    }
    if Op::from_wire(raw.op) != Op::Rw {
        return Err(Malformed::Operation);
    }
    // Addresses and length are checked like those of any packet.
    let header = RawHeader { kind: SocketType::Stream.to_wire(), ..*raw }.check()?;
    Ok(Header { kind: SocketType::Datagram, ..header })
}

/// The packets of one datagram, one after the other.
#[derive(Clone, Debug)]
pub struct Split {
    from: Address,
    to: Address,
    left: u32,
    is_done: bool,
}

impl Split {
    /// A datagram of `len` bytes. An empty one is a packet, too.
    #[must_use]
    pub const fn new(from: Address, to: Address, len: u32) -> Self {
        Self { from, to, left: len, is_done: false }
    }

    /// The header of the next packet, whose buffer has `room` bytes for payload. `None`: the whole
    /// datagram has been sent.
    pub fn next(&mut self, room: u32) -> Option<Header> {
        if self.is_done {
            return None;
        }
        let len = self.left.min(room).min(MAX_PAYLOAD);
        self.left -= len;
        self.is_done = self.left == 0;
        let flags = if self.is_done { EOM } else { 0 };
        let key = FlowKey { ours: self.from, theirs: self.to };
        Some(Header { len, flags, ..Header::outbound(key, SocketType::Datagram, Op::Rw) })
    }

    /// Whether all of it has been sent.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.is_done
    }
}

/// What a packet is to the datagram under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Arrived {
    /// Its payload belongs behind the first `at` bytes; at 0 a datagram begins.
    Part {
        /// Bytes of the datagram before it.
        at: u32,
        /// It ends the datagram, which is whole.
        is_last: bool,
    },
    /// With it the datagram is too long. The datagram is lost.
    TooLong,
    /// It belongs to a datagram that is too long.
    Lost,
}

/// The datagram under way from one link.
#[derive(Clone, Debug, Default)]
pub struct Reassembly {
    under_way: Option<UnderWay>,
}

#[derive(Clone, Debug)]
struct UnderWay {
    from: Address,
    to: Address,
    len: u32,
    is_lost: bool,
}

impl Reassembly {
    /// Takes a packet that [`check`] has passed.
    pub fn receive(&mut self, header: &Header) -> Arrived {
        let (from, to) = (header.src, header.dst);
        let before = self.under_way.take().filter(|it| (it.from, it.to) == (from, to));
        let mut it = before.unwrap_or(UnderWay { from, to, len: 0, is_lost: false });
        let at = it.len;
        let is_last = header.flags & EOM != 0;
        let arrived = if it.is_lost {
            Arrived::Lost
        } else if header.len > MAX_DATAGRAM - at {
            it.is_lost = true;
            Arrived::TooLong
        } else {
            it.len = at + header.len;
            Arrived::Part { at, is_last }
        };
        if !is_last {
            self.under_way = Some(it);
        }
        arrived
    }
}

/// A [`Reassembly`] as plain data: the datagram under way, if there is one.
pub type SavedReassembly = Option<SavedDatagram>;

/// A datagram of which not all packets have come, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedDatagram {
    /// Its sender.
    pub from: Address,
    /// Its receiver.
    pub to: Address,
    /// Bytes that have come.
    pub len: u32,
    /// It is too long.
    pub is_lost: bool,
}

impl Reassembly {
    /// As plain data.
    #[must_use]
    pub fn save(&self) -> SavedReassembly {
        let UnderWay { from, to, len, is_lost } = *self.under_way.as_ref()?;
        Some(SavedDatagram { from, to, len, is_lost })
    }

    /// From plain data.
    ///
    /// # Errors
    /// It is longer than a datagram can be.
    pub fn restore(saved: SavedReassembly) -> Result<Self, Unfit> {
        let len = saved.map_or(0, |it| it.len);
        holds(len <= MAX_DATAGRAM, Unfit::TooMany)?;
        let under_way = saved.map(|SavedDatagram { from, to, len, is_lost }| UnderWay {
            from,
            to,
            len,
            is_lost,
        });
        Ok(Self { under_way })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const A: Address = Address::new(3, 1024);
    const B: Address = Address::new(2, 22);

    fn part(from: Address, len: u32, flags: u32) -> Header {
        let key = FlowKey { ours: from, theirs: B };
        Header { len, flags, ..Header::outbound(key, SocketType::Datagram, Op::Rw) }
    }

    fn packets(len: u32, mut room: impl FnMut() -> u32) -> Vec<Header> {
        let mut split = Split::new(A, B, len);
        core::iter::from_fn(|| split.next(room())).collect()
    }

    #[test]
    fn datagram_under_way_goes_on_from_its_saved_form() {
        let mut before = Reassembly::default();
        let _ = before.receive(&part(A, 100, 0));
        let mut after = Reassembly::restore(before.save()).unwrap();
        assert_eq!(after.receive(&part(A, 5, EOM)), Arrived::Part { at: 100, is_last: true });
        assert_eq!(after.save(), None);
        let long = before.save().map(|it| SavedDatagram { len: MAX_DATAGRAM + 1, ..it });
        assert_eq!(Reassembly::restore(long).err(), Some(Unfit::TooMany));
    }

    #[test]
    fn empty_datagram_is_one_packet() {
        assert_eq!(packets(0, || 100), [part(A, 0, EOM)]);
    }

    #[test]
    fn large_buffer_takes_no_more_than_a_packet_may_carry() {
        let all = packets(MAX_DATAGRAM, || u32::MAX);
        assert_eq!(all, [part(A, MAX_PAYLOAD, 0), part(A, MAX_DATAGRAM - MAX_PAYLOAD, EOM)]);
    }

    #[test]
    fn packet_of_another_operation_or_type_or_length_is_none() {
        let raw = part(A, 5, EOM).raw();
        assert_eq!(check(&raw), Ok(part(A, 5, EOM)));
        assert_eq!(check(&RawHeader { op: 1, ..raw }), Err(Malformed::Operation));
        assert_eq!(check(&RawHeader { kind: 1, ..raw }), Err(Malformed::Type));
        assert_eq!(check(&RawHeader { src_cid: 1 << 32, ..raw }), Err(Malformed::SourceCid));
        assert_eq!(check(&RawHeader { len: MAX_PAYLOAD + 1, ..raw }), Err(Malformed::Length));
    }

    #[test]
    fn datagram_whose_end_never_came_is_lost_and_the_next_one_is_whole() {
        let mut reassembly = Reassembly::default();
        let other = Address::new(3, 1025);
        let mut receive = |from, len, flags| reassembly.receive(&part(from, len, flags));
        assert_eq!(receive(A, 10, 0), Arrived::Part { at: 0, is_last: false });
        assert_eq!(receive(other, 5, 0), Arrived::Part { at: 0, is_last: false });
        assert_eq!(receive(other, 5, EOM), Arrived::Part { at: 5, is_last: true });
        assert_eq!(receive(A, 7, EOM), Arrived::Part { at: 0, is_last: true });
    }

    #[test]
    fn datagram_that_is_too_long_is_lost_to_its_end() {
        let mut reassembly = Reassembly::default();
        let mut receive = |len, flags| reassembly.receive(&part(A, len, flags));
        assert_eq!(receive(MAX_PAYLOAD, 0), Arrived::Part { at: 0, is_last: false });
        assert_eq!(receive(MAX_PAYLOAD, 0), Arrived::TooLong);
        assert_eq!(receive(1, 0), Arrived::Lost);
        assert_eq!(receive(1, EOM), Arrived::Lost);
        assert_eq!(receive(1, EOM), Arrived::Part { at: 0, is_last: true });
    }

    proptest! {
        /// Whatever the buffers, a datagram arrives as it was sent.
        #[test]
        fn datagram_arrives_as_it_was_sent(
            lens in prop::collection::vec(0..=MAX_DATAGRAM, 1..4),
            rooms in prop::collection::vec(1u32..70_000, 1..20),
        ) {
            let mut reassembly = Reassembly::default();
            let mut rooms = rooms.iter().cycle().copied();
            for len in lens {
                let mut came = 0;
                let sent = packets(len, || rooms.next().unwrap_or(1).max(64));
                for (packet, left) in sent.iter().zip((0..sent.len()).rev()) {
                    let checked = check(&packet.raw()).unwrap();
                    let wanted = Arrived::Part { at: came, is_last: left == 0 };
                    prop_assert_eq!(reassembly.receive(&checked), wanted);
                    came += checked.len;
                }
                prop_assert_eq!(came, len);
            }
        }

        /// Whatever a guest sends, nothing is longer than a datagram may be, and parts are in a row.
        #[test]
        fn parts_are_in_a_row_and_within_the_limit(
            packets in prop::collection::vec((0u32..3, 0..=MAX_PAYLOAD, any::<bool>()), 0..100),
        ) {
            let mut reassembly = Reassembly::default();
            let mut len = 0;
            for (port, more, ends) in packets {
                let header = part(Address::new(3, port), more, if ends { EOM } else { 0 });
                if let Arrived::Part { at, is_last } = reassembly.receive(&header) {
                    prop_assert!(at == 0 || at == len);
                    len = at + more;
                    prop_assert!(len <= MAX_DATAGRAM);
                    prop_assert_eq!(is_last, ends);
                }
            }
        }
    }
}
