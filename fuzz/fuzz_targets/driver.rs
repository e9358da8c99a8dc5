//! Invariant: whatever a device writes into the memory and the rings of a userspace guest, the guest does not panic, takes
//! packets only from its own buffers, no more at a time than it has, and none any more once a ring broke the rules; its
//! connections keep to their limits.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use vsock_core::{
    Address, Cid, ConnectionId, Endpoint, Event, FlowKey, Instant, Limits, RawHeader, SocketType,
};
use vsock_guest_memory::slice::{Slice, copy_in, copy_out, total};
use vsock_node::links::{
    Budget, Drained, Filled, Interface, MemoryDead, Offer, Payload, Role, Scratch, Sends, Sink,
    Source, Update,
};
use vsock_virtio::link::Link;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::queue::QueueConfig;

const CID: Cid = Cid(3);
const BUFFERS: u16 = 16;
const PAYLOAD: u32 = 4096;
const LONG: usize = 1 << 20;

#[derive(Debug, Arbitrary)]
enum Step {
    /// Anything, anywhere.
    Write(u16, Vec<u8>),
    /// Anything in the used ring, counted from its start.
    Used(u8, u8, Vec<u8>),
    /// A chain comes back, perhaps none of those on offer, and so many bytes are said to be in it.
    Use(u8, Option<u32>, u32),
    Packet(Packet),
    Event(u32),
    Connect(u8, bool),
    Send(u8, u16),
    Close(u8),
    Run,
    Arm,
    Wait(u16),
}

#[derive(Debug, Arbitrary)]
struct Packet {
    from: u8,
    ports: u8,
    op: u8,
    seqpacket: bool,
    flags: u8,
    credit: u32,
    fwd_cnt: u32,
    len: u16,
    lie: Option<u32>,
}

/// The programs of the guest.
#[derive(Default)]
struct Programs {
    to_send: HashMap<ConnectionId, usize>,
    known: Vec<ConnectionId>,
}

impl Sink for Programs {
    fn payload(&mut self, _: ConnectionId, payload: Payload<'_>) -> Result<Update, MemoryDead> {
        let len = total(payload.pieces);
        assert!(len <= payload.packets as usize * PAYLOAD as usize, "more than its buffers hold");
        // Reads every byte: outside the mapping, this is the end.
        let mut bytes = vec![0; len];
        copy_out(payload.pieces, &mut bytes);
        Ok(Update { bytes: len as u32, packets: payload.packets, ..Update::default() })
    }
}

impl Source for Programs {
    fn next(&mut self, id: ConnectionId, _: &Endpoint) -> Offer {
        match self.to_send.get(&id) {
            Some(1..) => Offer::Bytes,
            _ => Offer::Nothing(Update::default()),
        }
    }

    fn fill(&mut self, id: ConnectionId, pieces: &[Slice]) -> Result<Filled, MemoryDead> {
        let left = self.to_send.entry(id).or_default();
        let bytes = copy_in(pieces, &vec![7; *left]);
        *left -= bytes;
        let sends = if *left == 0 { Sends::Nothing } else { Sends::More };
        Ok(Filled { bytes, update: Update::sends(sends) })
    }

    fn stalled(&mut self, _: ConnectionId) -> Update {
        Update::default()
    }
}

struct World {
    guest: Interface,
    programs: Programs,
    scratch: Scratch,
    now: Instant,
    is_broken: bool,
    /// The device's end.
    file: File,
    base: u64,
    len: u64,
    rings: [QueueConfig; 3],
    /// Chains that the device has given back.
    used: [u16; 3],
}

impl World {
    fn new(split_header: bool, event_idx: bool) -> Self {
        let options = DriverOptions {
            rx_buffers: BUFFERS,
            rx_payload: PAYLOAD,
            tx_buffers: BUFFERS,
            tx_payload: PAYLOAD,
            split_header,
        };
        let mut driver = DriverLink::new(&options).unwrap();
        driver.set_event_idx(event_idx);
        let region = driver.region();
        let (base, len) = (region.guest, region.len);
        let file = File::from(region.file.try_clone_to_owned().unwrap());
        let signal =
            || -> OwnedFd { eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap() };
        let rings = [0, 1, 2].map(|queue| driver.queue_config(queue).unwrap());
        (0..3).for_each(|queue| driver.connect(queue, signal(), signal()).unwrap());
        let link = Link::Driver(driver);
        Self {
            guest: Interface::new(link, Role::Uplink, CID, Limits::default(), 7),
            programs: Programs::default(),
            scratch: Scratch::default(),
            now: Instant(1),
            is_broken: false,
            file,
            base,
            len,
            rings,
            used: [0; 3],
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let at = at.saturating_sub(self.base).min(self.len);
        let len = bytes.len().min((self.len - at) as usize);
        self.file.write_all_at(&bytes[..len], at).unwrap();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let at = at.saturating_sub(self.base).min(self.len - N as u64);
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Gives back the next chain on offer, or another; where its buffer is.
    fn give_back(&mut self, queue: usize, head: Option<u32>, len: u32) {
        let config = self.rings[queue];
        let slot = u64::from(self.used[queue] % config.size);
        let next = u16::from_le_bytes(self.read(config.avail + 4 + slot * 2));
        let head = head.unwrap_or(next.into());
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&head.to_le_bytes());
        entry[4..].copy_from_slice(&len.to_le_bytes());
        self.write(config.used + 4 + slot * 8, &entry);
        self.used[queue] = self.used[queue].wrapping_add(1);
        self.write(config.used + 2, &self.used[queue].to_le_bytes());
    }

    /// Writes into the first buffer of the chain that comes next.
    fn fill(&self, queue: usize, bytes: &[u8]) {
        let config = self.rings[queue];
        let slot = u64::from(self.used[queue] % config.size);
        let head = u16::from_le_bytes(self.read(config.avail + 4 + slot * 2));
        let at = u64::from_le_bytes(self.read(config.desc + u64::from(head % config.size) * 16));
        self.write(at, bytes);
    }

    fn id(&self, number: u8) -> Option<ConnectionId> {
        let known = &self.programs.known;
        (!known.is_empty()).then(|| known[usize::from(number) % known.len()])
    }

    fn run(&mut self) {
        if self.is_broken {
            return;
        }
        let before = self.guest.traffic();
        let Self { guest, programs, scratch, now, .. } = self;
        let mut turns = 0;
        let run = (|| {
            loop {
                let taken = guest.receive(*now, &mut Budget::new(LONG), scratch, programs)?;
                while let Some(event) = guest.next_event() {
                    match event {
                        Event::Offered { id, .. } => {
                            guest.endpoint_mut().accept(id);
                            programs.known.push(id);
                        }
                        Event::Closed { id, .. } => {
                            programs.known.retain(|known| *known != id);
                            programs.to_send.remove(&id);
                        }
                        Event::Connected { .. }
                        | Event::Writable { .. }
                        | Event::TheirsShutDown { .. } => {}
                    }
                }
                turns += 1;
                assert!(turns < 1000, "events without end");
                if taken != Drained::Event {
                    break;
                }
            }
            guest.transmit(*now, &mut Budget::new(LONG), scratch, programs)?;
            guest.take_link_events()?;
            guest.publish()
        })();
        self.is_broken = run.is_err();
        let endpoint = self.guest.endpoint();
        let count = endpoint.connections().count();
        assert!(count <= Limits::default().max_connections);
        assert_eq!(count as u64, endpoint.stats().connections);
        let traffic = self.guest.traffic();
        // What the device has given back since; what is offered anew in this run, it has not seen.
        assert!(traffic.packets_in - before.packets_in <= BUFFERS.into(), "{traffic:?}");
        assert!(traffic.packets_out - before.packets_out <= BUFFERS.into(), "{traffic:?}");
        let (packets, bytes) = (traffic.packets_out, traffic.bytes_out);
        assert!(bytes <= packets * u64::from(PAYLOAD), "{traffic:?}");
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(at, bytes) => self.write(self.base + u64::from(at), &bytes),
            Step::Used(queue, at, bytes) => {
                self.write(self.rings[usize::from(queue % 3)].used + u64::from(at), &bytes);
            }
            Step::Use(queue, head, len) => self.give_back(usize::from(queue % 3), head, len),
            Step::Packet(packet) => {
                let header = RawHeader {
                    src_cid: [2, 4, 3, 99][usize::from(packet.from % 4)],
                    dst_cid: CID.0.into(),
                    src_port: (packet.ports & 7).into(),
                    dst_port: 1024 + u32::from(packet.ports >> 4 & 7),
                    len: packet.lie.unwrap_or((packet.len % 4096).into()),
                    kind: if packet.seqpacket { 2 } else { 1 },
                    op: (packet.op % 9).into(),
                    flags: packet.flags.into(),
                    buf_alloc: packet.credit,
                    fwd_cnt: packet.fwd_cnt,
                };
                self.fill(0, &header.encode());
                // The ring lies as the header does, or does not.
                let agrees = packet.from & 128 != 0;
                let len = if agrees { header.len % 65536 } else { (packet.len % 4096).into() };
                self.give_back(0, None, 44 + len);
            }
            Step::Event(id) => {
                self.fill(2, &id.to_le_bytes());
                self.give_back(2, None, 4);
            }
            Step::Connect(port, seqpacket) => {
                let ours = Address::new(CID.0, 1024 + u32::from(port % 8));
                let key = FlowKey { ours, theirs: Address::new(2, (port >> 4 & 7).into()) };
                let kind = if seqpacket { SocketType::SeqPacket } else { SocketType::Stream };
                if let Ok(id) = self.guest.endpoint_mut().connect(self.now, key, kind, None) {
                    self.programs.known.push(id);
                }
            }
            Step::Send(number, len) => {
                if let Some(id) = self.id(number) {
                    *self.programs.to_send.entry(id).or_default() += usize::from(len);
                    self.guest.update(self.now, id, Update::sends(Sends::More));
                }
            }
            Step::Close(number) => {
                if let Some(id) = self.id(number) {
                    self.programs.to_send.remove(&id);
                    self.guest.update(self.now, id, Update::sends(Sends::Closed));
                }
            }
            Step::Run => self.run(),
            Step::Arm => {
                if !self.is_broken {
                    self.guest.arm();
                    self.guest.disarm();
                }
            }
            Step::Wait(millis) => {
                self.now = self.now + Duration::from_millis(millis.into());
                self.guest.endpoint_mut().expire(self.now);
            }
        }
    }
}

fuzz_target!(|input: (bool, bool, Vec<Step>)| {
    let (split_header, event_idx, steps) = input;
    let mut world = World::new(split_header, event_idx);
    for step in steps {
        world.step(step);
    }
    world.run();
});
