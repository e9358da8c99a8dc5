use super::*;
use proptest::prelude::*;

fn request() -> RawHeader {
    RawHeader {
        src_cid: 3,
        dst_cid: 2,
        src_port: 1024,
        dst_port: 22,
        len: 0,
        kind: 1,
        op: 1,
        flags: 0,
        buf_alloc: 262_144,
        fwd_cnt: 0,
    }
}

#[test]
fn header_layout_is_that_of_the_specification() {
    let raw = RawHeader {
        src_cid: 0x0807_0605_0403_0201,
        dst_cid: 0x100f_0e0d_0c0b_0a09,
        src_port: 0x1413_1211,
        dst_port: 0x1817_1615,
        len: 0x1c1b_1a19,
        kind: 0x1e1d,
        op: 0x201f,
        flags: 0x2423_2221,
        buf_alloc: 0x2827_2625,
        fwd_cnt: 0x2c2b_2a29,
    };
    let bytes: [u8; HEADER_LEN] = core::array::from_fn(|at| u8::try_from(at + 1).unwrap());
    assert_eq!(RawHeader::parse(&bytes), raw);
    assert_eq!(raw.encode(), bytes);
}

#[test]
fn header_of_a_request_is_accepted_and_encodes_back() {
    let header = request().check().unwrap();
    assert_eq!(header.src, Address::new(3, 1024));
    assert_eq!(header.dst, Address::new(2, 22));
    assert_eq!(header.op, Op::Request);
    assert_eq!(header.encode(), request().encode());
}

#[test]
fn header_with_a_bad_field_is_malformed() {
    let wide = 1 << 32;
    let any = u64::from(u32::MAX);
    let rw = 5;
    for (raw, fault) in [
        (RawHeader { src_cid: wide | 3, ..request() }, Malformed::SourceCid),
        (RawHeader { src_cid: any, ..request() }, Malformed::SourceCid),
        (RawHeader { dst_cid: wide | 2, ..request() }, Malformed::DestinationCid),
        (RawHeader { dst_cid: any, ..request() }, Malformed::DestinationCid),
        (RawHeader { kind: 0, ..request() }, Malformed::Type),
        (RawHeader { kind: 3, ..request() }, Malformed::Type),
        (RawHeader { op: rw, len: MAX_PAYLOAD + 1, ..request() }, Malformed::Length),
        (RawHeader { op: rw, len: u32::MAX, ..request() }, Malformed::Length),
    ] {
        assert_eq!(raw.check(), Err(fault), "{raw:?}");
    }
    assert!(RawHeader { op: rw, len: MAX_PAYLOAD, ..request() }.check().is_ok());
}

#[test]
fn payload_of_anything_but_rw_is_nothing() {
    let header = RawHeader { len: u32::MAX, ..request() }.check().unwrap();
    assert_eq!(header.len, 0);
}

#[test]
fn op_number_without_a_name_is_unknown() {
    for op in [8, 9, 0x00ff, 0xffff] {
        assert_eq!(RawHeader { op, ..request() }.check().unwrap().op, Op::Unknown);
    }
    assert_eq!(RawHeader { op: 0, ..request() }.check().unwrap().op, Op::Invalid);
}

#[test]
fn trap_14_a_reset_is_never_answered() {
    for kind in [0, 1, 2, 3, 0xffff] {
        assert_eq!(RawHeader { op: 3, kind, ..request() }.reset_reply(), None);
    }
}

#[test]
fn trap_14_reset_reply_swaps_addresses_and_copies_the_type() {
    let raw = RawHeader { kind: 0x1234, len: 9, flags: 9, fwd_cnt: 9, ..request() };
    let reply = raw.reset_reply().unwrap();
    let expected = RawHeader {
        src_cid: 2,
        dst_cid: 3,
        src_port: 22,
        dst_port: 1024,
        kind: 0x1234,
        op: 3,
        ..RawHeader::default()
    };
    assert_eq!(reply, expected);
}

#[test]
fn trap_11_pieces_have_their_own_length_and_only_the_last_ends_the_message() {
    let raw = RawHeader { op: 5, kind: 2, len: 10_000, flags: EOM | EOR, ..request() };
    let packet = raw.check().unwrap();
    let room = 3732;
    let pieces = [packet.piece(0, room), packet.piece(3732, room), packet.piece(7464, room)];
    assert_eq!(pieces.map(|piece| piece.len), [3732, 3732, 2536]);
    assert_eq!(pieces.map(|piece| piece.flags), [0, 0, EOM | EOR]);
    assert_eq!(packet.piece(0, 10_000), packet);
    assert_eq!(packet.piece(u32::MAX, room).len, 0);
}

#[test]
fn shutdown_keeps_known_bits_only() {
    assert_eq!(Shutdown::from_flags(0xffff_fffd), Shutdown::RCV);
    assert_eq!(Shutdown::RCV.with(Shutdown::SEND), Shutdown::BOTH);
    assert!(Shutdown::BOTH.contains(Shutdown::SEND));
    assert!(!Shutdown::RCV.contains(Shutdown::SEND));
    assert!(Shutdown::from_flags(4).is_none());
}

proptest! {
    #[test]
    fn any_bytes_parse_and_encode_back(bytes: [u8; 32], tail: [u8; 12]) {
        let mut all = [0; HEADER_LEN];
        all[..32].copy_from_slice(&bytes);
        all[32..].copy_from_slice(&tail);
        prop_assert_eq!(RawHeader::parse(&all).encode(), all);
    }

    #[test]
    fn a_checked_header_holds_what_it_promises(src_cid: u32, len: u32, kind in 0..4u16, op: u16) {
        let raw = RawHeader { src_cid: u64::from(src_cid), len, kind, op, ..request() };
        if let Ok(header) = raw.check() {
            prop_assert!(header.len <= MAX_PAYLOAD);
            prop_assert!(header.src.cid != Cid::ANY);
            prop_assert!(header.op == Op::Rw || header.len == 0);
        }
    }
}
