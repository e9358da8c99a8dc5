//! Both windows, and what is said about them.

use super::*;

#[test]
fn trap_04_connecting_credit_update_before_response_is_a_protocol_error() {
    let mut bench = Bench::new();
    let id = bench.connect();
    bench.hear(packet(Op::CreditUpdate));
    bench.assert_over(id, CloseReason::ProtocolError, &[Op::Rst]);
}

#[test]
fn trap_04_offered_credit_request_is_not_answered_before_response() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.hear(packet(Op::CreditRequest));
    assert_eq!(bench.ops(), []);
    bench.endpoint.accept(id);
    assert_eq!(bench.endpoint.window(id), Window::default(), "RESPONSE must leave first");
    assert_eq!(bench.endpoint.data_header(id, 1, 0), None);
    assert_eq!(bench.ops(), [Op::Response]);
    assert_eq!(bench.endpoint.window(id).bytes, BUFFER);
}

#[test]
fn trap_06_fwd_cnt_is_per_connection_and_starts_at_zero() {
    let (mut bench, first) = Bench::open();
    assert_eq!(bench.receive(rw(65536)), Received::Data(first));
    bench.endpoint.consumed(first, 65536, 1);
    let other = Address::new(3, 1025);
    bench.hear(Header { src: other, ..packet(Op::Request) });
    let Event::Offered { id: second, .. } = bench.events()[0] else { panic!() };
    bench.endpoint.accept(second);
    let fwd_of = |id| match id {
        id if id == first => 65536,
        _ => 0,
    };
    for id in [first, second] {
        bench.ops();
        let header = bench.endpoint.data_header(id, 1, 0).unwrap();
        assert_eq!(header.fwd_cnt, fwd_of(id));
    }
}

#[test]
fn trap_06_impossible_fwd_cnt_neither_stalls_nor_frees() {
    let (mut bench, id) = Bench::open();
    assert!(bench.endpoint.data_header(id, 1000, 0).is_some());
    bench.hear(Header { fwd_cnt: 1001, ..packet(Op::CreditUpdate) });
    assert_eq!(bench.endpoint.window(id).bytes, BUFFER - 1000);
    assert_eq!(bench.endpoint.stats().impossible_credit, 1);
}

#[test]
fn trap_07_data_beyond_the_window_gets_no_header() {
    let (mut bench, id) = Bench::open();
    bench.hear(Header { buf_alloc: 100, ..packet(Op::CreditUpdate) });
    assert_eq!(bench.endpoint.data_header(id, 101, 0), None);
    assert!(bench.endpoint.data_header(id, 100, 0).is_some());
    assert_eq!(bench.endpoint.data_header(id, 1, 0), None);
    assert_eq!(bench.endpoint.data_header(id, 0, 0), None, "empty packets are no data");
    bench.hear(Header { buf_alloc: 50, ..packet(Op::CreditUpdate) });
    assert_eq!(bench.endpoint.window(id).bytes, 0);
}

#[test]
fn trap_08_stalled_sender_asks_once_and_again_until_there_is_room() {
    let (mut bench, id) = Bench::open();
    bench.hear(Header { buf_alloc: 10, ..packet(Op::CreditUpdate) });
    assert!(bench.endpoint.data_header(id, 10, 0).is_some());
    for _ in 0..3 {
        bench.endpoint.wants_to_send(bench.now, id);
    }
    assert_eq!(bench.ops(), [], "Linux tells by itself when it matters");
    let mut asked = 0;
    for _ in 0..100 {
        bench.wait(Duration::from_secs(1));
        asked += bench.ops().iter().filter(|op| **op == Op::CreditRequest).count();
    }
    assert!((10..30).contains(&asked), "{asked} in 100 seconds");
    assert_eq!(bench.events(), []);
    bench.hear(Header { buf_alloc: 10, fwd_cnt: 10, ..packet(Op::CreditUpdate) });
    assert_eq!(bench.events(), [Event::Writable { id }]);
    bench.wait(Duration::from_secs(100));
    assert_eq!(bench.ops(), []);
    assert_eq!(bench.endpoint.deadline(), None);
    assert_eq!(bench.endpoint.stats().stalls, 1);
}

#[test]
fn stalled_sender_is_not_woken_by_what_gives_no_room() {
    let (mut bench, id) = Bench::open();
    bench.hear(Header { buf_alloc: 10, ..packet(Op::CreditUpdate) });
    assert!(bench.endpoint.data_header(id, 10, 0).is_some());
    bench.endpoint.wants_to_send(bench.now, id);
    bench.hear(Header { buf_alloc: 5, ..packet(Op::CreditUpdate) });
    let _ = bench.receive(Header { buf_alloc: 5, ..rw(1) });
    assert_eq!(bench.events(), []);
}

#[test]
fn trap_08_credit_request_is_answered_at_once() {
    let (mut bench, id) = Bench::open();
    assert_eq!(bench.receive(rw(100)), Received::Data(id));
    bench.endpoint.consumed(id, 60, 0);
    bench.hear(packet(Op::CreditRequest));
    let update = bench.packets()[0];
    assert_eq!((update.op, update.fwd_cnt), (Op::CreditUpdate.to_wire(), 60));
    bench.hear(packet(Op::CreditRequest));
    assert_eq!(bench.ops(), [Op::CreditUpdate], "also without news");
    bench.endpoint.consumed(id, 1, 0);
    assert_eq!(bench.ops(), [Op::CreditUpdate], "and then the next news at once");
}

#[test]
fn trap_08_data_carries_the_news_instead_of_an_update() {
    let (mut bench, id) = Bench::open();
    for _ in 0..4 {
        assert_eq!(bench.receive(rw(65536)), Received::Data(id));
    }
    bench.endpoint.consumed(id, BUFFER, 4);
    assert!(bench.endpoint.has_packet());
    assert_eq!(bench.endpoint.data_header(id, 1, 0).unwrap().fwd_cnt, BUFFER);
    assert!(!bench.endpoint.has_packet());
    assert_eq!(bench.ops(), []);
}

#[test]
fn trap_09_fwd_cnt_that_lags_behind_reads_only_delays() {
    // Linux counts a packet as consumed when its last byte is read.
    let (mut bench, id) = Bench::open();
    bench.hear(Header { buf_alloc: 8000, ..packet(Op::CreditUpdate) });
    assert!(bench.endpoint.data_header(id, 4000, 0).is_some());
    assert!(bench.endpoint.data_header(id, 4000, 0).is_some());
    bench.hear(Header { buf_alloc: 8000, fwd_cnt: 4000, ..packet(Op::CreditUpdate) });
    assert_eq!(bench.endpoint.window(id).bytes, 4000);
}

#[test]
fn trap_10_packets_are_bounded_as_well_as_bytes() {
    let (mut bench, id) = Bench::open();
    let mut sent = 0;
    while bench.endpoint.data_header(id, 130, 0).is_some() {
        sent += 1;
    }
    assert!(sent * 576 < BUFFER && sent * 130 < BUFFER);
    assert_eq!(bench.endpoint.window(id).packets, 0);
    bench.endpoint.wants_to_send(bench.now, id);
    bench.hear(Header { fwd_cnt: sent * 130, ..packet(Op::CreditUpdate) });
    assert_eq!(bench.events(), [Event::Writable { id }]);
}

#[test]
fn open_payload_after_our_shutdown_of_receiving_is_discarded_and_credited() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.shut_down(bench.now, id, Shutdown::RCV);
    assert_eq!(bench.ops(), [Op::Shutdown]);
    for _ in 0..40 {
        assert_eq!(bench.receive(rw(65536)), Received::Handled);
        bench.ops();
    }
    assert_eq!((bench.state(id), bench.endpoint.info(id).unwrap().unread), ("half-closed", 0));
}

#[test]
fn open_data_beyond_credit_is_reset() {
    let (mut bench, id) = Bench::open();
    for _ in 0..4 {
        assert_eq!(bench.receive(rw(65536)), Received::Data(id));
    }
    assert_eq!(bench.receive(rw(1)), Received::Handled);
    bench.assert_over(id, CloseReason::OverCredit, &[Op::Rst]);
    assert_eq!(bench.endpoint.stats().over_credit, 1);
}

#[test]
fn open_empty_packets_end_messages_and_nothing_else() {
    let (mut bench, _) = Bench::open();
    assert_eq!(bench.receive(rw(0)), Received::Handled);
    assert_eq!(bench.receive(Header { flags: EOM, ..rw(0) }), Received::Handled);

    let mut bench = Bench::new();
    let kind = SocketType::SeqPacket;
    bench.hear(Header { kind, ..packet(Op::Request) });
    let Event::Offered { id, .. } = bench.events()[0] else { panic!() };
    bench.endpoint.accept(id);
    bench.ops();
    assert_eq!(bench.receive(Header { kind, ..rw(0) }), Received::Handled);
    let end = Header { kind, flags: EOM, ..rw(0) };
    assert_eq!(bench.receive(end), Received::Data(id));
    while bench.receive(end) == Received::Data(id) {}
    assert_eq!(bench.ops(), [Op::Rst], "their number is bounded");
}

#[test]
fn trap_29_changed_buffer_is_told_at_once() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.set_buf_alloc(id, BUFFER);
    assert_eq!(bench.ops(), []);
    bench.endpoint.set_buf_alloc(id, 1 << 20);
    let update = bench.packets()[0];
    assert_eq!((update.op, update.buf_alloc), (Op::CreditUpdate.to_wire(), 1 << 20));
}
