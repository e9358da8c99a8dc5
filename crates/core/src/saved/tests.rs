//! Saved state that cannot be is not restored: each test saves what lives, spoils one thing, and
//! names what is found.

use super::*;
use crate::connection::SavedConnection;
use crate::endpoint::SavedEndpoint;
use crate::relay::state::State as FlowState;
use crate::relay::{SavedFlow, SavedRelay};
use crate::state::State;
use crate::{
    Address, ConnectionId, Endpoint, Event, FlowKey, Header, Limits, Op, Ports, Relay, RelayLimits,
    Shutdown, SocketType, Verdict,
};

const NOW: Instant = Instant(1_000_000);
const LATER: Instant = Instant(7);
const PEER: Address = Address::new(3, 1024);
const OURS: Address = Address::new(2, 22);
const OTHER: Address = Address::new(4, 5000);

fn packet(src: Address, dst: Address, op: Op) -> Header {
    let key = FlowKey { ours: src, theirs: dst };
    Header { buf_alloc: 65536, ..Header::outbound(key, SocketType::Stream, op) }
}

/// An endpoint with an open connection that has sent and received, and one that is offered.
fn endpoint() -> (Endpoint, ConnectionId) {
    let mut endpoint = Endpoint::new(Limits::default(), 1);
    let _ = endpoint.receive(NOW, &packet(PEER, OURS, Op::Request));
    let Some(Event::Offered { id, .. }) = endpoint.next_event() else { panic!() };
    endpoint.accept(id);
    while endpoint.next_packet().is_some() {}
    let _ = endpoint.receive(NOW, &Header { len: 100, ..packet(PEER, OURS, Op::Rw) });
    assert!(endpoint.data_header(id, 500, 0).is_some());
    let _ = endpoint.receive(NOW, &packet(Address::new(3, 1025), OURS, Op::Request));
    (endpoint, id)
}

fn spoiled(spoil: impl FnOnce(&mut SavedEndpoint)) -> Option<Unfit> {
    let mut saved = endpoint().0.save(NOW);
    spoil(&mut saved);
    Endpoint::restore(saved, Limits::default(), 2, LATER).err()
}

/// The connection that is open.
fn first(saved: &mut SavedEndpoint) -> &mut SavedConnection {
    saved.connections[0].1.as_mut().unwrap()
}

#[test]
fn endpoint_goes_on_under_another_clock() {
    let (mut before, id) = endpoint();
    before.wants_to_send(NOW, id);
    let mut after = Endpoint::restore(before.save(NOW), Limits::default(), 2, LATER).unwrap();
    assert_eq!(after.next_event(), before.next_event());
    let (there, here) = (before.info(id).unwrap(), after.info(id).unwrap());
    assert_eq!(
        (there.bytes_in, there.bytes_out, there.credit),
        (here.bytes_in, here.bytes_out, here.credit)
    );
    assert_eq!(after.window(id), before.window(id));
    // The offer times out when it would have, and the connection still has its addresses.
    let waits = before.deadline().unwrap().since(NOW);
    assert_eq!(after.deadline(), Some(LATER + waits));
    let data = Header { len: 1, fwd_cnt: 500, ..packet(PEER, OURS, Op::Rw) };
    assert_eq!(after.receive(LATER, &data), before.receive(NOW, &data));
}

#[test]
fn endpoint_as_saved_is_restored() {
    assert_eq!(spoiled(|_| {}), None);
}

#[test]
fn endpoint_that_cannot_be_is_not_restored() {
    let credit = Some(Unfit::Credit);
    assert_eq!(spoiled(|it| first(it).inbound.consumed = 101), credit);
    assert_eq!(spoiled(|it| first(it).inbound.told = 1), credit);
    assert_eq!(spoiled(|it| first(it).inbound.edge = 99), credit);
    assert_eq!(spoiled(|it| first(it).inbound.buf_alloc = u32::MAX), credit);
    assert_eq!(spoiled(|it| first(it).outbound.ours = u32::MAX), credit);
    assert_eq!(spoiled(|it| first(it).outbound.flight.acked = 501), credit);
    assert_eq!(spoiled(|it| first(it).outbound.flight.marks[0].0 = 501), credit);
    assert_eq!(spoiled(|it| first(it).outbound.flight.marks[0].1 = 0), credit);
    assert_eq!(spoiled(|it| first(it).outbound.flight.marks.clear()), credit);
    assert_eq!(spoiled(|it| first(it).outbound.flight.marks = alloc::vec![(500, 1); 17]), credit);
    assert_eq!(spoiled(|it| first(it).outbound.flight.empty = (501, 1)), credit);
    let state = Some(Unfit::State);
    assert_eq!(spoiled(|it| first(it).state = State::Closed), state);
    assert_eq!(spoiled(|it| first(it).kind = SocketType::Datagram), state);
    assert_eq!(spoiled(|it| first(it).is_stalled = true), state);
    assert_eq!(spoiled(|it| first(it).state = State::Connecting { ours: Shutdown::NONE }), state);
    assert_eq!(spoiled(|it| first(it).state = State::Closing { theirs: Shutdown::BOTH }), state);
    let queue = Some(Unfit::Queue);
    assert_eq!(spoiled(|it| first(it).due = 32), queue);
    assert_eq!(spoiled(|it| first(it).due = 16), queue);
    assert_eq!(spoiled(|it| first(it).due = 4), queue, "it has to stand in the queue");
    assert_eq!(spoiled(|it| first(it).shutdown = Shutdown::SEND), queue);
    let id = endpoint().1;
    assert_eq!(spoiled(|it| it.speakers = alloc::vec![id, id]), queue);
    assert_eq!(
        spoiled(|it| it.speakers = alloc::vec![ConnectionId::from_bits(99).unwrap()]),
        queue
    );
    let many = Some(Unfit::TooMany);
    assert_eq!(spoiled(|it| it.stats.bytes_in = u64::MAX), many);
    assert_eq!(spoiled(|it| first(it).packets[1] = u64::MAX), many);
    let nobody = ConnectionId::from_bits(u64::from(u32::MAX)).unwrap();
    assert_eq!(spoiled(|it| it.events.push(Event::Connected { id: nobody })), queue);
    let slots = Some(Unfit::Slots);
    assert_eq!(spoiled(|it| it.connections[1].0 = 0), slots);
    let twice = |it: &mut SavedEndpoint| it.connections.push(it.connections[0].clone());
    assert_eq!(spoiled(twice), Some(Unfit::Address));
}

#[test]
fn endpoint_beyond_the_limits_is_not_restored() {
    let saved = endpoint().0.save(NOW);
    let few = [
        Limits { max_connections: 1, ..Limits::default() },
        Limits { max_half_open: 0, ..Limits::default() },
    ];
    for limits in few {
        assert_eq!(Endpoint::restore(saved.clone(), limits, 2, NOW).err(), Some(Unfit::TooMany));
    }
    let reply = packet(PEER, OURS, Op::Rst).raw();
    let saved = SavedEndpoint { replies: alloc::vec![reply; 257], ..saved };
    assert_eq!(Endpoint::restore(saved, Limits::default(), 2, NOW).err(), Some(Unfit::TooMany));
}

/// A relay with an open flow that has passed data, and one that is asked for.
fn relay() -> Relay {
    let mut relay = Relay::new(RelayLimits::default(), 1);
    let asked = Address::new(3, 1025);
    for header in [
        packet(PEER, OTHER, Op::Request),
        packet(OTHER, PEER, Op::Response),
        Header { len: 100, ..packet(PEER, OTHER, Op::Rw) },
        packet(asked, OTHER, Op::Request),
    ] {
        assert!(matches!(relay.receive(NOW, &header, || Ok(())), Verdict::Forward(_)));
    }
    let _ = relay.receive(NOW, &packet(PEER, Address::new(4, 9), Op::Rw), || Ok(()));
    relay
}

fn spoiled_relay(spoil: impl FnOnce(&mut SavedRelay)) -> Option<Unfit> {
    let mut saved = relay().save(NOW);
    spoil(&mut saved);
    Relay::restore(saved, RelayLimits::default(), 2, LATER).err()
}

fn flow(saved: &mut SavedRelay) -> &mut SavedFlow {
    saved.flows[0].1.as_mut().unwrap()
}

#[test]
fn relay_that_cannot_be_is_not_restored() {
    assert_eq!(spoiled_relay(|_| {}), None);
    assert_eq!(spoiled_relay(|it| flow(it).state = FlowState::Closed), Some(Unfit::State));
    let closing = FlowState::Open { is_proved: true, shut: [Shutdown::BOTH, Shutdown::NONE] };
    assert_eq!(spoiled_relay(|it| flow(it).state = closing), Some(Unfit::State));
    assert_eq!(spoiled_relay(|it| flow(it).kind = SocketType::Datagram), Some(Unfit::State));
    assert_eq!(spoiled_relay(|it| flow(it).grant = u32::MAX), Some(Unfit::Credit));
    assert_eq!(spoiled_relay(|it| flow(it).ways[0].edge = 99), Some(Unfit::Credit));
    assert_eq!(spoiled_relay(|it| flow(it).ways[1].announced = u32::MAX), Some(Unfit::Credit));
    assert_eq!(spoiled_relay(|it| flow(it).source.cid = OTHER.cid), Some(Unfit::Address));
    let twice = |it: &mut SavedRelay| it.flows.push(it.flows[0].clone());
    assert_eq!(spoiled_relay(twice), Some(Unfit::Address));
    let listed_twice = |it: &mut SavedRelay| it.ready.push(it.ready[0]);
    assert_eq!(spoiled_relay(listed_twice), Some(Unfit::Queue));
    let replies = |it: &mut SavedRelay| {
        let reply = it.guests[0].replies[0];
        it.guests[0].replies = alloc::vec![reply; 257];
    };
    assert_eq!(spoiled_relay(replies), Some(Unfit::TooMany));
    let limits = RelayLimits { max_half_open_per_guest: 0, ..RelayLimits::default() };
    let restored = Relay::restore(relay().save(NOW), limits, 2, NOW);
    assert_eq!(restored.err(), Some(Unfit::TooMany));
}

#[test]
fn relay_goes_on_under_another_clock() {
    let mut relay = Relay::restore(relay().save(NOW), RelayLimits::default(), 2, LATER).unwrap();
    assert_eq!(relay.deadline(), Some(LATER + Duration::from_secs(30)));
    let more = Header { len: 7, ..packet(PEER, OTHER, Op::Rw) };
    assert!(matches!(relay.receive(LATER, &more, || unreachable!()), Verdict::Forward(_)));
    relay.expire(LATER + Duration::from_secs(30));
    assert_eq!((relay.flows().count(), relay.stats().timeouts), (1, 1));
    assert_eq!(relay.next_ready(), Some(PEER.cid));
}

#[test]
fn ports_are_bound_as_before() {
    let mut ports = Ports::new(OURS.cid, 5);
    let gone = ports.bind(Address::new(2, 7000)).unwrap();
    let listens = ports.bind(Address::new(u32::MAX, 5000)).unwrap();
    ports.listen(listens, SocketType::Stream, 3).unwrap();
    assert!(ports.admit(listens));
    ports.release(gone);
    let saved = ports.save();
    let mut restored = Ports::restore(saved.clone()).unwrap();
    assert_eq!(restored.save(), saved);
    assert_eq!(restored.lookup(Address::new(2, 5000)), ports.lookup(Address::new(2, 5000)));
    assert_eq!(restored.address(gone), None);
    let next = restored.bind(Address::new(2, 7001)).unwrap();
    assert_ne!(next, gone, "a stale binding stays stale");
    let mut twice = saved.clone();
    twice.bound.push(twice.bound[1]);
    assert_eq!(Ports::restore(twice).err(), Some(Unfit::Address));
    let mut datagrams = saved;
    datagrams.bound[1].1.as_mut().unwrap().listening = Some((SocketType::Datagram, 1, 0));
    assert_eq!(Ports::restore(datagrams).err(), Some(Unfit::State));
}
