use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const TO: Address = Address { cid: 3, port: 5000 };

fn bytes_of(op: u8) -> [u8; MESSAGE_LEN] {
    let mut bytes = [0; MESSAGE_LEN];
    (bytes[0], bytes[1]) = (VERSION, op);
    bytes
}

fn connect_bytes() -> [u8; MESSAGE_LEN] {
    let mut bytes = bytes_of(op::CONNECT);
    bytes[4] = 3;
    bytes[8..12].copy_from_slice(&5000u32.to_le_bytes());
    bytes
}

#[test]
fn request_has_each_field_where_the_specification_says() {
    let request = Request::Connect {
        to: TO,
        is_named: false,
        timeout_ms: 1500,
        buffer: 0x0102_0304_0506_0708,
        report: Report::Held { prompt: true },
        extra: 2016,
    };
    let mut expected = connect_bytes();
    expected[2] = 3;
    expected[12..16].copy_from_slice(&1500u32.to_le_bytes());
    expected[16..24].copy_from_slice(&0x0102_0304_0506_0708u64.to_le_bytes());
    expected[24..28].copy_from_slice(&2016u32.to_le_bytes());
    assert_eq!(request.encode(), expected);
}

#[test]
fn connect_request_is_read_field_by_field() {
    let mut bytes = connect_bytes();
    bytes[12..16].copy_from_slice(&1500u32.to_le_bytes());
    bytes[16..24].copy_from_slice(&65536u64.to_le_bytes());
    let expected = Request::Connect {
        to: TO,
        is_named: false,
        timeout_ms: 1500,
        buffer: 65536,
        report: Report::Reply,
        extra: 0,
    };
    assert_eq!(Request::decode(&bytes), Ok(expected));
}

#[test]
fn wrong_version_operation_and_flags_are_told_apart() {
    let mut bytes = connect_bytes();
    bytes[0] = 9;
    assert_eq!(Request::decode(&bytes), Err(BadRequest::Version(9)));
    bytes = connect_bytes();
    bytes[1] = 77;
    assert_eq!(Request::decode(&bytes), Err(BadRequest::Operation(77)));
    bytes = connect_bytes();
    bytes[2] = 4;
    assert_eq!(Request::decode(&bytes), Err(BadRequest::NotZero));
    bytes = connect_bytes();
    bytes[24] = 1;
    assert_eq!(Request::decode(&bytes), Err(BadRequest::NotZero));
}

#[test]
fn connect_request_is_held_only_with_a_cookie_behind_it() {
    let held = |prompt| Some(Report::Held { prompt });
    let table = [
        (0, 0, Some(Report::Reply)),
        (0, 8, Some(Report::Reply)),
        (1, 2016, held(false)),
        (3, 2016, held(true)),
        (1, 4096, held(false)),
        (1, 4097, None),
        (1, 0, None),
        (0, 7, None),
        (2, 8, None),
        (4, 8, None),
    ];
    for (flags, extra, expected) in table {
        let mut bytes = connect_bytes();
        bytes[2] = flags;
        bytes[24..28].copy_from_slice(&u32::to_le_bytes(extra));
        let report = match Request::decode(&bytes) {
            Ok(Request::Connect { report, .. }) => Some(report),
            _ => None,
        };
        assert_eq!(report, expected, "{flags} {extra}");
    }
}

#[test]
fn connect_request_with_a_name_has_it_behind_the_cookie_and_no_cid() {
    let mut bytes = connect_bytes();
    bytes[2..4].copy_from_slice(&7u16.to_le_bytes());
    bytes[24] = 14;
    assert_eq!(Request::decode(&bytes), Err(BadRequest::NotZero), "a CID beside a name");
    bytes[4] = 0;
    let request = Request::Connect {
        to: Address { cid: 0, port: 5000 },
        is_named: true,
        timeout_ms: 0,
        buffer: 0,
        report: Report::Held { prompt: true },
        extra: 14,
    };
    assert_eq!(Request::decode(&bytes), Ok(request));
    assert_eq!(request.encode(), bytes);
    bytes[24] = 8;
    assert_eq!(Request::decode(&bytes), Err(BadRequest::NotZero), "no room for a name");
}

#[test]
fn held_message_has_the_cookie_and_the_name_behind_the_request() {
    for name in [None, Some(b"alpha".as_slice()), Some(&[b'x'; MAX_NAME])] {
        let request = Request::Connect {
            to: Address { cid: 0, port: 80 },
            is_named: name.is_some(),
            timeout_ms: 0,
            buffer: 0,
            report: Report::Held { prompt: true },
            extra: u32::try_from(HELD_EXTRA).unwrap(),
        };
        let message = held_message(&request, 0x0102_0304_0506_0708, name);
        let (head, extra) = message.split_first_chunk().unwrap();
        assert_eq!(Request::decode(head), Ok(request));
        assert_eq!(extra.len(), request.extra());
        assert_eq!(extra[..COOKIE_LEN], 0x0102_0304_0506_0708u64.to_le_bytes());
        assert_eq!(name_behind(extra), name.or(Some(b"")));
    }
    let request = Request::Accepted;
    let cut = held_message(&request, 7, Some(&[b'x'; MAX_NAME + 1]));
    assert_eq!(name_behind(&cut[MESSAGE_LEN..]), Some([b'x'; MAX_NAME].as_slice()));
}

#[test]
fn name_that_is_cut_is_none() {
    let table: [(&[u8], Option<&[u8]>); 5] = [
        (b"cookie..\x05alpha", Some(b"alpha")),
        (b"cookie..\x05alpha\0\0padding", Some(b"alpha")),
        (b"cookie..\x06alpha", None),
        (b"cookie..", None),
        (b"cookie", None),
    ];
    for (extra, expected) in table {
        assert_eq!(name_behind(extra), expected);
    }
}

#[test]
fn listen_request_has_all_that_is_inherited_behind_it_or_nothing() {
    let mut bytes = bytes_of(op::LISTEN);
    for (extra, is_valid) in [(0, true), (32, true), (31, false), (64, false)] {
        bytes[24] = extra;
        let request = Request::decode(&bytes);
        assert_eq!(request.is_ok(), is_valid, "{extra}");
        assert!(request.is_err() || request.unwrap().extra() == usize::from(extra));
    }
}

#[test]
fn flow_request_may_say_that_its_program_receives_no_more() {
    let mut bytes = bytes_of(op::FLOW);
    bytes[4] = 7;
    let request = |receive_shut| Ok(Request::Flow { cookie: 7, buffer: 0, receive_shut });
    assert_eq!(Request::decode(&bytes), request(false));
    bytes[12] = 1;
    assert_eq!(Request::decode(&bytes), request(true));
    bytes[12] = 2;
    assert_eq!(Request::decode(&bytes), Err(BadRequest::NotZero));
}

#[test]
fn byte_that_an_operation_does_not_use_must_be_zero() {
    // From the table of the specification: what each operation uses, in words of four bytes.
    let used: [(u8, &[usize]); 7] = [
        (op::BIND, &[1, 2]),
        (op::LISTEN, &[3, 4, 5]),
        (op::ACCEPTED, &[]),
        (op::LOCAL_CID, &[]),
        (op::RESOLVE, &[6]),
        (op::FLOW, &[1, 2, 3, 4, 5]),
        (op::SEND, &[1, 2, 4, 5, 6]),
    ];
    for (op, used) in used {
        let mut bytes = bytes_of(op);
        if op == op::RESOLVE {
            bytes[24] = 5;
        }
        assert!(Request::decode(&bytes).is_ok(), "{op}");
        for at in (2..MESSAGE_LEN).filter(|at| !used.contains(&(at / 4))) {
            bytes[at] = 1;
            assert_eq!(Request::decode(&bytes), Err(BadRequest::NotZero), "{op}: {at}");
            bytes[at] = 0;
        }
    }
}

#[test]
fn datagram_and_name_have_a_longest_length() {
    for (op, longest) in [(op::SEND, MAX_DATAGRAM), (op::RESOLVE, MAX_NAME)] {
        let mut bytes = bytes_of(op);
        let longest = u32::try_from(longest).unwrap();
        bytes[24..28].copy_from_slice(&longest.to_le_bytes());
        assert!(Request::decode(&bytes).is_ok());
        bytes[24..28].copy_from_slice(&(longest + 1).to_le_bytes());
        assert_eq!(Request::decode(&bytes), Err(BadRequest::NotZero));
    }
}

#[test]
fn reply_has_each_field_where_the_specification_says() {
    let reply = Reply {
        op: op::ACCEPT,
        errno: 0x0102,
        ours: Address { cid: 2, port: 80 },
        theirs: Address { cid: 3, port: 1024 },
        peer_buffer: 0x0004_0000,
        flow: 0x0102_0304_0506_0708,
    };
    let bytes = reply.encode();
    assert_eq!(bytes[..4], [1, 4, 2, 1]);
    let words: Vec<u32> =
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words[1..], [2, 80, 3, 1024, 0x0004_0000, 0x0506_0708, 0x0102_0304]);
    assert_eq!(Reply::decode(&bytes, op::ACCEPT), Ok(reply));
}

#[test]
fn reply_of_another_version_or_to_something_else_is_a_protocol_error() {
    let mut bytes = Reply::ok(op::ACCEPT, TO).encode();
    assert_eq!(Reply::decode(&bytes, op::BIND), Err(Errno::PROTO));
    bytes[0] = 2;
    assert_eq!(Reply::decode(&bytes, op::ACCEPT), Err(Errno::PROTO));
}

#[test]
fn reply_with_an_errno_is_that_error() {
    let reply = Reply::error(op::BIND, Errno(98));
    assert_eq!(reply.result(), Err(Errno(98)));
    assert_eq!(Reply::ok(op::BIND, TO).result(), Ok(Reply::ok(op::BIND, TO)));
    assert_eq!(Reply::error(op::BIND, Errno(70_000)).errno, u16::MAX);
}

#[test]
fn connect_is_ended_only_by_an_errno_with_the_cookie_of_its_socket() {
    let reply = Reply::not_connected(Errno::CONNRESET, TO, 7);
    assert!(reply.ends_connect_of(7));
    assert!(!reply.ends_connect_of(8));
    assert!(!Reply { errno: 0, ..reply }.ends_connect_of(7));
    assert!(!Reply { op: op::BIND, ..reply }.ends_connect_of(7));
}

#[test]
fn every_bad_request_has_its_own_words() {
    let all = [
        BadRequest::Version(9),
        BadRequest::Operation(77),
        BadRequest::NotZero,
        BadRequest::Length,
        BadRequest::Order,
        BadRequest::Unread,
    ];
    let texts: std::collections::BTreeSet<String> = all.map(|bad| bad.to_string()).into();
    assert_eq!(texts.len(), all.len());
    assert!(texts.contains("version 9 is not spoken here"));
}

proptest! {
    /// What one end accepts it says in the same bytes.
    #[test]
    fn decoded_request_is_encoded_to_the_same_bytes(
        op in 0u8..12,
        flags in 0u8..8,
        words in prop::array::uniform6(prop_oneof![Just(0u32), 1u32..5000, any::<u32>()]),
    ) {
        let mut bytes = bytes_of(op);
        bytes[2] = flags;
        for (place, word) in bytes[4..].chunks_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        if let Ok(request) = Request::decode(&bytes) {
            prop_assert_eq!(request.encode(), bytes);
            prop_assert_eq!(request.op(), op);
        }
    }

    #[test]
    fn decoded_reply_is_encoded_to_the_same_bytes(tail in prop::array::uniform30(any::<u8>())) {
        let mut bytes = bytes_of(op::CONNECT);
        bytes[2..].copy_from_slice(&tail);
        let reply = Reply::decode(&bytes, op::CONNECT).unwrap();
        prop_assert_eq!(reply.encode(), bytes);
    }
}
