use super::*;

const STREAM: SocketType = SocketType::Stream;
const SEQPACKET: SocketType = SocketType::SeqPacket;

fn open(kind: SocketType, theirs: u32) -> Outbound {
    let mut window = Outbound::new(kind, 262_144);
    let _ = window.update(theirs, 0);
    window
}

#[test]
fn outbound_unanswered_has_no_window() {
    assert_eq!(Outbound::new(STREAM, 262_144).window().bytes, 0);
}

#[test]
fn trap_06_fwd_cnt_ahead_of_sent_is_ignored() {
    let mut window = open(STREAM, 1000);
    assert!(window.send(400));
    assert_eq!(window.update(1000, 401), Acknowledged::Impossible);
    assert_eq!(window.window().bytes, 600);
    assert_eq!(window.update(1000, 400), Acknowledged::Progress);
    assert_eq!(window.window().bytes, 1000);
}

#[test]
fn trap_06_fwd_cnt_is_free_running_and_wraps() {
    let mut window = open(STREAM, 65536);
    let mut fwd = 0u32;
    for _ in 0..70_000 {
        assert!(window.send(65536));
        assert_eq!(window.window().bytes, 0);
        fwd = fwd.wrapping_add(65536);
        assert_eq!(window.update(65536, fwd), Acknowledged::Progress);
    }
    assert!(fwd < u32::MAX / 8, "the counter went round: {fwd}");
    assert_eq!(window.window(), open(STREAM, 65536).window());
}

#[test]
fn fwd_cnt_that_goes_back_is_late_not_a_loss() {
    let mut window = open(STREAM, 10_000);
    assert!(window.send(400) && window.send(400));
    assert_eq!(window.update(10_000, 800), Acknowledged::Progress);
    assert_eq!(window.update(10_000, 400), Acknowledged::Nothing);
    assert_eq!(window.window().bytes, 10_000);
}

#[test]
fn trap_07_shrunk_buffer_gives_zero_not_gigabytes() {
    let mut window = open(STREAM, 10_000);
    assert!(window.send(8000));
    let _ = window.update(100, 0);
    assert_eq!(window.window().bytes, 0);
    let _ = window.update(100, 7950);
    assert_eq!(window.window().bytes, 50);
}

#[test]
fn trap_07_window_is_capped_by_our_own_buffer() {
    let mut window = Outbound::new(STREAM, 4096);
    let _ = window.update(u32::MAX, 0);
    assert_eq!(window.window().bytes, 4096);
    window.set_ours(8192);
    assert_eq!(window.window().bytes, 8192);
}

#[test]
fn trap_10_small_packets_stop_at_what_the_buffer_bears() {
    for (kind, most) in [(STREAM, 455 - 113), (SEQPACKET, 454)] {
        let mut window = open(kind, 262_144);
        let mut sent = 0;
        while window.window().packets > 0 {
            assert!(window.send(200));
            sent += 1;
        }
        assert_eq!(sent, most);
        assert!(window.window().bytes > 0);
        assert!(!window.send(200), "the budget is not a hint");
        // All of it consumed: all of it free, whatever the marks rounded up.
        let _ = window.update(262_144, sent * 200);
        assert_eq!(window.window().packets, most);
    }
}

#[test]
fn packets_are_freed_by_position_and_never_too_early() {
    let mut window = open(SEQPACKET, 262_144);
    for _ in 0..454 {
        assert!(window.send(10));
    }
    for consumed in 0..=454u32 {
        let _ = window.update(262_144, consumed * 10);
        let free = window.window().packets;
        assert!(free <= consumed, "{free} free after {consumed}");
        assert!(free + 454 / 16 + 1 >= consumed, "{free} free after {consumed}");
    }
}

#[test]
fn tiny_buffer_bears_one_packet() {
    let mut window = open(SEQPACKET, 128);
    assert!(window.send(100));
    assert!(!window.send(28));
    let _ = window.update(128, 100);
    assert!(window.send(28));
}

#[test]
fn empty_packets_are_covered_by_a_later_byte_only() {
    let mut flight = Flight::default();
    flight.record(5, 100);
    flight.record(0, 100);
    flight.record(0, 100);
    assert_eq!(flight.packets(), 3);
    assert_eq!(flight.acknowledge(5), Acknowledged::Progress);
    assert_eq!(flight.packets(), 2);
    flight.record(1, 100);
    assert_eq!(flight.acknowledge(6), Acknowledged::Progress);
    assert_eq!(flight.packets(), 0);
}

fn told(kind: SocketType, buf_alloc: u32) -> Inbound {
    let mut window = Inbound::new(kind, buf_alloc);
    assert_eq!(window.tell(), (buf_alloc, 0));
    window
}

#[test]
fn inbound_beyond_announced_credit_is_refused() {
    let mut window = told(STREAM, 1000);
    assert_eq!(window.receive(1000), Ok(()));
    assert_eq!(window.receive(1), Err(OverCredit));
    window.consume(600, 0);
    assert_eq!(window.receive(1), Err(OverCredit), "consumed, but not announced");
    window.tell();
    assert_eq!(window.receive(600), Ok(()));
    assert_eq!(window.receive(1), Err(OverCredit));
}

#[test]
fn inbound_shrunk_buffer_honours_what_was_announced() {
    let mut window = told(STREAM, 1000);
    window.set_buf_alloc(10);
    window.tell();
    assert_eq!(window.receive(1000), Ok(()));
    window.consume(1000, 0);
    window.tell();
    assert_eq!(window.receive(11), Err(OverCredit));
    assert_eq!(window.receive(10), Ok(()));
}

#[test]
fn inbound_consume_more_than_there_is_takes_what_there_is() {
    let mut window = told(STREAM, 1000);
    assert_eq!(window.receive(10), Ok(()));
    window.consume(u32::MAX, u32::MAX);
    assert_eq!(window.unread(), 0);
    assert_eq!(window.tell(), (1000, 10));
}

#[test]
fn trap_08_update_is_due_when_the_announced_window_runs_low() {
    let mut window = told(STREAM, 262_144);
    for _ in 0..4 {
        assert_eq!(window.receive(65536), Ok(()));
    }
    window.consume(196_608, 0);
    assert!(!window.is_update_due(262_144));
    window.consume(1, 0);
    assert!(window.is_update_due(262_144));
    window.tell();
    assert!(!window.is_update_due(262_144));
}

#[test]
fn trap_08_update_is_due_when_a_blocked_peer_is_drained() {
    // The peer can never have more in flight than its own buffer.
    for theirs in [1, 100, 4096, 65536, 262_144] {
        let mut window = told(STREAM, 262_144);
        assert_eq!(window.receive(theirs), Ok(()));
        window.consume(theirs, 0);
        assert!(window.is_update_due(theirs), "{theirs}");
    }
}

#[test]
fn update_is_due_when_a_peer_out_of_packets_is_drained() {
    let mut window = told(STREAM, 262_144);
    for _ in 0..342 {
        assert_eq!(window.receive(1), Ok(()));
    }
    window.consume(100, 0);
    window.tell();
    window.consume(242, 0);
    assert!(window.is_update_due(262_144));
}

#[test]
fn update_of_few_bytes_waits_unless_the_peer_asked() {
    let mut window = told(STREAM, 262_144);
    assert_eq!(window.receive(1), Ok(()));
    window.consume(1, 0);
    assert!(!window.is_update_due(262_144));
    window.ask();
    assert!(window.is_update_due(262_144));
    window.tell();
    assert_eq!(window.receive(1), Ok(()));
    window.consume(1, 0);
    assert!(!window.is_update_due(262_144), "the question has been answered");
}

#[test]
fn seqpacket_update_is_due_after_every_message() {
    let mut window = told(SEQPACKET, 262_144);
    assert_eq!(window.receive(1), Ok(()));
    assert!(!window.is_update_due(262_144));
    window.consume(1, 1);
    assert!(window.is_update_due(262_144));
}

#[test]
fn trap_10_unread_empty_messages_are_bounded() {
    let mut window = told(SEQPACKET, 262_144);
    for _ in 0..2048 {
        assert_eq!(window.receive(0), Ok(()));
    }
    assert_eq!(window.receive(0), Err(OverCredit));
    window.consume(0, 1);
    assert_eq!(window.receive(0), Ok(()));
}
