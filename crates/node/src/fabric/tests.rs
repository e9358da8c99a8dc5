//! A node without threads: the guests are ends of links that are played by hand. Here: a panic in the turn of one link.

mod handshake;

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vsock_core::admission::Admission;
use vsock_core::{
    Address, CloseReason, ConnectionId, Endpoint, Event as Happened, FlowKey, Limits, Port,
    Refusal, SocketType,
};
use vsock_guest_memory::slice;
use vsock_guest_memory::{GuestMemory, MemoryPolicy};
use vsock_sandbox::{Profile, Sandbox};
use vsock_virtio::link::Link;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::spec::QUEUE_COUNT;
use vsock_virtio::sys::PeerCredentials;
use vsock_virtio::vhost_user::QueueStart;

use super::*;
use crate::flows::{Flow, Greeting, Holdings, Parties};
use crate::host::handshake::HYBRID;
use crate::host::program::Socket;
use crate::host::socket::Sockets;
use crate::host::wire::{Report, Request, op, to_wire};
use crate::journal::Journal;
use crate::links::{Budget, Foreign, MemoryDead, Offer, Payload, Role, Sink, Source};
use crate::options::NodeOptions;
use crate::reactor::{Events, Sources};
use vsock_virtio::starter::Starter;

const ALPHA: Cid = Cid(3);
const BETA: Cid = Cid(4);
const LONG: usize = 1 << 20;

/// Where guests refuse connections.
const CLOSED: Port = Port(9);

fn at(cid: Cid, port: u32) -> Address {
    Address { cid, port: Port(port) }
}

/// What the programs of a guest get; they send nothing.
#[derive(Default)]
struct Got(Vec<u8>);

impl Sink for Got {
    fn payload(&mut self, _: ConnectionId, payload: Payload<'_>) -> Result<Update, MemoryDead> {
        let before = self.0.len();
        self.0.resize(before + slice::total(payload.pieces), 0);
        slice::copy_out(payload.pieces, &mut self.0[before..]);
        Ok(Update::default())
    }

    fn foreign(&mut self, _: &Foreign<'_>) -> bool {
        false
    }

    fn spoofed(&mut self, _: u64) {}
}

impl Source for Got {
    fn next(&mut self, _: ConnectionId, _: &Endpoint) -> Offer {
        Offer::Nothing(Update::default())
    }

    fn fill(
        &mut self,
        _: ConnectionId,
        _: &[slice::Slice],
    ) -> Result<crate::links::Filled, MemoryDead> {
        Ok(crate::links::Filled::default())
    }

    fn stalled(&mut self, _: ConnectionId) -> Update {
        Update::default()
    }
}

/// A guest: its end of the link, and what its programs got.
struct Guest {
    interface: Interface,
    got: Got,
    /// Connections of its programs that were closed.
    closed: usize,
}

impl Guest {
    /// Attaches to a link, as a front end does.
    fn attach(fabric: &mut Fabric, link: LinkId, cid: Cid) -> Self {
        let signal = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let both = |fd: &OwnedFd| fd.try_clone().unwrap();
        let mut driver = DriverLink::new(&DriverOptions::default()).unwrap();
        let region = driver.region().to_region().unwrap();
        let memory = GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).unwrap();
        for index in 0..QUEUE_COUNT {
            let config = driver.queue_config(index).unwrap();
            let (kick, call) = (signal(), signal());
            let start = QueueStart {
                index,
                memory: memory.clone(),
                config,
                kick: both(&kick),
                call: Some(both(&call)),
            };
            fabric.apply(link, Change::StartQueue(start));
            driver.connect(index, kick, call).unwrap();
        }
        let (link, limits) = (Link::Driver(driver), Limits::default());
        let interface = Interface::new(link, Role::Uplink, cid, limits, 7);
        Self { interface, got: Got::default(), closed: 0 }
    }

    /// Takes what has come, accepts connections (refuses those to [`CLOSED`]), and sends what there is to say.
    fn run(&mut self, now: Instant) {
        let mut scratch = Scratch::default();
        let budget = || Budget::new(LONG);
        loop {
            let drained =
                self.interface.receive(now, &mut budget(), &mut scratch, &mut self.got).unwrap();
            while let Some(event) = self.interface.next_event() {
                match event {
                    Happened::Offered { id, key, .. } if key.ours.port == CLOSED => {
                        let refused = Admission::default().refuse(Refusal::NoListener);
                        self.interface.endpoint_mut().refuse(id, refused);
                    }
                    Happened::Offered { id, .. } => self.interface.endpoint_mut().accept(id),
                    Happened::Closed { .. } => self.closed += 1,
                    Happened::Connected { .. }
                    | Happened::Writable { .. }
                    | Happened::TheirsShutDown { .. } => {}
                }
            }
            if drained != Drained::Event {
                break;
            }
        }
        self.interface.transmit(now, &mut budget(), &mut scratch, &mut self.got).unwrap();
        self.interface.publish().unwrap();
    }
}

/// Serves programs and links until none has work: a link that took long, on a slow machine, waits for a few rounds.
fn serve_all(fabric: &mut Fabric) {
    let mut rounds = 0;
    while fabric.has_work() {
        fabric.serve_round(Duration::ZERO);
        rounds += 1;
        assert!(rounds < 10_000, "links have work for ever");
    }
}

/// A switch with two guests that may reach each other.
struct Lab {
    fabric: Fabric,
    links: [LinkId; 2],
    guests: [Guest; 2],
}

impl Lab {
    fn new() -> Self {
        let starter = Starter::new(Sandbox::default(), Profile::Helper, "starter").unwrap();
        let sources = Sources::new().unwrap();
        let sockets = Sockets::new(sources.reaper(starter.clone()), NodeOptions::default());
        let cx = Context::new(sources, sockets, Journal::new().unwrap(), starter);
        let mut fabric = Fabric::new(cx, Cid::HOST, LoopbackLink::new().unwrap(), 1);
        let links = [(ALPHA, "alpha"), (BETA, "beta")].map(|(cid, name)| {
            let (name, groups) = (name.to_owned(), vec!["both".to_owned()]);
            let options = GuestOptions { cid: cid.0, name, groups, ..GuestOptions::default() };
            fabric.add_guest(options, None, 1).unwrap()
        });
        let alpha = Guest::attach(&mut fabric, links[0], ALPHA);
        let beta = Guest::attach(&mut fabric, links[1], BETA);
        Self { fabric, links, guests: [alpha, beta] }
    }

    /// Rounds until nothing is left to be done.
    fn run(&mut self) {
        for _ in 0..8 {
            for index in 0..2 {
                self.guests[index].run(self.fabric.cx.now);
                self.fabric.links.activate(self.links[index]);
            }
            serve_all(&mut self.fabric);
        }
    }

    /// A program here asks for a connection with a guest, which has not heard of it yet.
    fn ask(&mut self, index: usize) -> UnixStream {
        let (link, cid) = (self.links[index], [ALPHA, BETA][index]);
        let (ours, program) = UnixStream::pair().unwrap();
        program.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let key = FlowKey { ours: at(Cid::HOST, 1024), theirs: at(cid, 22) };
        let Fabric { cx, links, flows, .. } = &mut self.fabric;
        let id = cx.sources.add(&ours, Owner::Flow).unwrap();
        let interface = links.interface(link).unwrap();
        let endpoint = interface.endpoint_mut();
        let connection = endpoint.connect(cx.now, key, SocketType::Stream, None).unwrap();
        let share = flows.share(interface, connection, 0);
        let peer = PeerCredentials { pid: 7, uid: 0, gid: 0 };
        let parties = Parties::outgoing(key, SocketType::Stream, peer);
        let socket = Socket { uid: 0, cookie: 0 };
        let holdings = Holdings { binding: None, socket, share };
        let connecting = (link, connection);
        flows.begin(
            id,
            Flow::connecting(
                connecting,
                parties,
                holdings,
                Sockets::alone().adopt(ours.into()),
                Greeting::Handshake(&HYBRID),
            ),
        );
        program
    }

    /// The same, and it is told that it is connected.
    fn connect(&mut self, index: usize) -> UnixStream {
        let mut program = self.ask(index);
        self.run();
        hears_ok(&mut program);
        program
    }
}

fn hears_ok(program: &mut UnixStream) {
    let mut greeting = [0; 8];
    program.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"OK 1024\n");
}

#[test]
fn answer_that_is_there_when_its_deadline_is_over_counts_also_of_a_link_whose_turn_is_far() {
    let mut lab = Lab::new();
    let mut programs = [lab.ask(0), lab.ask(1)];
    for link in lab.links {
        lab.fabric.links.activate(link);
    }
    serve_all(&mut lab.fabric);
    for guest in &mut lab.guests {
        guest.run(lab.fabric.cx.now);
    }
    // As after a pause of the machine: all of it is there at once.
    for link in lab.links {
        lab.fabric.links.activate(link);
    }
    lab.fabric.cx.now = lab.fabric.cx.now + Duration::from_secs(3600);
    lab.fabric.expire();
    programs.iter_mut().for_each(hears_ok);
}

#[test]
fn panic_in_the_turn_of_one_link_drops_all_of_it_and_leaves_the_other_guests_going() {
    let mut lab = Lab::new();
    let (mut to_alpha, mut to_beta) = (lab.connect(0), lab.connect(1));
    let key = FlowKey { ours: at(ALPHA, 5000), theirs: at(BETA, 22) };
    let alpha = lab.guests[0].interface.endpoint_mut();
    alpha.connect(Instant(1), key, SocketType::Stream, None).unwrap();
    lab.run();
    assert_eq!(lab.fabric.forwarder.relay().flows().count(), 1);

    lab.fabric.panics_at = Some(lab.links[0]);
    lab.fabric.links.activate(lab.links[0]);
    serve_all(&mut lab.fabric);

    // Nothing of the link is left: its queues, its connections, their programs' sockets, those to other guests.
    let interface = lab.fabric.links.interface(lab.links[0]).unwrap();
    let Link::Device(device) = interface.link() else { panic!() };
    assert!((0..QUEUE_COUNT).all(|queue| !device.is_running(queue)));
    assert_eq!(interface.endpoint().connections().count(), 0);
    assert_eq!(to_alpha.read(&mut [0]).unwrap(), 0);
    assert_eq!(lab.fabric.flows.iter().count(), 1);
    assert_eq!(lab.fabric.forwarder.relay().flows().count(), 0);
    let records = lab.fabric.cx.journal.take();
    let faults: Vec<_> =
        records.iter().filter(|it| matches!(it.event, Event::Fault(LinkFault::Panic))).collect();
    assert_eq!(faults.iter().map(|it| it.about).collect::<Vec<_>>(), [Some(ALPHA)]);

    // The other guest goes on, and hears that its peer is gone.
    to_beta.write_all(b"still here").unwrap();
    let (beta, flow) = (lab.links[1], lab.fabric.flows.iter().next().unwrap().0);
    lab.fabric.dispatch(Readiness::readable(flow));
    serve_all(&mut lab.fabric);
    lab.guests[1].run(lab.fabric.cx.now);
    assert_eq!((lab.guests[1].got.0.as_slice(), lab.guests[1].closed), (&b"still here"[..], 1));
    assert_eq!(lab.fabric.links.get(beta).unwrap().faults(), 0);

    // A front end may attach anew.
    lab.fabric.panics_at = None;
    lab.guests[0] = Guest::attach(&mut lab.fabric, lab.links[0], ALPHA);
    lab.connect(0);
}

/// What happens to connections is carried out only as far as the time of a turn goes, and a program may connect before the
/// rest is.
#[test]
fn flow_hears_its_end_also_if_another_has_the_place_of_its_connection_by_then() {
    let mut lab = Lab::new();
    let mut first = lab.connect(0);
    let interface = lab.fabric.links.interface(lab.links[0]).unwrap();
    let connection = interface.endpoint().connections().next().unwrap().id;
    interface.endpoint_mut().reset(connection);
    assert_eq!(interface.endpoint().connections().count(), 0);

    let (cx, links) = (&mut lab.fabric.cx, &mut lab.fabric.links);
    let (ours, _second) = UnixStream::pair().unwrap();
    let key = FlowKey { ours: at(Cid::HOST, 1025), theirs: at(ALPHA, 22) };
    let id = cx.sources.add(&ours, Owner::Flow).unwrap();
    let interface = links.interface(lab.links[0]).unwrap();
    let another = interface.endpoint_mut().connect(cx.now, key, SocketType::Stream, None).unwrap();
    let share = lab.fabric.flows.share(interface, another, 0);
    let slot = |id: ConnectionId| id.to_bits() & u64::from(u32::MAX);
    assert!(another != connection && slot(another) == slot(connection));
    let peer = PeerCredentials { pid: 7, uid: 0, gid: 0 };
    let parties = Parties::outgoing(key, SocketType::Stream, peer);
    let socket = Socket { uid: 0, cookie: 0 };
    let holdings = Holdings { binding: None, socket, share };
    let at = (lab.links[0], another);
    let flow = Flow::connecting(
        at,
        parties,
        holdings,
        Sockets::alone().adopt(ours.into()),
        Greeting::Reply,
    );
    lab.fabric.flows.begin(id, flow);

    let closed = Happened::Closed { id: connection, reason: CloseReason::Reset };
    lab.fabric.with(lab.links[0], |turn, interface, _| {
        turn.flows.on_event(turn.cx, turn.id, interface, closed)
    });
    first.set_nonblocking(true).unwrap();
    assert!(!matches!(first.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock));
    assert_eq!(lab.fabric.flows.iter().map(|(id, _)| id).collect::<Vec<_>>(), [id]);
}

/// What has happened at descriptors is carried out.
fn hear(fabric: &mut Fabric) {
    let (mut events, mut happened) = (Events::new(), Vec::new());
    fabric.cx.sources.wait(Some(Duration::ZERO), &mut events, &mut happened).unwrap();
    happened.into_iter().for_each(|ready| fabric.dispatch(ready));
    while fabric.has_work() {
        serve_all(fabric);
    }
    fabric.expire();
}

#[test]
fn program_that_says_nothing_or_half_a_request_is_let_go_in_time() {
    let mut fabric = Lab::new().fabric;
    let path = std::env::temp_dir().join(format!("vsock-silent-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    fabric.programs.add_acceptor(&mut fabric.cx, listener, SocketType::Stream).unwrap();
    let mut programs: [_; 3] = std::array::from_fn(|_| UnixStream::connect(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    let mut request = [0; 32];
    (request[0], request[1]) = (1, op::LOCAL_CID);
    programs[1].write_all(&request[..16]).unwrap();
    programs[2].write_all(&request).unwrap();
    hear(&mut fabric);
    programs[2].read_exact(&mut request).unwrap();
    fabric.cx.now = fabric.cx.now + Duration::from_secs(14);
    hear(&mut fabric);
    let is_open = |program: &mut UnixStream| {
        program.set_nonblocking(true).unwrap();
        let read = program.read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    assert!(programs.iter_mut().all(is_open));
    fabric.cx.now = fabric.cx.now + Duration::from_secs(1);
    hear(&mut fabric);
    let [silent, half, speaks] = &mut programs;
    for program in [silent, half] {
        program.set_nonblocking(false).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let read = program.read(&mut [0]);
        assert!(!read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it is let go");
    }
    assert!(is_open(speaks));
}

/// A CONNECT without a bound port, to a port of ALPHA that takes connections.
fn connect_request() -> [u8; 32] {
    let to = to_wire(at(ALPHA, 22));
    let report = Report::Reply;
    Request::Connect { to, is_named: false, timeout_ms: 0, buffer: 0, report, extra: 0 }.encode()
}

#[test]
fn program_that_gives_up_before_or_while_it_connects_is_logged_and_holds_nothing() {
    let mut lab = Lab::new();
    lab.fabric.cx.journal.set_wants_flows(true);
    let path = std::env::temp_dir().join(format!("vsock-gives-up-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let Fabric { cx, programs, .. } = &mut lab.fabric;
    programs.add_acceptor(cx, listener, SocketType::Stream).unwrap();
    let program = || {
        let mut program = UnixStream::connect(&path).unwrap();
        program.write_all(&connect_request()).unwrap();
        program
    };
    // Twice: it is accepted, and then read.
    let logged = |lab: &mut Lab| -> Vec<String> {
        hear(&mut lab.fabric);
        hear(&mut lab.fabric);
        lab.fabric.cx.journal.take().iter().map(ToString::to_string).collect()
    };
    logged(&mut lab);

    drop(program());
    let records = logged(&mut lab);
    lab.guests[0].run(lab.fabric.cx.now);
    let [given_up] = &records[..] else { panic!("{records:?}") };
    assert!(given_up.contains("to=3:22(alpha)"), "{given_up}");
    assert!(given_up.ends_with(": given up already"), "{given_up}");
    assert_eq!(
        lab.guests[0].interface.endpoint().connections().count(),
        0,
        "the guest has heard nothing of it"
    );

    let waits = program();
    assert_eq!(logged(&mut lab), [""; 0]);
    assert_eq!(lab.fabric.flows.iter().count(), 1);
    drop(waits);
    let records = logged(&mut lab);
    let [given_up] = &records[..] else { panic!("{records:?}") };
    assert!(given_up.ends_with(": given up"), "{given_up}");
    assert_eq!(lab.fabric.flows.iter().count(), 0);

    std::fs::remove_file(&path).unwrap();
}

#[test]
fn guest_whose_link_breaks_without_a_front_end_is_detached_as_one_with_a_front_end() {
    let mut lab = Lab::new();
    let _program = lab.connect(0);
    lab.fabric.cx.journal.take();
    lab.fabric.links.report_fault(lab.links[0], LinkFault::MemoryDead);
    lab.fabric.follow_up();
    assert_eq!(lab.fabric.flows.iter().count(), 0);
    let records = lab.fabric.cx.journal.take();
    let kinds: Vec<_> = records.iter().map(|record| record.event.kind().word()).collect();
    assert_eq!(kinds, ["fault", "fault"], "{records:?}");
    assert_eq!(records[1].to_string(), Detach::MemoryDead.to_string());
}
