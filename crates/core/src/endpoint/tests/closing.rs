//! Half and full close, resets, the end.

use super::*;

#[test]
fn trap_01_connecting_reset_is_refused() {
    let mut bench = Bench::new();
    let id = bench.connect();
    bench.hear(packet(Op::Rst));
    bench.assert_over(id, CloseReason::Refused, &[]);
}

#[test]
fn trap_02_open_reset_ends_it_as_reset() {
    let (mut bench, id) = Bench::open();
    bench.hear(packet(Op::Rst));
    bench.assert_over(id, CloseReason::Reset, &[]);
}

#[test]
fn trap_14_strays_are_answered_with_reset_and_resets_with_nothing() {
    let mut bench = Bench::new();
    let ops = [Op::Response, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::CreditRequest];
    for op in ops.into_iter().chain([Op::Invalid, Op::Unknown]) {
        assert_eq!(bench.receive(packet(op)), Received::Handled);
        let reply = packet(op).raw().reset_reply().unwrap();
        assert_eq!(bench.packets(), [reply], "{op:?}");
    }
    bench.hear(packet(Op::Rst));
    assert_eq!(bench.ops(), []);
    assert_eq!(bench.endpoint.stats().unknown_flows, 7);
    assert_eq!(bench.endpoint.stats().resets_sent, 7);
}

#[test]
fn trap_14_other_type_is_answered_with_reset_and_leaves_the_connection() {
    let (mut bench, id) = Bench::open();
    let kind = SocketType::SeqPacket;
    assert_eq!(bench.receive(Header { kind, ..rw(10) }), Received::Handled);
    let reply = bench.packets()[0];
    assert_eq!((reply.op, reply.kind), (Op::Rst.to_wire(), 2));
    bench.hear(Header { kind, ..packet(Op::Rst) });
    assert_eq!((bench.ops(), bench.events()), (Vec::new(), Vec::new()));
    assert_eq!(bench.state(id), "open");
    assert_eq!(bench.endpoint.stats().type_mismatches, 2);
}

#[test]
fn trap_14_malformed_packets_are_answered_with_reset_of_their_type() {
    let mut bench = Bench::new();
    let raw = RawHeader { kind: 77, ..packet(Op::Request).raw() };
    bench.endpoint.receive_unusable(&raw);
    assert_eq!(bench.packets(), [raw.reset_reply().unwrap()]);
    bench.endpoint.receive_unusable(&RawHeader { op: Op::Rst.to_wire(), ..raw });
    assert_eq!(bench.packets(), []);
    assert_eq!(bench.endpoint.stats().malformed, 2);
}

#[test]
fn open_payload_of_wrong_length_ends_the_connection() {
    for len in [70_000, 10] {
        let (mut bench, id) = Bench::open();
        bench.endpoint.receive_unusable(&RawHeader { len, ..rw(1).raw() });
        bench.assert_over(id, CloseReason::ProtocolError, &[Op::Rst]);
    }
    let (mut bench, id) = Bench::open();
    bench.endpoint.receive_unusable(&RawHeader { kind: 9, ..rw(1).raw() });
    assert_eq!((bench.state(id), bench.ops()), ("open", alloc::vec![Op::Rst]));
}

#[test]
fn trap_15_late_and_extra_resets_are_harmless() {
    let (mut bench, id) = Bench::open();
    bench.hear(shutdown(Shutdown::BOTH));
    bench.assert_over(id, CloseReason::Done, &[Op::Rst]);
    bench.hear(packet(Op::Rst));
    assert_eq!((bench.ops(), bench.events()), (Vec::new(), Vec::new()));
}

#[test]
fn trap_16_half_close_stays_half_close() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.shut_down(bench.now, id, Shutdown::SEND);
    let sent = bench.packets();
    assert_eq!((sent.len(), sent[0].flags), (1, Shutdown::SEND.flags()));
    assert_eq!(bench.endpoint.data_header(id, 1, 0), None);
    assert_eq!(bench.receive(rw(10)), Received::Data(id));
    bench.wait(Duration::from_secs(3600));
    assert_eq!((bench.state(id), bench.ops()), ("half-closed", Vec::new()));
}

#[test]
fn trap_16_their_half_close_leaves_our_direction_open() {
    let (mut bench, id) = Bench::open();
    bench.hear(shutdown(Shutdown::SEND));
    let flags = Shutdown::SEND;
    assert_eq!(bench.events(), [Event::TheirsShutDown { id, flags }]);
    bench.hear(shutdown(Shutdown::SEND));
    bench.hear(shutdown(Shutdown::NONE));
    assert_eq!(bench.events(), [], "no news");
    assert!(bench.endpoint.data_header(id, 10, 0).is_some());
    bench.hear(shutdown(Shutdown::RCV));
    bench.assert_over(id, CloseReason::Done, &[Op::Rst]);
}

#[test]
fn open_payload_after_their_shutdown_of_sending_breaks_it() {
    let (mut bench, id) = Bench::open();
    bench.hear(shutdown(Shutdown::SEND));
    bench.events();
    assert_eq!(bench.receive(rw(1)), Received::Handled);
    bench.assert_over(id, CloseReason::ProtocolError, &[Op::Rst]);
}

#[test]
fn trap_17_closing_waits_for_reset_and_then_sends_one() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.close(bench.now, id);
    let sent = bench.packets();
    assert_eq!((sent.len(), sent[0].flags), (1, 3));
    bench.wait(Duration::from_millis(7999));
    assert_eq!((bench.state(id), bench.ops()), ("closing", Vec::new()));
    bench.wait(Duration::from_millis(1));
    bench.assert_over(id, CloseReason::TimedOut, &[Op::Rst]);
}

#[test]
fn trap_17_closing_reset_finishes_it() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.close(bench.now, id);
    assert_eq!(bench.ops(), [Op::Shutdown]);
    assert_eq!(bench.receive(rw(100)), Received::Handled, "nobody reads it");
    bench.hear(packet(Op::Rst));
    bench.assert_over(id, CloseReason::Done, &[]);
}

#[test]
fn trap_17_simultaneous_close_ends_with_one_reset_from_here() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.close(bench.now, id);
    bench.hear(shutdown(Shutdown::BOTH));
    bench.assert_over(id, CloseReason::Done, &[Op::Rst]);
}

#[test]
fn trap_17_draining_resets_when_everything_is_consumed() {
    let (mut bench, id) = Bench::open();
    assert_eq!(bench.receive(rw(100)), Received::Data(id));
    bench.hear(shutdown(Shutdown::BOTH));
    let flags = Shutdown::BOTH;
    assert_eq!(bench.events(), [Event::TheirsShutDown { id, flags }]);
    bench.endpoint.consumed(id, 99, 0);
    assert_eq!((bench.state(id), bench.ops()), ("draining", Vec::new()));
    bench.endpoint.consumed(id, 1, 1);
    bench.assert_over(id, CloseReason::Done, &[Op::Rst]);
}

#[test]
fn trap_17_draining_close_resets_at_once() {
    let (mut bench, id) = Bench::open();
    assert_eq!(bench.receive(rw(100)), Received::Data(id));
    bench.hear(shutdown(Shutdown::BOTH));
    bench.events();
    bench.endpoint.close(bench.now, id);
    bench.assert_over(id, CloseReason::Done, &[Op::Rst]);
}

#[test]
fn closing_after_both_directions_were_shut_sends_no_second_shutdown() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.shut_down(bench.now, id, Shutdown::SEND);
    bench.endpoint.shut_down(bench.now, id, Shutdown::RCV);
    assert_eq!(bench.packets()[0].flags, 3);
    bench.endpoint.close(bench.now, id);
    assert_eq!(bench.ops(), []);
    bench.wait(Duration::from_secs(8));
    bench.assert_over(id, CloseReason::TimedOut, &[Op::Rst]);
}

#[test]
fn trap_18_addresses_are_free_while_old_data_is_drained() {
    let (mut bench, old) = Bench::open();
    assert_eq!(bench.receive(rw(100)), Received::Data(old));
    bench.hear(shutdown(Shutdown::BOTH));
    bench.events();
    let new = bench.offered();
    bench.endpoint.accept(new);
    assert_eq!(bench.ops(), [Op::Response]);
    assert_eq!(bench.receive(rw(7)), Received::Data(new));
    bench.endpoint.consumed(old, 100, 1);
    let reason = CloseReason::Done;
    assert_eq!(bench.events(), [Event::Closed { id: old, reason }]);
    assert_eq!(bench.ops(), [], "a RST would hit the new connection");
    assert_eq!(bench.state(new), "open");
}

#[test]
fn trap_30_lost_link_ends_everything_in_silence() {
    let (mut bench, open) = Bench::open();
    bench.hear(Header { src: Address::new(3, 9), ..packet(Op::CreditRequest) });
    bench.hear(packet(Op::CreditRequest));
    bench.endpoint.reset_all();
    bench.assert_over(open, CloseReason::LinkGone, &[]);
    let again = bench.offered();
    bench.endpoint.accept(again);
    assert_eq!(bench.ops(), [Op::Response]);
}

#[test]
fn requests_beyond_the_limits_are_reset_and_counted() {
    let limits = Limits { max_connections: 5, max_half_open: 3, ..Limits::default() };
    let mut bench = Bench::with(limits);
    let from = |port| Header { src: Address::new(3, port), ..packet(Op::Request) };
    for port in 0..4 {
        bench.hear(from(port));
    }
    assert_eq!((bench.events().len(), bench.ops()), (3, alloc::vec![Op::Rst]));
    let ids: Vec<_> = bench.endpoint.connections().map(|info| info.id).collect();
    ids.iter().for_each(|id| bench.endpoint.accept(*id));
    for port in 4..8 {
        bench.hear(from(port));
    }
    let stats = bench.endpoint.stats();
    assert_eq!((stats.connections, stats.requests_over_limit), (5, 2));
    assert_eq!(stats.requests_over_half_open_limit, 1);
    assert_eq!(bench.endpoint.connect(bench.now, KEY, STREAM, None), Err(ConnectError::TooMany));
    assert_eq!(bench.endpoint.stats().connects_over_limit, 1);
}

#[test]
fn reset_by_our_user_is_one_packet_and_no_event() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.shut_down(bench.now, id, Shutdown::SEND);
    bench.endpoint.reset(id);
    assert_eq!((bench.ops(), bench.events()), (alloc::vec![Op::Rst], Vec::new()));
    assert_eq!(bench.state(id), "gone");
}

#[test]
fn reset_leaves_before_a_request_between_the_same_addresses() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.reset(id);
    bench.endpoint.connect(bench.now, KEY, STREAM, None).unwrap();
    assert_eq!(bench.ops(), [Op::Rst, Op::Request]);
}

#[test]
fn close_that_the_link_has_not_taken_waits_for_it_and_then_as_long_as_any() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.close(bench.now, id);
    for _ in 0..10 {
        bench.wait(Duration::from_secs(8));
    }
    assert_eq!((bench.events(), bench.state(id)), (Vec::new(), "closing"));
    assert_eq!(bench.ops(), [Op::Shutdown]);
    bench.wait(Duration::from_secs(8));
    bench.assert_over(id, CloseReason::TimedOut, &[Op::Rst]);
}
