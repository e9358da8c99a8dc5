//! One endpoint against packets made by hand. Two endpoints: `tests/two_endpoints.rs`.

use super::*;
use crate::address::Address;
use crate::packet::EOM;
use alloc::vec::Vec;

const KEY: FlowKey = FlowKey { ours: Address::new(2, 5000), theirs: Address::new(3, 1024) };
const STREAM: SocketType = SocketType::Stream;
const T0: Instant = Instant(1_000_000_000);
const BUFFER: u32 = 262_144;

/// An endpoint and the hand of its peer.
struct Bench {
    endpoint: Endpoint,
    now: Instant,
}

fn packet(op: Op) -> Header {
    Header { buf_alloc: BUFFER, ..Header::outbound(KEY.reversed(), STREAM, op) }
}

fn rw(len: u32) -> Header {
    Header { len, ..packet(Op::Rw) }
}

fn shutdown(flags: Shutdown) -> Header {
    Header { flags: flags.flags(), ..packet(Op::Shutdown) }
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self { endpoint: Endpoint::new(limits, 1), now: T0 }
    }

    /// A bench with one connection that the peer asked for.
    fn open() -> (Self, ConnectionId) {
        let mut bench = Self::new();
        let id = bench.offered();
        bench.endpoint.accept(id);
        assert_eq!(bench.ops(), [Op::Response]);
        (bench, id)
    }

    fn offered(&mut self) -> ConnectionId {
        self.hear(packet(Op::Request));
        match self.events()[..] {
            [Event::Offered { id, key: KEY, kind: STREAM }] => id,
            ref other => panic!("{other:?}"),
        }
    }

    fn connect(&mut self) -> ConnectionId {
        let id = self.endpoint.connect(self.now, KEY, STREAM, None).unwrap();
        assert_eq!(self.ops(), [Op::Request]);
        id
    }

    /// A packet without payload for our user.
    fn hear(&mut self, header: Header) {
        assert_eq!(self.receive(header), Received::Handled);
    }

    fn receive(&mut self, header: Header) -> Received {
        self.endpoint.receive(self.now, &header)
    }

    /// Lets time pass.
    fn wait(&mut self, wait: Duration) {
        self.now = self.now + wait;
        self.endpoint.expire(self.now);
    }

    fn packets(&mut self) -> Vec<RawHeader> {
        let mut packets = Vec::new();
        while self.endpoint.has_packet() {
            packets.push(self.endpoint.next_packet().expect("has_packet said so"));
        }
        assert_eq!(self.endpoint.next_packet(), None);
        packets
    }

    fn ops(&mut self) -> Vec<Op> {
        self.packets().iter().map(|packet| Op::from_wire(packet.op)).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.endpoint.next_event()).collect()
    }

    fn state(&self, id: ConnectionId) -> &'static str {
        self.endpoint.info(id).map_or("gone", |info| info.state)
    }

    fn assert_over(&mut self, id: ConnectionId, reason: CloseReason, ops: &[Op]) {
        assert_eq!(self.events(), [Event::Closed { id, reason }]);
        assert_eq!(self.ops(), ops);
        assert_eq!(self.state(id), "gone");
        assert_eq!(self.endpoint.stats().connections, 0);
        self.wait(Duration::from_secs(3600));
        assert_eq!((self.events(), self.ops()), (Vec::new(), Vec::new()));
        assert_eq!(self.endpoint.deadline(), None);
    }
}

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
fn accepted_user_who_waits_may_write_when_response_has_left() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.endpoint.accept(id);
    bench.endpoint.wants_to_send(bench.now, id);
    assert_eq!(bench.events(), []);
    assert_eq!(bench.ops(), [Op::Response]);
    assert_eq!(bench.events(), [Event::Writable { id }]);
}

#[test]
fn trap_05_request_and_response_carry_the_buffer() {
    let mut bench = Bench::new();
    bench.endpoint.connect(bench.now, KEY, STREAM, None).unwrap();
    let request = bench.packets()[0];
    assert_eq!((request.buf_alloc, request.fwd_cnt), (BUFFER, 0));

    let mut bench = Bench::new();
    let id = bench.offered();
    bench.endpoint.accept(id);
    let response = bench.packets()[0];
    assert_eq!((response.buf_alloc, response.fwd_cnt), (BUFFER, 0));
}

#[test]
fn trap_05_connected_has_the_window_of_response() {
    let mut bench = Bench::new();
    let id = bench.connect();
    assert_eq!(bench.endpoint.window(id), Window::default());
    bench.hear(Header { buf_alloc: 5000, ..packet(Op::Response) });
    assert_eq!(bench.events(), [Event::Connected { id }]);
    assert_eq!(bench.endpoint.window(id).bytes, 5000);
    assert_eq!(bench.endpoint.max_message(id), 5000);
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
    bench.endpoint.reject(&raw);
    assert_eq!(bench.packets(), [raw.reset_reply().unwrap()]);
    bench.endpoint.reject(&RawHeader { op: Op::Rst.to_wire(), ..raw });
    assert_eq!(bench.packets(), []);
    assert_eq!(bench.endpoint.stats().malformed, 2);
}

#[test]
fn open_payload_of_wrong_length_ends_the_connection() {
    for len in [70_000, 10] {
        let (mut bench, id) = Bench::open();
        bench.endpoint.reject(&RawHeader { len, ..rw(1).raw() });
        bench.assert_over(id, CloseReason::ProtocolError, &[Op::Rst]);
    }
    let (mut bench, id) = Bench::open();
    bench.endpoint.reject(&RawHeader { kind: 9, ..rw(1).raw() });
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
fn trap_19_request_on_a_live_connection_replaces_it() {
    let (mut bench, old) = Bench::open();
    assert_eq!(bench.receive(rw(100)), Received::Data(old));
    bench.hear(packet(Op::Request));
    let events = bench.events();
    let [Event::Closed { id, reason: CloseReason::Reset }, Event::Offered { id: new, .. }] =
        events[..]
    else {
        panic!("{events:?}")
    };
    assert!(id == old && new != old);
    assert_eq!(bench.ops(), [], "a RST would hit the new attempt");
    bench.endpoint.accept(new);
    assert_eq!(bench.packets()[0].fwd_cnt, 0);
    assert_eq!(bench.endpoint.stats().forgotten, 1);
}

#[test]
fn trap_20_refused_offer_is_answered_with_reset() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.endpoint.refuse(id);
    assert_eq!((bench.ops(), bench.events()), (alloc::vec![Op::Rst], Vec::new()));
    assert_eq!((bench.state(id), bench.endpoint.stats().refused), ("gone", 1));
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
fn connecting_without_an_answer_times_out_and_a_late_response_is_reset() {
    for (timeout, wait) in [(None, 2000), (Some(Duration::from_millis(50)), 50)] {
        let mut bench = Bench::new();
        let id = bench.endpoint.connect(bench.now, KEY, STREAM, timeout).unwrap();
        bench.ops();
        bench.wait(Duration::from_millis(wait - 1));
        assert_eq!(bench.events(), []);
        bench.wait(Duration::from_millis(1));
        bench.assert_over(id, CloseReason::TimedOut, &[]);
        bench.hear(packet(Op::Response));
        assert_eq!(bench.ops(), [Op::Rst]);
    }
}

#[test]
fn connecting_establishment_wins_over_a_timer_that_runs_out_later() {
    let mut bench = Bench::new();
    let id = bench.connect();
    bench.hear(packet(Op::Response));
    bench.wait(Duration::from_secs(10));
    assert_eq!((bench.state(id), bench.events()), ("open", alloc::vec![Event::Connected { id }]));
}

#[test]
fn connecting_close_before_the_request_left_sends_nothing() {
    let mut bench = Bench::new();
    let id = bench.endpoint.connect(bench.now, KEY, STREAM, None).unwrap();
    bench.endpoint.close(bench.now, id);
    bench.assert_over(id, CloseReason::Done, &[]);
}

#[test]
fn connecting_shutdown_is_sent_after_response() {
    let mut bench = Bench::new();
    let id = bench.connect();
    bench.endpoint.shut_down(bench.now, id, Shutdown::SEND);
    assert_eq!(bench.ops(), []);
    bench.hear(packet(Op::Response));
    assert_eq!(bench.packets()[0].flags, Shutdown::SEND.flags());
    assert_eq!(bench.endpoint.window(id), Window::default());
}

#[test]
fn offered_without_an_answer_times_out() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.wait(Duration::from_secs(2));
    bench.assert_over(id, CloseReason::TimedOut, &[Op::Rst]);
}

#[test]
fn offered_half_close_is_told_with_the_acceptance() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.hear(shutdown(Shutdown::SEND));
    assert_eq!(bench.events(), []);
    bench.endpoint.accept(id);
    assert_eq!(bench.events(), [Event::TheirsShutDown { id, flags: Shutdown::SEND }]);
}

#[test]
fn connect_between_taken_addresses_is_in_use() {
    let (mut bench, _) = Bench::open();
    let result = bench.endpoint.connect(bench.now, KEY, STREAM, None);
    assert_eq!(result, Err(ConnectError::InUse));
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
fn attempts_beyond_the_half_open_limit_are_too_many() {
    let mut bench = Bench::with(Limits { max_half_open: 1, ..Limits::default() });
    let id = bench.connect();
    let other = FlowKey { ours: Address::new(2, 1), ..KEY };
    let attempt = |bench: &mut Bench| bench.endpoint.connect(bench.now, other, STREAM, None);
    assert_eq!(attempt(&mut bench), Err(ConnectError::TooMany));
    bench.offered_from(77);
    bench.hear(packet(Op::Rst));
    assert_eq!(bench.events(), [Event::Closed { id, reason: CloseReason::Refused }]);
    assert!(attempt(&mut bench).is_ok());
}

impl Bench {
    fn offered_from(&mut self, port: u32) {
        self.hear(Header { src: Address::new(3, port), ..packet(Op::Request) });
        assert!(matches!(self.events()[..], [Event::Offered { .. }]));
    }
}

#[test]
fn replies_beyond_the_limit_are_dropped_and_counted() {
    let mut bench = Bench::with(Limits { max_replies: 10, ..Limits::default() });
    for _ in 0..25 {
        bench.hear(packet(Op::Rw));
    }
    assert!(!bench.endpoint.accepts_packets());
    assert_eq!((bench.ops().len(), bench.endpoint.stats().replies_dropped), (10, 15));
    assert!(bench.endpoint.accepts_packets());
}

#[test]
fn connections_that_come_and_go_unheard_leave_nothing_behind() {
    let mut bench = Bench::new();
    for _ in 0..10_000 {
        bench.hear(packet(Op::Request));
        let Event::Offered { id, .. } = bench.events()[0] else { panic!() };
        bench.endpoint.accept(id);
        bench.hear(packet(Op::Rst));
        bench.events();
    }
    assert!(!bench.endpoint.has_packet());
    let text = alloc::format!("{:?}", bench.endpoint);
    assert!(text.len() < 20_000, "{} bytes of leftovers", text.len());
}

#[test]
fn stale_ids_are_harmless() {
    let (mut bench, old) = Bench::open();
    bench.hear(packet(Op::Rst));
    bench.events();
    let new = bench.offered();
    bench.endpoint.accept(new);
    bench.ops();
    bench.endpoint.accept(old);
    bench.endpoint.refuse(old);
    bench.endpoint.reset(old);
    bench.endpoint.close(bench.now, old);
    bench.endpoint.shut_down(bench.now, old, Shutdown::BOTH);
    bench.endpoint.consumed(old, 1, 1);
    bench.endpoint.wants_to_send(bench.now, old);
    bench.endpoint.set_buf_alloc(old, 1);
    assert_eq!(bench.endpoint.data_header(old, 1, 0), None);
    assert_eq!(bench.endpoint.window(old), Window::default());
    assert_eq!((bench.ops(), bench.events(), bench.state(new)), (Vec::new(), Vec::new(), "open"));
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
fn trap_29_changed_buffer_is_told_at_once() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.set_buf_alloc(id, BUFFER);
    assert_eq!(bench.ops(), []);
    bench.endpoint.set_buf_alloc(id, 1 << 20);
    let update = bench.packets()[0];
    assert_eq!((update.op, update.buf_alloc), (Op::CreditUpdate.to_wire(), 1 << 20));
}

#[test]
fn speakers_take_turns() {
    let mut bench = Bench::new();
    let mut ids = Vec::new();
    for port in 0..3 {
        bench.hear(Header { src: Address::new(3, port), ..packet(Op::Request) });
    }
    for event in bench.events() {
        let Event::Offered { id, .. } = event else { panic!() };
        bench.endpoint.accept(id);
        bench.endpoint.shut_down(bench.now, id, Shutdown::SEND);
        ids.push(id);
    }
    let order: Vec<_> = bench.packets().iter().map(|packet| packet.dst_port).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn info_says_what_happened() {
    let (mut bench, id) = Bench::open();
    assert_eq!(bench.receive(rw(100)), Received::Data(id));
    assert!(bench.endpoint.data_header(id, 30, 0).is_some());
    bench.endpoint.consumed(id, 40, 0);
    let info = bench.endpoint.info(id).unwrap();
    assert_eq!((info.key, info.kind, info.state), (KEY, STREAM, "open"));
    assert_eq!((info.bytes_in, info.packets_in, info.bytes_out, info.packets_out), (100, 1, 30, 1));
    assert_eq!((info.unread, info.credit, info.opened_at), (60, BUFFER - 30, T0));
    let stats = bench.endpoint.stats();
    assert!(stats.named().any(|counter| counter == ("bytes_in", 100)));
    assert!(stats.named().any(|counter| counter == ("connections", 1)));
}
