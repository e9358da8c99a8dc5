//! Asking, offering, answering.

use super::*;

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
fn trap_19_repeated_request_of_an_unused_connection_is_ignored() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.hear(packet(Op::Request));
    bench.endpoint.accept(id);
    assert_eq!(bench.ops(), [Op::Response]);
    bench.hear(packet(Op::Request));
    assert_eq!((bench.ops(), bench.events(), bench.state(id)), (Vec::new(), Vec::new(), "open"));
}

#[test]
fn trap_20_refused_offer_is_answered_with_reset() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.refuse(id);
    assert_eq!((bench.ops(), bench.events()), (alloc::vec![Op::Rst], Vec::new()));
    assert_eq!((bench.state(id), bench.endpoint.stats().refused), ("gone", 1));
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
fn connecting_answer_to_an_earlier_attempt_is_a_stray() {
    let mut bench = Bench::new();
    let first = bench.connect();
    bench.endpoint.close(bench.now, first);
    bench.events();
    bench.endpoint.connect(bench.now, KEY, STREAM, None).unwrap();
    bench.hear(packet(Op::Response));
    assert_eq!((bench.ops(), bench.events()), (alloc::vec![Op::Rst, Op::Request], Vec::new()));
}

#[test]
fn accepted_payload_before_response_has_left_breaks_it() {
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.endpoint.accept(id);
    bench.hear(rw(1));
    bench.assert_over(id, CloseReason::ProtocolError, &[Op::Rst]);
}

#[test]
fn open_second_response_ends_it() {
    let mut bench = Bench::new();
    let id = bench.connect();
    bench.hear(packet(Op::Response));
    bench.events();
    bench.hear(packet(Op::Response));
    bench.assert_over(id, CloseReason::ProtocolError, &[Op::Rst]);
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
fn attempt_goes_on_when_the_other_side_starts_over_and_asks_again() {
    let mut bench = Bench::new();
    let id = bench.connect();
    bench.endpoint.start_over();
    assert_eq!((bench.events(), bench.ops()), (Vec::new(), [Op::Request].to_vec()));
    bench.hear(packet(Op::Response));
    assert_eq!(bench.events(), [Event::Connected { id }]);
    // An attempt that nobody has heard of yet is asked once, and one that nobody answers ends in time.
    let mut bench = Bench::new();
    let id = bench.endpoint.connect(bench.now, KEY, STREAM, None).unwrap();
    bench.endpoint.start_over();
    bench.endpoint.start_over();
    assert_eq!(bench.ops(), [Op::Request]);
    bench.wait(Duration::from_secs(2));
    bench.assert_over(id, CloseReason::TimedOut, &[]);
}

#[test]
fn connection_ends_when_the_other_side_starts_over_and_nothing_is_sent() {
    let (mut bench, id) = Bench::open();
    bench.endpoint.shut_down(bench.now, id, Shutdown::SEND);
    bench.endpoint.start_over();
    bench.assert_over(id, CloseReason::LinkGone, &[]);
    let mut bench = Bench::new();
    let id = bench.offered();
    bench.endpoint.start_over();
    bench.assert_over(id, CloseReason::LinkGone, &[]);
}
