//! An interface whose link has a rate: what is over it waits where it is, and goes on when the rate allows it.

use vsock_core::CloseReason;

use super::*;

const RATE: u64 = 100_000;

/// What a link that was quiet may move at once: 100 ms.
const BURST: usize = 10_000;

fn limited() -> (Ends, ConnectionId, ConnectionId) {
    let mut ends = Ends::new();
    let (ours, theirs) = ends.open(SocketType::Stream, 1024);
    ends.host.set_rate(RATE);
    (ends, ours, theirs)
}

fn turn(ends: &mut Ends, now: Instant, budget: Budget) -> (Drained, Sent) {
    let Ends { host, on_host, scratch, .. } = ends;
    host.disarm();
    let drained = host.receive(now, &mut budget.clone(), scratch, on_host).unwrap();
    let sent = host.transmit(now, &mut budget.clone(), scratch, on_host).unwrap();
    host.publish().unwrap();
    (drained, sent)
}

#[test]
fn bytes_of_the_guest_stay_in_its_ring_until_the_rate_allows_them() {
    let (mut ends, ours, theirs) = limited();
    // Two packets, the second of which is more than the burst has left.
    for part in [4_000, 40_000] {
        ends.send_from_guest(theirs, &data(part));
        ends.guest_sends();
    }
    ends.send_from_guest(theirs, b"later");
    ends.guest_sends();
    let first = turn(&mut ends, NOW, Budget::new(LONG));
    assert_eq!(first, (Drained::Budget, Sent::All));
    assert_eq!(ends.on_host.got[&ours].len(), 44_000);
    let second = turn(&mut ends, NOW, Budget::new(LONG));
    assert_eq!(second, (Drained::Limited, Sent::All));
    assert!(!ends.host.has_more(second.0, second.1, true), "it does not turn round and round");
    assert!(!ends.host.arm() && !ends.host.has_news(), "packets in the ring are no news");

    let opens = ends.host.deadline(NOW).unwrap();
    let owed = 44_000 - BURST as u64;
    assert!((340..350).contains(&opens.since(NOW).as_millis()), "{owed} bytes are owed");
    assert_eq!(turn(&mut ends, opens, Budget::new(LONG)).0, Drained::Empty);
    assert_eq!(ends.on_host.got[&ours].len(), 44_005);
}

#[test]
fn bytes_of_programs_stay_with_them_until_the_rate_allows_them() {
    let (mut ends, ours, theirs) = limited();
    let (other, their_other) = ends.open(SocketType::Stream, 1025);
    let reset = Event::Closed { id: their_other, reason: CloseReason::Reset };
    ends.on_host.to_send.insert(ours, data(12_000));
    ends.host.update(NOW, ours, Update::sends(Sends::More));
    assert_eq!(turn(&mut ends, NOW, Budget::new(LONG)).1, Sent::Budget);
    assert_eq!(ends.on_host.to_send[&ours].len(), 12_000 - BURST);
    let (drained, sent) = turn(&mut ends, NOW, Budget::new(LONG));
    assert_eq!(sent, Sent::Limited);
    assert!(!ends.host.has_more(drained, sent, true), "it does not turn round and round");
    ends.host.endpoint_mut().reset(other);
    assert_eq!(turn(&mut ends, NOW, Budget::new(LONG)).1, Sent::Limited);
    ends.guest_takes();
    assert_eq!(ends.guest.next_event().unwrap(), reset, "a control packet does not wait");
    let mut now = NOW;
    while !ends.on_host.to_send[&ours].is_empty() {
        now = ends.host.deadline(now).unwrap();
        turn(&mut ends, now, Budget::new(LONG));
    }
    assert!((20..22).contains(&now.since(NOW).as_millis()), "2,000 bytes at this rate");
    ends.guest_takes();
    assert!(ends.on_guest.got[&theirs] == data(12_000));
}

#[test]
fn rest_before_a_ring_is_stopped_does_not_wait() {
    let (mut ends, ours, theirs) = limited();
    ends.send_from_guest(theirs, &data(50_000));
    ends.guest_sends();
    turn(&mut ends, NOW, Budget::new(LONG));
    ends.send_from_guest(theirs, &data(5_000));
    ends.guest_sends();
    ends.on_host.to_send.insert(ours, data(30_000));
    ends.host.update(NOW, ours, Update::sends(Sends::More));
    let rest = turn(&mut ends, NOW, Budget::of_rest(LONG));
    assert_eq!(rest, (Drained::Empty, Sent::All));
    assert_eq!(ends.on_host.got[&ours].len(), 55_000);
    assert!(ends.on_host.to_send[&ours].is_empty());
}
