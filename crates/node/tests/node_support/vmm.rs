//! A VMM whose front end is not ours (the `vhost` crate's, which Cloud Hypervisor has), with a driver that a test plays.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vsock_core::{Op, RawHeader};
use vsock_guest_memory::slice::{Slices, copy_in, copy_out};
use vsock_node::node::{GuestOptions, Node};
use vsock_virtio::link::Link;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::queue::QueueConfig;
use vsock_virtio::spec::F_VERSION_1;
use vsock_virtio::spec::QUEUE_COUNT;

use super::{DEADLINE, Directory, Listener, connect, pattern};

pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
pub(crate) const CID: u32 = 3;

/// The driver in the guest, each of whose packets is the test's.
pub(crate) struct Driver(pub(crate) Link);

impl Driver {
    /// Puts a packet into the ring, waiting for room; the device need not know yet.
    pub(crate) fn queue(&mut self, header: &RawHeader, payload: &[u8]) {
        let (mut slices, deadline) = (Slices::new(), Instant::now() + DEADLINE);
        let header = RawHeader { len: u32::try_from(payload.len()).unwrap(), ..*header };
        let buffer = loop {
            match self.0.next_buffer(&mut slices).unwrap() {
                Some(buffer) => break buffer,
                None => self.publish(),
            }
            assert!(Instant::now() < deadline, "the device takes nothing");
        };
        copy_in(&slices[buffer.payload.clone()], payload);
        self.0.send(&buffer, &slices, &header.encode(), header.len);
    }

    pub(crate) fn send(&mut self, header: &RawHeader, payload: &[u8]) {
        self.queue(header, payload);
        self.publish();
    }

    pub(crate) fn publish(&mut self) {
        self.0.publish().unwrap();
        self.0.arm();
    }

    /// The next packet with this operation; others and events are taken on the way.
    pub(crate) fn expect(&mut self, op: Op) -> (RawHeader, Vec<u8>) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut slices = Slices::new();
            if let Some(inbound) = self.0.next_inbound(&mut slices).unwrap() {
                let mut payload = vec![0; inbound.payload_len as usize];
                copy_out(&slices[inbound.payload], &mut payload);
                self.0.finish_inbound(inbound.token);
                self.publish();
                let header = RawHeader::parse(&inbound.header);
                if Op::from_wire(header.op) == op {
                    return (header, payload);
                }
            }
            if let Link::Driver(driver) = &mut self.0
                && driver.next_event().unwrap().is_some()
            {
                self.publish();
            }
            assert!(Instant::now() < deadline, "no {op:?} comes");
            std::thread::yield_now();
        }
    }
}

/// A packet from a port of the guest to one of the host.
pub(crate) fn packet(op: Op, from: u32, to: u32) -> RawHeader {
    RawHeader {
        src_cid: CID.into(),
        dst_cid: 2,
        src_port: from,
        dst_port: to,
        kind: 1,
        op: op.to_wire(),
        buf_alloc: 262_144,
        ..RawHeader::default()
    }
}

/// What a hypervisor has: the memory of its guest, the rings that the driver in it set up, and the eventfds.
pub(crate) struct Vmm {
    pub(crate) guest: u64,
    pub(crate) len: u64,
    pub(crate) memory: File,
    pub(crate) rings: Vec<QueueConfig>,
    pub(crate) signals: Vec<(EventFd, EventFd)>,
    pub(crate) frontend: Option<Frontend>,
}

impl Vmm {
    /// A VMM whose guest's driver runs.
    pub(crate) fn boot(options: &DriverOptions) -> (Self, Driver) {
        Self::boot_with(options, || EventFd::new(EFD_NONBLOCK).unwrap().into_raw_fd())
    }

    /// The same with a descriptor of `call` per ring to be signalled on.
    pub(crate) fn boot_with(
        options: &DriverOptions,
        mut call: impl FnMut() -> RawFd,
    ) -> (Self, Driver) {
        let mut link = DriverLink::new(options).unwrap();
        let rings = (0..QUEUE_COUNT).filter_map(|queue| link.queue_config(queue)).collect();
        let region = link.region();
        let memory = File::from(region.file.try_clone_to_owned().unwrap());
        let (guest, len) = (region.guest, region.len);
        let kick = || EventFd::new(EFD_NONBLOCK).unwrap();
        // SAFETY: the descriptor is open and nobody else's.
        let mut call = || unsafe { EventFd::from_raw_fd(call()) };
        let signals: Vec<_> = (0..QUEUE_COUNT).map(|_| (kick(), call())).collect();
        for (queue, (kick, call)) in signals.iter().enumerate() {
            link.connect(queue, owned(kick), owned(call)).unwrap();
        }
        let vmm = Self { guest, len, memory, rings, signals, frontend: None };
        (vmm, Driver(Link::Driver(link)))
    }

    /// The number at a guest address.
    pub(crate) fn read_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read_exact_at(&mut bytes, address - self.guest).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Where the driver of a ring is, and where the device.
    pub(crate) fn indexes(&self, queue: usize) -> (u16, u16) {
        let ring = &self.rings[queue];
        (self.read_u16(ring.avail + 2), self.read_u16(ring.used + 2))
    }

    /// Connects and sets everything up in the order of Cloud Hypervisor, whose base is the driver's index.
    pub(crate) fn connect(&mut self, socket: &Path) {
        let queues = self.rings.len();
        let mut frontend = Frontend::connect(socket, queues as u64).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted = F_VERSION_1 | F_PROTOCOL_FEATURES;
        assert_eq!(offered & wanted, wanted);
        frontend.set_features(wanted).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let known = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
        frontend.set_protocol_features(protocol & known).unwrap();
        assert!(frontend.get_queue_num().unwrap() >= queues as u64);
        let flags = VhostUserConfigFlags::empty();
        let (_, buffer) = frontend.get_config(0, 8, flags, &[0; 8]).unwrap();
        assert_eq!(buffer, u64::from(CID).to_le_bytes());
        frontend.set_features(wanted).unwrap();
        frontend
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: self.guest,
                memory_size: self.len,
                userspace_addr: self.guest,
                mmap_offset: 0,
                mmap_handle: self.memory.as_raw_fd(),
            }])
            .unwrap();
        for (queue, ring) in self.rings.iter().enumerate() {
            let data = VringConfigData {
                queue_max_size: ring.size,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: ring.desc,
                used_ring_addr: ring.used,
                avail_ring_addr: ring.avail,
                log_addr: None,
            };
            frontend.set_vring_num(queue, ring.size).unwrap();
            frontend.set_vring_addr(queue, &data).unwrap();
            frontend.set_vring_base(queue, self.indexes(queue).0).unwrap();
            frontend.set_vring_call(queue, &self.signals[queue].1).unwrap();
            frontend.set_vring_kick(queue, &self.signals[queue].0).unwrap();
        }
        for queue in 0..queues {
            frontend.set_vring_enable(queue, true).unwrap();
        }
        // A question is answered when all of this is done.
        frontend.get_features().unwrap();
        self.frontend = Some(frontend);
    }
}

pub(crate) fn owned(eventfd: &EventFd) -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd;
    // SAFETY: the eventfd is open for as long as it is borrowed here.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
    fd.as_fd().try_clone_to_owned().unwrap()
}

/// A switch with one guest, whose socket is `a.sock`.
pub(crate) fn switch(directory: &Directory) -> Node {
    let switch = Node::start(2, &directory.sub("host")).unwrap();
    let options = GuestOptions {
        name: "a".to_owned(),
        cid: CID,
        socket: directory.0.join("a.sock"),
        ..GuestOptions::default()
    };
    switch.add_guest(options).unwrap();
    switch
}

/// Bytes from host to guest and from guest to host, over a connection that the host opens.
pub(crate) fn exchange(directory: &Directory, guest: &mut Driver, port: u32) {
    let host = directory.0.join("host");
    let to_guest = pattern(30_000, port);
    let (expected, name) = (to_guest.clone(), host.clone());
    let program = std::thread::spawn(move || {
        let mut stream = connect(&name, CID, port).unwrap();
        stream.write_all(&to_guest).unwrap();
        let mut answer = vec![0; 10_000];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    let request = guest.expect(Op::Request).0;
    let answer = packet(Op::Response, port, request.src_port);
    guest.send(&answer, &[]);
    let mut got = Vec::new();
    while got.len() < expected.len() {
        got.extend(guest.expect(Op::Rw).1);
    }
    assert!(got == expected, "content differs");
    let data = pattern(10_000, port + 1);
    guest.send(&RawHeader { op: Op::Rw.to_wire(), fwd_cnt: 30_000, ..answer }, &data);
    assert!(program.join().unwrap() == data, "content differs");
}

/// The same over a connection that the guest opens.
pub(crate) fn exchange_from_guest(directory: &Directory, guest: &mut Driver, port: u32) {
    let mut listener = Listener::new(&directory.0.join("host"), port, 8);
    guest.send(&packet(Op::Request, 1025, port), &[]);
    guest.expect(Op::Response);
    let mut stream = listener.accept();
    let data = pattern(50_000, port);
    data.chunks(4096).for_each(|part| guest.send(&packet(Op::Rw, 1025, port), part));
    let mut got = vec![0; data.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == data, "content differs");
    stream.write_all(b"thanks").unwrap();
    assert_eq!(guest.expect(Op::Rw).1, b"thanks");
}
