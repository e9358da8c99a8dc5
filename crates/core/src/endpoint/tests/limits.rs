//! Strays, limits, and what an endpoint says about itself.

use super::*;

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
    bench.refuse(old);
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
