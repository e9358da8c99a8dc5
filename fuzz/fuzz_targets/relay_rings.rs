//! Invariant: whatever two guests say to each other and the host over sound rings, with as few buffers as they like, and
//! whatever they write into their memory meanwhile, the switch does not panic, has nothing left to do after a bounded number of
//! rounds, keeps no more than its limits for either, and tells each guest only what is meant for it.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use vsock_core::RawHeader;
use vsock_guest_memory::slice::{Slices, copy_in, copy_out};
use vsock_guest_memory::{GuestMemory, MemoryPolicy};
use vsock_node::fuzzing::Switch;
use vsock_virtio::link::Link;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::vhost_user::{Change, Detach, QueueStart};

#[derive(Debug, Arbitrary)]
enum Step {
    Packet(Packet),
    /// A flow between the guests, if nothing stands against it.
    Open(bool, u8),
    /// A guest takes so many packets, and gives their buffers back.
    Take(bool, u8),
    /// Both serve and take, so often.
    Run(u8),
    /// Anything, anywhere: the rings are no longer sound.
    Spoil(bool, u16, Vec<u8>),
    /// A guest's front end leaves, and another comes with new memory.
    Again(bool, bool, u8),
    Serve,
    Wait(u16),
}

#[derive(Debug, Arbitrary)]
struct Packet {
    guest: bool,
    to: u8,
    ports: u8,
    op: u8,
    flags: u8,
    credit: u32,
    fwd_cnt: u32,
    len: u16,
    /// The header says another length.
    lie: u32,
    /// What is wrong with it, mostly nothing.
    odd: u8,
    times: u8,
}

/// Operations, those more often that carry much.
const OPS: [u16; 12] = [5, 5, 5, 1, 2, 3, 4, 6, 7, 5, 0, 8];

struct Guest {
    link: Link,
    file: File,
    len: u64,
    is_sound: bool,
    is_broken: bool,
    cid: u64,
}

fn signal() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

impl Guest {
    fn attach(switch: &mut Switch, number: usize, few: bool, buffers: u8) -> Self {
        let options = DriverOptions {
            rx_buffers: if few { u16::from(buffers % 8) + 1 } else { 64 },
            rx_payload: 1024 << (buffers % 4),
            tx_buffers: 64,
            tx_payload: 65536,
            split_header: buffers & 128 != 0,
        };
        let mut driver = DriverLink::new(&options).unwrap();
        let region = driver.region();
        let (len, file) = (region.len, File::from(region.file.try_clone_to_owned().unwrap()));
        let memory = vec![region.to_region().unwrap()];
        let memory = GuestMemory::map(memory, MemoryPolicy::RequireSeals).unwrap();
        for index in 0..3 {
            let config = driver.queue_config(index).unwrap();
            let (kick, call) = (signal(), signal());
            let both = |fd: &OwnedFd| fd.try_clone().unwrap();
            let start = QueueStart {
                index,
                memory: memory.clone(),
                config,
                kick: both(&kick),
                call: Some(both(&call)),
            };
            switch.apply(number, Change::StartQueue(start));
            driver.connect(index, kick, call).unwrap();
        }
        let (link, cid) = (Link::Driver(driver), 3 + number as u64);
        Self { link, file, len, is_sound: true, is_broken: false, cid }
    }

    fn send(&mut self, header: &RawHeader, len: u16) {
        let mut slices = Slices::new();
        if self.is_broken {
            return;
        }
        match self.link.next_buffer(&mut slices) {
            Ok(Some(buffer)) => {
                let payload = vec![b'x'; len.into()];
                let len = copy_in(&slices[buffer.payload.clone()], &payload) as u32;
                self.link.send(&buffer, &slices, &header.encode(), len);
                self.is_broken = self.link.publish().is_err();
            }
            Ok(None) => {}
            Err(_) => self.is_broken = true,
        }
        assert!(!self.is_broken || !self.is_sound);
    }

    fn take(&mut self, most: u8, all_sound: bool) {
        let mut taken = 0;
        while taken < usize::from(most) && !self.is_broken {
            let mut slices = Slices::new();
            match self.link.next_inbound(&mut slices) {
                Ok(Some(inbound)) => {
                    let header = RawHeader::parse(&inbound.header);
                    let mut payload = vec![0; inbound.payload_len as usize];
                    copy_out(&slices[inbound.payload.clone()], &mut payload);
                    if self.is_sound {
                        assert_eq!(header.dst_cid, self.cid, "{header:?}");
                        assert_eq!(header.len, inbound.payload_len, "{header:?}");
                    }
                    assert!(!all_sound || payload.iter().all(|&byte| byte == b'x'));
                    self.link.finish_inbound(inbound.token);
                    taken += 1;
                }
                Ok(None) => break,
                Err(_) => self.is_broken = true,
            }
        }
        assert!(!self.is_broken || !self.is_sound, "the device broke a sound ring");
        self.is_broken |= !self.is_broken && self.link.publish().is_err();
    }
}

struct World {
    switch: Switch,
    guests: [Guest; 2],
    /// A guest has written to its memory as it likes, so that its payload is anything.
    was_spoiled: bool,
}

impl World {
    fn packet(&mut self, packet: &Packet) {
        let guest = &mut self.guests[usize::from(packet.guest)];
        let other = 7 - guest.cid;
        let is_odd = |bit: u8| packet.odd > 0xc0 && packet.odd & bit != 0;
        // The same flow, whoever sends, and of the same kind.
        let mut ports = [packet.ports & 1, 2 | packet.ports >> 4 & 1];
        if packet.guest {
            ports.reverse();
        }
        let header = RawHeader {
            src_cid: if is_odd(1) { other } else { guest.cid },
            dst_cid: [other, other, other, other, other, 2, guest.cid, 99]
                [usize::from(packet.to % 8)],
            src_port: ports[0].into(),
            dst_port: ports[1].into(),
            len: if is_odd(2) { packet.lie } else { packet.len.into() },
            kind: 1 + u16::from((packet.ports & 1 != 0) != is_odd(4)),
            op: OPS[usize::from(packet.op % 12)],
            flags: packet.flags.into(),
            buf_alloc: if packet.credit & 1 == 0 { 1 << 18 } else { packet.credit },
            fwd_cnt: packet.fwd_cnt,
        };
        (0..packet.times % 32 + 1).for_each(|_| guest.send(&header, packet.len));
    }

    fn open(&mut self, from: bool, ports: u8) {
        // REQUEST, RESPONSE.
        for (op, guest) in [(3, from), (4, !from)] {
            let packet = Packet {
                guest,
                to: 0,
                ports,
                op,
                flags: 0,
                credit: 1 << 18,
                fwd_cnt: 0,
                len: 0,
                lie: 0,
                odd: 0,
                times: 0,
            };
            self.packet(&packet);
            self.serve();
        }
    }

    fn serve(&mut self) {
        self.switch.serve();
        self.switch.check();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Packet(packet) => self.packet(&packet),
            Step::Open(from, ports) => self.open(from, ports),
            Step::Take(guest, most) => {
                let all_sound = !self.was_spoiled;
                self.guests[usize::from(guest)].take(most, all_sound);
            }
            Step::Run(times) => {
                for _ in 0..times % 16 {
                    self.serve();
                    let all_sound = !self.was_spoiled;
                    self.guests.iter_mut().for_each(|guest| guest.take(u8::MAX, all_sound));
                }
            }
            Step::Spoil(guest, at, bytes) => {
                self.was_spoiled = true;
                let guest = &mut self.guests[usize::from(guest)];
                guest.is_sound = false;
                let at = u64::from(at).min(guest.len);
                let len = bytes.len().min((guest.len - at) as usize);
                guest.file.write_all_at(&bytes[..len], at).unwrap();
            }
            Step::Again(guest, few, buffers) => {
                let number = usize::from(guest);
                self.switch.apply(number, Change::Detached(Detach::Disconnected));
                self.guests[number] = Guest::attach(&mut self.switch, number, few, buffers);
            }
            Step::Serve => self.serve(),
            Step::Wait(millis) => self.switch.wait(Duration::from_millis(millis.into())),
        }
    }
}

fuzz_target!(|input: (u8, u8, Vec<Step>)| {
    let (few, buffers, steps) = input;
    let mut switch = Switch::new();
    let guests =
        [0, 1].map(|number| Guest::attach(&mut switch, number, few >> number & 1 != 0, buffers));
    let mut world = World { switch, guests, was_spoiled: false };
    for step in steps {
        world.step(step);
    }
    world.serve();
    for guest in 0..2 {
        world.switch.apply(guest, Change::Detached(Detach::Disconnected));
        world.switch.remove(guest);
    }
    world.serve();
    assert_eq!(world.switch.connections(), 0, "something is left");
});
