//! Invariant: whatever lies in the memory of two guests, wherever their rings are and whenever these start and stop, the
//! device does not panic, has nothing left to do after a bounded number of rounds, and its tables and queues keep to their
//! limits; nothing is left of guests that were removed.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use vsock_core::RawHeader;
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};
use vsock_node::fuzzing::Switch;
use vsock_virtio::queue::{DeviceQueue, QueueConfig};
use vsock_virtio::vhost_user::{Change, Detach, QueueStart};

const BASE: u64 = 0x1000;
const PAGE: u64 = 4096;
const PAGES: u64 = 16;

#[derive(Debug, Arbitrary)]
enum Step {
    /// Other memory of so many pages, in one or two regions; rings stop.
    Memory(bool, u8, bool),
    /// The file shrinks under the device.
    Shrink(bool, u8),
    /// A ring starts, wherever.
    Start {
        guest: bool,
        queue: u8,
        size: u16,
        at: [u16; 3],
        base: u16,
        event_idx: bool,
        call: bool,
    },
    /// All rings start where nothing is in the way of another.
    StartAll(bool, bool),
    Stop(bool, u8),
    Call(bool, u8, bool),
    Features(bool, u64),
    Leave(bool, bool),
    /// Anything, anywhere.
    Write(bool, u16, Vec<u8>),
    /// A chain of any descriptors: address, length, flags.
    Chain(bool, u8, Vec<(u16, u16, u8)>),
    /// So many receive buffers of this length.
    Buffers(bool, u8, u16),
    Packet(Packet),
    Serve,
    Wait(u16),
    Program(u8, Said),
}

#[derive(Debug, Arbitrary)]
struct Packet {
    guest: bool,
    to: u8,
    ports: u8,
    op: u8,
    flags: u8,
    credit: u32,
    fwd_cnt: u16,
    len: u16,
    /// The header says another length.
    lie: u32,
    /// What is wrong with it, mostly nothing.
    odd: u8,
}

#[derive(Debug, Arbitrary)]
enum Said {
    Listen(u8),
    Connect(u8, u8),
    Bytes(Vec<u8>),
    Read,
    Close,
}

/// Operations, those more often that carry much.
const OPS: [u16; 12] = [5, 5, 5, 1, 2, 3, 4, 6, 7, 5, 0, 8];

struct Guest {
    file: File,
    memory: Arc<GuestMemory>,
    rings: [Option<QueueConfig>; 3],
    /// Chains put into each ring.
    put: [u16; 3],
}

fn map(pages: u64, split: bool) -> (File, Arc<GuestMemory>) {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    let len = pages * PAGE;
    ftruncate(&file, len).unwrap();
    let cut = if split && pages > 1 { pages / 2 * PAGE } else { len };
    let mut regions = Vec::new();
    for (offset, len) in [(0, cut), (cut, len - cut)] {
        if len > 0 {
            let guest = BASE + offset;
            let file = file.try_clone().unwrap();
            regions.push(Region { guest, user: (1 << 40) + guest, len, offset, file });
        }
    }
    (file, GuestMemory::map(regions, MemoryPolicy::RecordSeals).unwrap())
}

fn signal() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

struct World {
    switch: Switch,
    guests: [Guest; 2],
    programs: Vec<UnixStream>,
}

impl World {
    fn new() -> Self {
        let guest = || {
            let (file, memory) = map(PAGES, false);
            Guest { file, memory, rings: [None; 3], put: [0; 3] }
        };
        Self { switch: Switch::new(), guests: [guest(), guest()], programs: Vec::new() }
    }

    fn stop(&mut self, guest: usize, queue: usize) {
        if self.guests[guest].rings[queue].take().is_some() {
            self.switch.stop_queue(guest, queue);
        }
    }

    fn start(&mut self, guest: usize, queue: usize, config: QueueConfig, call: bool) {
        let it = &mut self.guests[guest];
        // The control thread tries it, and stops a ring before it starts another.
        if DeviceQueue::new(Arc::clone(&it.memory), &config).is_err() {
            return;
        }
        self.stop(guest, queue);
        let it = &mut self.guests[guest];
        it.rings[queue] = Some(config);
        let memory = Arc::clone(&it.memory);
        let call = call.then(signal);
        let start = QueueStart { index: queue, memory, config, kick: signal(), call };
        self.switch.apply(guest, Change::StartQueue(start));
    }

    /// Makes a chain and puts it into a ring.
    fn put(&mut self, guest: usize, queue: usize, pieces: &[(u64, u32, u16)]) {
        let it = &mut self.guests[guest];
        let Some(config) = it.rings[queue] else { return };
        let write = |at: u64, bytes: &[u8]| {
            let _ = it.file.write_all_at(bytes, at.saturating_sub(BASE));
        };
        let count = pieces.len() as u16;
        let head = it.put[queue].wrapping_mul(count) % config.size;
        for (number, &(address, len, flags)) in pieces.iter().enumerate() {
            let index = head.wrapping_add(number as u16) % config.size;
            let next = index.wrapping_add(1) % config.size;
            let last = number + 1 == pieces.len();
            let flags = if last { flags & !1 } else { flags | 1 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            write(config.desc + u64::from(index) * 16, &bytes);
        }
        let mut index = [0; 2];
        let _ = it.file.read_exact_at(&mut index, config.avail.saturating_sub(BASE) + 2);
        let index = u16::from_le_bytes(index);
        write(config.avail + 4 + u64::from(index % config.size) * 2, &head.to_le_bytes());
        write(config.avail + 2, &index.wrapping_add(1).to_le_bytes());
        it.put[queue] = it.put[queue].wrapping_add(1);
    }

    fn packet(&mut self, packet: &Packet) {
        let guest = usize::from(packet.guest);
        let to = [2, 2, 2, 3, 4, 3, 4, 77][usize::from(packet.to % 8)];
        let is_odd = |bit: u8| packet.odd > 0xc0 && packet.odd & bit != 0;
        let header = RawHeader {
            src_cid: 3 + guest as u64,
            dst_cid: to,
            src_port: (packet.ports & 1).into(),
            dst_port: 1024 + u32::from(packet.ports >> 4 & 1),
            len: if is_odd(1) { packet.lie } else { packet.len.into() },
            kind: if is_odd(2) { 2 } else { 1 },
            op: OPS[usize::from(packet.op % 12)],
            flags: packet.flags.into(),
            buf_alloc: if packet.credit & 1 == 0 { 1 << 18 } else { packet.credit },
            fwd_cnt: packet.fwd_cnt.into(),
        };
        // Behind the rings.
        let at = 4 * PAGE + u64::from(self.guests[guest].put[1] % 64) * 64;
        let _ = self.guests[guest].file.write_all_at(&header.encode(), at);
        let pieces = [(BASE + at, 44, 0), (BASE + 4 * PAGE, packet.len.into(), 0)];
        self.put(guest, 1, if packet.len == 0 { &pieces[..1] } else { &pieces });
    }

    fn program(&mut self, number: u8, said: Said) {
        let number = usize::from(number % 4);
        while self.programs.len() <= number {
            let program = self.switch.program();
            self.programs.push(program);
        }
        let mut request = |op: u8, cid: u32, port: u32, value: u32| {
            let mut bytes = [0; 32];
            (bytes[0], bytes[1]) = (1, op);
            bytes[4..8].copy_from_slice(&cid.to_le_bytes());
            bytes[8..12].copy_from_slice(&port.to_le_bytes());
            bytes[12..16].copy_from_slice(&value.to_le_bytes());
            let _ = self.programs[number].write(&bytes);
        };
        match said {
            Said::Listen(port) => {
                request(1, u32::MAX, 1024 + u32::from(port % 2), 0);
                self.switch.serve();
                let mut request = [0; 32];
                (request[0], request[1], request[12]) = (1, 3, 8);
                let _ = self.programs[number].write(&request);
            }
            Said::Connect(cid, port) => request(2, 2 + u32::from(cid % 4), (port % 8).into(), 100),
            Said::Bytes(bytes) => {
                let _ = self.programs[number].write(&bytes);
            }
            Said::Read => {
                let _ = self.programs[number].read(&mut [0; 8192]);
            }
            Said::Close => drop(self.programs.swap_remove(number)),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Memory(guest, pages, split) => {
                let guest = guest.into();
                (0..3).for_each(|queue| self.stop(guest, queue));
                let (file, memory) = map(u64::from(pages) % PAGES + 1, split);
                (self.guests[guest].file, self.guests[guest].memory) = (file, memory);
            }
            Step::Shrink(guest, pages) => {
                let file = &self.guests[usize::from(guest)].file;
                ftruncate(file, u64::from(pages % 16) * PAGE).unwrap();
            }
            Step::Start { guest, queue, size, at, base, event_idx, call } => {
                let [desc, avail, used] = at.map(|at| BASE + u64::from(at));
                let size = if size > 256 { size } else { 1 << (size % 8) };
                let config = QueueConfig { size, desc, avail, used, base, event_idx };
                self.start(guest.into(), usize::from(queue % 3), config, call);
            }
            Step::StartAll(guest, event_idx) => {
                for queue in 0..3 {
                    let desc = BASE + queue * PAGE;
                    let (avail, used) = (desc + 1024, desc + 2048);
                    let config = QueueConfig { size: 64, desc, avail, used, base: 0, event_idx };
                    self.start(guest.into(), queue as usize, config, true);
                }
            }
            Step::Stop(guest, queue) => self.stop(guest.into(), usize::from(queue % 3)),
            Step::Call(guest, queue, call) => {
                let (guest, index) = (usize::from(guest), usize::from(queue % 3));
                if self.guests[guest].rings[index].is_some() {
                    let call = call.then(signal);
                    self.switch.apply(guest, Change::SetCall { index, call });
                }
            }
            Step::Features(guest, features) => {
                let guest = guest.into();
                (0..3).for_each(|queue| self.stop(guest, queue));
                self.switch.apply(guest, Change::Features(features));
            }
            Step::Leave(guest, reset) => {
                let guest = guest.into();
                let reason = if reset { Detach::Reset } else { Detach::Disconnected };
                self.switch.apply(guest, Change::Detached(reason));
                self.guests[guest].rings = [None; 3];
            }
            Step::Write(guest, at, bytes) => {
                let guest = &self.guests[usize::from(guest)];
                let at = u64::from(at);
                let len = bytes.len().min((PAGES * PAGE - at) as usize);
                let _ = guest.file.write_all_at(&bytes[..len], at);
            }
            Step::Chain(guest, queue, pieces) => {
                let piece = |(at, len, flags): (u16, u16, u8)| {
                    (BASE + u64::from(at), u32::from(len), u16::from(flags & 7))
                };
                let pieces: Vec<_> = pieces.into_iter().map(piece).collect();
                self.put(guest.into(), usize::from(queue % 3), &pieces);
            }
            Step::Buffers(guest, count, len) => {
                for number in 0..u64::from(count % 64) {
                    let at = BASE + 8 * PAGE + number * 256;
                    self.put(guest.into(), 0, &[(at, len.into(), 2)]);
                }
            }
            Step::Packet(packet) => self.packet(&packet),
            Step::Serve => self.serve(),
            Step::Wait(millis) => self.switch.wait(Duration::from_millis(millis.into())),
            Step::Program(number, said) => self.program(number, said),
        }
    }

    fn serve(&mut self) {
        self.switch.serve();
        self.switch.check();
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
    world.serve();
    for guest in 0..2 {
        world.step(Step::Leave(guest == 1, false));
        world.switch.remove(guest);
    }
    world.programs.clear();
    world.serve();
    assert_eq!(world.switch.connections(), 0, "something is left");
});
