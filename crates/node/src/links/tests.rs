//! Interfaces against each other, without sockets, threads or a clock.

mod between;
mod rate;

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use vsock_core::{
    Address, Cid, ConnectionId, Duration, EOM, EOR, Endpoint, Event, FlowKey, Header, Instant,
    Limits, Op, Port, Shutdown, SocketType,
};

use super::*;
use vsock_guest_memory::slice::{self, Slice, Slices};
use vsock_guest_memory::{GuestMemory, MemoryPolicy};
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::saved::{Fds, SavedFds};
use vsock_virtio::spec::QUEUE_COUNT;

const HOST: Cid = Cid::HOST;
const GUEST: Cid = Cid(3);
const NOW: Instant = Instant(1);

/// A turn that is long enough for anything here.
const LONG: usize = 1 << 20;

fn at(cid: Cid, port: u32) -> Address {
    Address { cid, port: Port(port) }
}

/// Both ends of a link over one memory: ours as the device of a guest, and the guest's.
fn pair(options: &DriverOptions) -> (Interface, Interface) {
    let signal = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let both = |fd: &OwnedFd| fd.try_clone().unwrap();
    let mut driver = DriverLink::new(options).unwrap();
    let region = driver.region().to_region().unwrap();
    let memory = GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).unwrap();
    let mut device = DeviceLink::new();
    for queue in 0..QUEUE_COUNT {
        let config = driver.queue_config(queue).unwrap();
        let (kick, call) = (signal(), signal());
        device.start_queue(queue, &memory, &config, both(&kick), Some(both(&call))).unwrap();
        driver.connect(queue, kick, call).unwrap();
    }
    let (device, driver) = (Link::Device(device), Link::Driver(driver));
    let host = Interface::new(device, Role::Guest(GUEST), HOST, Limits::default(), 1);
    let guest = Interface::new(driver, Role::Uplink, GUEST, Limits::default(), 2);
    (host, guest)
}

/// Programs that are played by hand.
#[derive(Default)]
struct Users {
    got: HashMap<ConnectionId, Vec<u8>>,
    /// How payload was handed over: bytes, packets, and what ended there.
    handed: Vec<(usize, u32, End)>,
    to_send: HashMap<ConnectionId, Vec<u8>>,
    /// Flags of the last packet of what is to be sent, if it is a message.
    message: Option<u32>,
    /// Whose turns there were.
    turns: Vec<ConnectionId>,
    /// Takes no byte, but accepts all.
    takes_nothing: bool,
    fails: bool,
    /// The time of every turn is over when it is looked at, which is counted.
    has_no_time: bool,
    looks: Cell<usize>,
    foreign: Vec<Header>,
    spoofed: Vec<u64>,
}

impl Sink for Users {
    fn payload(&mut self, id: ConnectionId, payload: Payload<'_>) -> Result<Update, MemoryDead> {
        if self.fails {
            return Ok(Update::sends(Sends::Failed));
        }
        let len = slice::total(payload.pieces);
        let got = self.got.entry(id).or_default();
        let before = got.len();
        got.resize(before + len, 0);
        slice::copy_out(payload.pieces, &mut got[before..]);
        self.handed.push((len, payload.packets, payload.end));
        let bytes = if self.takes_nothing { 0 } else { u32::try_from(len).unwrap() };
        let packets = if self.takes_nothing { 0 } else { payload.packets };
        Ok(Update { bytes, packets, ..Update::default() })
    }

    fn is_over(&self) -> bool {
        self.looks.set(self.looks.get() + 1);
        self.has_no_time
    }

    fn foreign(&mut self, packet: &Foreign<'_>) -> bool {
        self.foreign.push(*packet.header);
        packet.header.dst.port == Port(77)
    }

    fn spoofed(&mut self, source: u64) {
        self.spoofed.push(source);
    }
}

impl Source for Users {
    fn is_over(&self) -> bool {
        Sink::is_over(self)
    }

    fn next(&mut self, id: ConnectionId, _: &Endpoint) -> Offer {
        self.turns.push(id);
        match (self.to_send.get(&id).map_or(0, Vec::len), self.message) {
            (0, _) => Offer::Nothing(Update::default()),
            (len, Some(flags)) => Offer::Message { len, flags },
            (_, None) => Offer::Bytes,
        }
    }

    fn fill(&mut self, id: ConnectionId, pieces: &[Slice]) -> Result<Filled, MemoryDead> {
        let data = self.to_send.get_mut(&id).unwrap();
        let bytes = slice::copy_in(pieces, data);
        data.drain(..bytes);
        let sends = if data.is_empty() { Sends::Nothing } else { Sends::More };
        Ok(Filled { bytes, update: Update::sends(sends) })
    }

    fn stalled(&mut self, _: ConnectionId) -> Update {
        Update::default()
    }
}

/// Two ends of a link, with their users.
struct Ends {
    host: Interface,
    guest: Interface,
    on_host: Users,
    on_guest: Users,
    scratch: Scratch,
}

impl Ends {
    fn new() -> Self {
        Self::with(&DriverOptions::default())
    }

    fn with(options: &DriverOptions) -> Self {
        let (host, guest) = pair(options);
        let (on_host, on_guest) = (Users::default(), Users::default());
        Self { host, guest, on_host, on_guest, scratch: Scratch::default() }
    }

    fn guest_sends(&mut self) -> Sent {
        let mut budget = Budget::new(LONG);
        self.guest.disarm();
        let sent =
            self.guest.transmit(NOW, &mut budget, &mut self.scratch, &mut self.on_guest).unwrap();
        self.guest.publish().unwrap();
        sent
    }

    fn host_sends(&mut self) -> Sent {
        let mut budget = Budget::new(LONG);
        self.host.disarm();
        let sent =
            self.host.transmit(NOW, &mut budget, &mut self.scratch, &mut self.on_host).unwrap();
        self.host.publish().unwrap();
        sent
    }

    fn host_takes(&mut self) -> Drained {
        let mut budget = Budget::new(LONG);
        let drained =
            self.host.receive(NOW, &mut budget, &mut self.scratch, &mut self.on_host).unwrap();
        self.host.publish().unwrap();
        drained
    }

    fn guest_takes(&mut self) -> Drained {
        let mut budget = Budget::new(LONG);
        let drained =
            self.guest.receive(NOW, &mut budget, &mut self.scratch, &mut self.on_guest).unwrap();
        self.guest.publish().unwrap();
        drained
    }

    /// Another interface goes on where the host's was, with the same memory.
    fn hand_over(&mut self) {
        let Link::Driver(driver) = self.guest.link() else { panic!() };
        let region = driver.region().to_region().unwrap();
        let memory = GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).unwrap();
        let mut list = SavedFds::new();
        let saved = self.host.save(NOW, &mut list).unwrap();
        let mut fds = Fds::new(list.duplicate().unwrap());
        let SavedLink::Device(device) = &saved.link else { panic!() };
        let device = DeviceLink::restore(device.clone(), Some(&memory), &mut fds).unwrap();
        let (link, at) = (Link::Device(device), (Role::Guest(GUEST), HOST));
        self.host = Interface::restore((saved, link), at, 3, NOW).unwrap();
    }

    /// A connection that the guest opens to a port of the host; both ids.
    fn open(&mut self, kind: SocketType, from: u32) -> (ConnectionId, ConnectionId) {
        let key = FlowKey { ours: at(GUEST, from), theirs: at(HOST, 5000) };
        let theirs = self.guest.endpoint_mut().connect(NOW, key, kind, None).unwrap();
        self.guest_sends();
        self.host_takes();
        let Some(Event::Offered { id: ours, .. }) = self.host.next_event() else { panic!() };
        self.host.endpoint_mut().accept(ours);
        self.host_sends();
        assert_eq!(self.guest_takes(), Drained::Event);
        assert_eq!(self.guest.next_event(), Some(Event::Connected { id: theirs }));
        (ours, theirs)
    }

    fn send_from_guest(&mut self, id: ConnectionId, data: &[u8]) {
        self.on_guest.to_send.entry(id).or_default().extend_from_slice(data);
        self.guest.update(NOW, id, Update::sends(Sends::More));
    }
}

fn data(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

#[test]
fn bytes_of_an_open_connection_arrive_in_one_piece_and_are_counted_once() {
    let mut ends = Ends::new();
    let (ours, theirs) = ends.open(SocketType::Stream, 1024);
    let before = ends.host.traffic();
    ends.send_from_guest(theirs, &data(100_000));
    assert_eq!(ends.guest_sends(), Sent::All);
    assert_eq!(ends.host_takes(), Drained::Empty);
    assert!(ends.on_host.got[&ours] == data(100_000));
    let (len, packets, end) = ends.on_host.handed[0];
    assert_eq!((ends.on_host.handed.len(), len, end), (1, 100_000, End::None));
    let traffic = ends.host.traffic();
    assert_eq!(traffic.packets_in - before.packets_in, u64::from(packets));
    assert_eq!(traffic.bytes_in - before.bytes_in, 100_000);
    assert_eq!(ends.guest.traffic().bytes_out, 100_000);
}

#[test]
fn response_with_data_right_behind_it_is_an_event_first() {
    let mut ends = Ends::new();
    let key = FlowKey { ours: at(HOST, 1024), theirs: at(GUEST, 22) };
    let ours = ends.host.endpoint_mut().connect(NOW, key, SocketType::Stream, None).unwrap();
    ends.host_sends();
    ends.guest_takes();
    let Some(Event::Offered { id: theirs, .. }) = ends.guest.next_event() else { panic!() };
    ends.guest.endpoint_mut().accept(theirs);
    ends.send_from_guest(theirs, b"at once");
    ends.guest_sends();
    assert_eq!(ends.host_takes(), Drained::Event);
    assert!(ends.on_host.got.is_empty());
    assert_eq!(ends.host.next_event(), Some(Event::Connected { id: ours }));
    assert_eq!(ends.host_takes(), Drained::Empty);
    assert_eq!(ends.on_host.got[&ours], b"at once");
}

#[test]
fn interface_goes_on_where_another_was_in_the_midst_of_both_directions() {
    let options = DriverOptions { rx_buffers: 4, rx_payload: 1000, ..DriverOptions::default() };
    let mut ends = Ends::with(&options);
    let (ours, theirs) = ends.open(SocketType::Stream, 1024);
    ends.send_from_guest(theirs, &data(100_000));
    ends.on_host.to_send.insert(ours, data(100_000));
    ends.host.update(NOW, ours, Update::sends(Sends::More));
    let has_all = |users: &Users, id| users.got.get(&id).is_some_and(|got| got.len() == 100_000);
    let mut times_full = 0;
    while !has_all(&ends.on_host, ours) || !has_all(&ends.on_guest, theirs) {
        ends.hand_over();
        times_full += u32::from(ends.host_sends() == Sent::Full);
        ends.hand_over();
        ends.guest_takes();
        ends.guest_sends();
        ends.hand_over();
        ends.host_takes();
    }
    assert!(times_full > 10, "its turn is kept while there is no room");
    assert!(ends.on_host.got[&ours] == data(100_000));
    assert!(ends.on_guest.got[&theirs] == data(100_000));
    assert_eq!(ends.host.traffic().bytes_out, 100_000);
}

#[test]
fn turn_ends_with_its_budget_both_ways() {
    let mut ends = Ends::new();
    let (_, theirs) = ends.open(SocketType::Stream, 1024);
    ends.send_from_guest(theirs, &data(60_000));
    let mut budget = Budget::new(30_000);
    let Ends { guest, on_guest, scratch, .. } = &mut ends;
    assert_eq!(guest.transmit(NOW, &mut budget, scratch, on_guest).unwrap(), Sent::Budget);
    assert_eq!(on_guest.to_send[&theirs].len(), 30_000);
    assert_eq!(ends.guest_sends(), Sent::All);
    let mut budget = Budget::new(1);
    let Ends { host, on_host, scratch, .. } = &mut ends;
    assert_eq!(host.receive(NOW, &mut budget, scratch, on_host).unwrap(), Drained::Budget);
    assert_eq!(on_host.handed.len(), 1);
    assert_eq!(ends.host_takes(), Drained::Empty);
}

#[test]
fn turn_ends_when_its_time_is_over_both_ways_and_nothing_is_lost() {
    let options = DriverOptions { tx_payload: 200, ..DriverOptions::default() };
    let mut ends = Ends::with(&options);
    let (ours, theirs) = ends.open(SocketType::Stream, 1024);
    let (_, other) = ends.open(SocketType::Stream, 1025);
    ends.on_guest.turns.clear();
    ends.on_guest.has_no_time = true;
    ends.send_from_guest(theirs, &data(30_000));
    ends.send_from_guest(other, b"more");
    assert_eq!(ends.guest_sends(), Sent::Budget);
    assert_eq!(ends.on_guest.turns, [theirs], "the other connection has its own in the next turn");

    ends.on_guest.has_no_time = false;
    ends.guest_sends();
    ends.on_host.has_no_time = true;
    let (mut turns, mut before) = (0, 0);
    while ends.host_takes() == Drained::Budget {
        turns += 1;
        let got = ends.on_host.got.get(&ours).map_or(0, Vec::len);
        assert!((before..before + 3_000).contains(&got), "{before}, then {got}");
        before = got;
    }
    assert!(turns > 1, "{turns}");
    ends.on_host.has_no_time = false;
    for _ in 0..60 {
        ends.guest_sends();
        ends.host_takes();
        ends.host_sends();
        ends.guest_takes();
    }
    assert_eq!(ends.on_host.got[&ours].len(), 30_000);
    assert!(ends.on_host.got[&ours] == data(30_000));
}

#[test]
fn time_is_looked_at_once_for_many_packets_of_one_connection() {
    let options = DriverOptions { tx_payload: 1000, ..DriverOptions::default() };
    let mut ends = Ends::with(&options);
    let (_, theirs) = ends.open(SocketType::Stream, 1024);
    ends.on_host.looks.set(0);
    let before = ends.host.traffic().packets_in;
    ends.send_from_guest(theirs, &data(60_000));
    ends.guest_sends();
    ends.host_takes();
    let packets = usize::try_from(ends.host.traffic().packets_in - before).unwrap();
    assert!(packets > 8 && ends.on_host.looks.get() <= 2 + packets / 8, "{packets} packets");
}

#[test]
fn connections_with_much_to_send_take_turns() {
    let mut ends = Ends::new();
    let (_, one) = ends.open(SocketType::Stream, 1024);
    let (_, other) = ends.open(SocketType::Stream, 1025);
    ends.on_guest.turns.clear();
    ends.send_from_guest(one, &data(150_000));
    ends.send_from_guest(other, &data(150_000));
    ends.guest_sends();
    assert_eq!(ends.on_guest.turns[..4], [one, other, one, other]);
}

#[test]
fn message_longer_than_a_buffer_goes_in_parts_of_which_the_last_ends_it() {
    let options = DriverOptions { tx_payload: 1000, ..DriverOptions::default() };
    let mut ends = Ends::with(&options);
    let (ours, theirs) = ends.open(SocketType::SeqPacket, 1024);
    ends.on_guest.message = Some(EOM | EOR);
    ends.send_from_guest(theirs, &data(2500));
    assert_eq!(ends.guest_sends(), Sent::All);
    ends.host_takes();
    assert!(ends.on_host.got[&ours] == data(2500));
    assert_eq!(ends.on_host.handed, [(2500, 3, End::Record)]);
}

#[test]
fn user_that_takes_nothing_stops_its_sender_until_it_does() {
    let mut ends = Ends::new();
    let (ours, theirs) = ends.open(SocketType::Stream, 1024);
    ends.on_host.takes_nothing = true;
    ends.send_from_guest(theirs, &data(300_000));
    for _ in 0..8 {
        ends.guest_sends();
        ends.host_takes();
    }
    let window = Limits::default().buf_alloc as usize;
    assert_eq!(ends.on_host.got[&ours].len(), window);
    assert_eq!(ends.guest.next_event(), None);
    let bytes = u32::try_from(window).unwrap();
    ends.host.update(NOW, ours, Update { bytes, packets: 64, ..Update::default() });
    ends.host_sends();
    ends.guest_takes();
    assert_eq!(ends.guest.next_event(), Some(Event::Writable { id: theirs }));
    ends.guest.update(NOW, theirs, Update::sends(Sends::More));
    ends.guest_sends();
    ends.host_takes();
    assert!(ends.on_host.got[&ours] == data(300_000));
}

#[test]
fn full_ring_keeps_the_place_of_whose_turn_it_was() {
    let options = DriverOptions { tx_buffers: 4, tx_payload: 1000, ..DriverOptions::default() };
    let mut ends = Ends::with(&options);
    let (ours, theirs) = ends.open(SocketType::Stream, 1024);
    let (_, other) = ends.open(SocketType::Stream, 1025);
    ends.on_guest.turns.clear();
    ends.send_from_guest(theirs, &data(9000));
    ends.send_from_guest(other, b"x");
    let mut turns = 0;
    while ends.guest_sends() == Sent::Full {
        ends.host_takes();
        ends.guest_takes();
        turns += 1;
        assert!(turns < 100);
    }
    ends.host_takes();
    assert!(ends.on_host.got[&ours] == data(9000));
    assert_eq!(ends.on_guest.to_send[&other].len(), 0);
}

#[test]
fn user_that_fails_resets_its_connection_and_no_other() {
    let mut ends = Ends::new();
    let (_, theirs) = ends.open(SocketType::Stream, 1024);
    let (_, other) = ends.open(SocketType::Stream, 1025);
    ends.on_host.fails = true;
    ends.send_from_guest(theirs, b"x");
    ends.guest_sends();
    ends.host_takes();
    ends.host_sends();
    ends.guest_takes();
    assert!(matches!(ends.guest.next_event(), Some(Event::Closed { id, .. }) if id == theirs));
    assert!(ends.guest.endpoint().info(other).is_some());
    assert_eq!(ends.host.endpoint().connections().count(), 1);
}

#[test]
fn end_of_data_and_close_are_told_to_the_other_side() {
    let mut ends = Ends::new();
    let (ours, theirs) = ends.open(SocketType::Stream, 1024);
    ends.guest.update(NOW, theirs, Update::sends(Sends::Ended));
    ends.guest_sends();
    ends.host_takes();
    let flags = Shutdown::SEND;
    assert_eq!(ends.host.next_event(), Some(Event::TheirsShutDown { id: ours, flags }));
    ends.host.update(NOW, ours, Update { stops_receiving: true, ..Update::default() });
    ends.host.update(NOW, ours, Update::sends(Sends::Closed));
    for _ in 0..2 {
        ends.host_sends();
        ends.guest_takes();
        ends.guest_sends();
        ends.host_takes();
    }
    assert_eq!(ends.host.endpoint().connections().count(), 0);
    assert_eq!(ends.guest.endpoint().connections().count(), 0);
}

/// Sends a packet that no endpoint would.
fn send_raw(interface: &mut Interface, header: &Header) {
    let mut slices = Slices::new();
    let buffer = interface.link_mut().next_buffer(&mut slices).unwrap().unwrap();
    interface.link_mut().send(&buffer, &slices, &header.encode(), header.len);
    interface.publish().unwrap();
}

fn request(src: Address, dst: Address) -> Header {
    Header::outbound(FlowKey { ours: src, theirs: dst }, SocketType::Stream, Op::Request)
}

#[test]
fn packet_from_a_cid_that_is_not_its_senders_is_dropped_without_an_answer() {
    let mut ends = Ends::new();
    send_raw(&mut ends.guest, &request(at(Cid(4), 1), at(HOST, 5000)));
    ends.host_takes();
    assert_eq!((ends.on_host.spoofed.as_slice(), ends.host.drops().spoofed), ([4].as_slice(), 1));
    assert!(ends.host.is_idle() && ends.host.next_event().is_none());
}

#[test]
fn packet_for_somebody_else_is_refused_only_where_nobody_takes_it() {
    let mut ends = Ends::new();
    send_raw(&mut ends.guest, &request(at(GUEST, 1), at(Cid(4), 77)));
    ends.host_takes();
    assert!(ends.on_host.foreign.len() == 1 && ends.host.is_idle());
    send_raw(&mut ends.guest, &request(at(GUEST, 1), at(Cid(4), 78)));
    ends.host_takes();
    assert_eq!((ends.on_host.foreign.len(), ends.host.drops().unroutable), (2, 1));
    let answer = ends.host.endpoint_mut().next_packet().unwrap();
    assert_eq!((answer.op, answer.src_cid, answer.dst_cid), (Op::Rst.to_wire(), 4, 3));
}

#[test]
fn host_is_reached_by_its_aliases_too() {
    let mut ends = Ends::new();
    ends.host.filter_mut().set_aliases(vec![Cid(9)]);
    send_raw(&mut ends.guest, &request(at(GUEST, 1), at(Cid(9), 5000)));
    ends.host_takes();
    let Some(Event::Offered { key, .. }) = ends.host.next_event() else { panic!() };
    assert_eq!(key.ours, at(Cid(9), 5000));
}

#[test]
fn guest_that_does_not_know_its_new_cid_is_meant_by_the_old_one() {
    use super::filter::FormerCid;
    let mut ends = Ends::new();
    ends.host.filter_mut().set_cid(Cid(4), Some(FormerCid::Meant(GUEST)));
    send_raw(&mut ends.guest, &request(at(GUEST, 1), at(HOST, 5000)));
    ends.host_takes();
    let Some(Event::Offered { key, .. }) = ends.host.next_event() else { panic!() };
    assert_eq!(key.theirs, at(Cid(4), 1));
    ends.host.filter_mut().set_cid(Cid(5), Some(FormerCid::Dropped(Cid(4))));
    send_raw(&mut ends.guest, &request(at(Cid(4), 2), at(HOST, 5000)));
    ends.host_takes();
    assert_eq!((ends.host.drops().late, ends.host.next_event()), (1, None));
}

#[test]
fn full_endpoint_leaves_packets_in_the_ring_until_its_answers_are_out() {
    let options = DriverOptions { rx_buffers: 4, ..DriverOptions::default() };
    let mut ends = Ends::with(&options);
    let nobody = FlowKey { ours: at(GUEST, 1), theirs: at(HOST, 1) };
    let stray = Header::outbound(nobody, SocketType::Stream, Op::CreditUpdate);
    let mut drained = Drained::Empty;
    for _ in 0..Limits::default().max_replies + 5 {
        send_raw(&mut ends.guest, &stray);
        drained = ends.host_takes();
        assert!(
            drained == Drained::Paused || ends.host_sends() == Sent::Full || ends.host.is_idle()
        );
    }
    assert_eq!((drained, ends.host_sends()), (Drained::Paused, Sent::Full));
    assert!(!ends.host.has_more(drained, Sent::Full, true) && !ends.host.has_news());
    let mut turns = 0;
    while !ends.host.is_idle() {
        ends.guest_takes();
        ends.host_sends();
        turns += 1;
        assert!(turns < 1000);
    }
    assert_eq!(ends.host_takes(), Drained::Empty);
}

#[test]
fn loopback_connects_to_itself_and_never_pauses() {
    let link = Link::Loopback(LoopbackLink::new().unwrap());
    let mut own = Interface::new(link, Role::Loopback, HOST, Limits::default(), 1);
    let (mut users, mut scratch) = (Users::default(), Scratch::default());
    let key = FlowKey { ours: at(Cid::LOCAL, 1024), theirs: at(HOST, 5000) };
    own.endpoint_mut().connect(NOW, key, SocketType::Stream, None).unwrap();
    own.transmit(NOW, &mut Budget::new(LONG), &mut scratch, &mut users).unwrap();
    own.receive(NOW, &mut Budget::new(LONG), &mut scratch, &mut users).unwrap();
    assert!(matches!(own.next_event(), Some(Event::Offered { .. })));
    let later = NOW + Duration::from_secs(60);
    own.endpoint_mut().expire(later);
    assert!(own.next_event().is_some());
}
