//! Invariant: any 44 bytes are a header without loss, and what passes the check stays within what it promises: CIDs of
//! 32 bits, a payload of at most 64 KiB, pieces that add up to it; a RST is never answered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vsock_core::{EOM, EOR, MAX_PAYLOAD, Op, RawHeader};

fuzz_target!(|input: ([u8; 44], u16)| {
    let (bytes, room) = input;
    let raw = RawHeader::parse(&bytes);
    assert_eq!(raw.encode(), bytes);
    match raw.reset_reply() {
        Some(reply) => {
            assert_eq!((reply.src_cid, reply.dst_cid), (raw.dst_cid, raw.src_cid));
            assert_eq!((reply.src_port, reply.dst_port), (raw.dst_port, raw.src_port));
            assert_eq!((reply.op, reply.len), (Op::Rst.to_wire(), 0));
            assert!(reply.reset_reply().is_none());
        }
        None => assert_eq!(raw.op, Op::Rst.to_wire()),
    }
    let Ok(header) = raw.check() else { return };
    assert!(header.len <= MAX_PAYLOAD);
    assert!(header.op == Op::Rw || header.len == 0);
    assert_eq!((u64::from(header.src.cid.0), header.src.port.0), (raw.src_cid, raw.src_port));
    assert_eq!((u64::from(header.dst.cid.0), header.dst.port.0), (raw.dst_cid, raw.dst_port));
    let again = RawHeader::parse(&header.encode()).check();
    assert_eq!(again.map(|again| again.len), Ok(header.len));

    let room = u32::from(room).max(1);
    let mut sent = 0;
    while sent < header.len {
        let piece = header.piece(sent, room);
        assert!(piece.len > 0 && piece.len <= room);
        sent += piece.len;
        let ends = if sent == header.len { header.flags & (EOM | EOR) } else { 0 };
        assert_eq!(piece.flags & (EOM | EOR), ends);
    }
    assert_eq!(sent, header.len);
});
