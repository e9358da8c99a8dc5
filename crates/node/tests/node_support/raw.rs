//! A guest without a protocol: it joins a switch properly and then writes whatever a test wants into its rings.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

use std::path::Path;
use std::time::Instant;

use vsock_core::{Op, RawHeader};
use vsock_guest_memory::slice::{Slices, copy_in, copy_out};
use vsock_virtio::link::Link;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::queue::QueueConfig;
use vsock_virtio::spec::F_EVENT_IDX;
use vsock_virtio::spec::{QUEUE_COUNT, TRANSPORT_RESET};
use vsock_virtio::vhost_user::{Attached, FrontendOptions, attach};

use super::DEADLINE;

/// What a guest of Linux announces.
pub(crate) const BUFFER: u32 = 262_144;

/// One packet that came.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) header: RawHeader,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    pub(crate) fn op(&self) -> Op {
        Op::from_wire(self.header.op)
    }
}

/// A guest whose every packet is the test's.
pub(crate) struct RawGuest {
    link: Link,
    cid: u32,
    attached: Attached,
}

impl RawGuest {
    pub(crate) fn join(socket: &Path) -> Self {
        Self::with(socket, &DriverOptions::default())
    }

    /// Like the front end of QEMU, which keeps the event queue to itself.
    pub(crate) fn without_event_queue(socket: &Path) -> Self {
        Self::with_queues(socket, &DriverOptions::default(), QUEUE_COUNT - 1)
    }

    /// With only `buffers` receive buffers of 4 KiB: who does not read has no more.
    pub(crate) fn with_buffers(socket: &Path, buffers: u16) -> Self {
        let options =
            DriverOptions { rx_buffers: buffers, rx_payload: 4096, ..DriverOptions::default() };
        Self::with(socket, &options)
    }

    pub(crate) fn with(socket: &Path, options: &DriverOptions) -> Self {
        Self::with_queues(socket, options, QUEUE_COUNT)
    }

    fn with_queues(socket: &Path, options: &DriverOptions, queues: usize) -> Self {
        let mut link = DriverLink::new(options).unwrap();
        let rings: Vec<_> = (0..queues).filter_map(|queue| link.queue_config(queue)).collect();
        let mut attached =
            attach(socket, link.region(), &rings, FrontendOptions::default()).unwrap();
        link.set_event_idx(attached.features & F_EVENT_IDX != 0);
        for (queue, signals) in attached.rings.drain(..).enumerate() {
            link.connect(queue, signals.kick, signals.call).unwrap();
        }
        Self { link: Link::Driver(link), cid: attached.cid, attached }
    }

    /// Its front end goes and comes again while the driver runs on: the same rings, of which the first `queues` are handed
    /// over, go on where they are.
    pub(crate) fn reattach(self, socket: &Path, queues: usize) -> Self {
        let Self { link, cid, attached } = self;
        drop(attached);
        let Link::Driver(mut link) = link else { panic!("a guest has a driver") };
        let region = link.region();
        let used = |config: QueueConfig| {
            let mut index = [0; 2];
            let at = config.used - region.guest + 2;
            assert_eq!(rustix::io::pread(region.file, &mut index, at).unwrap(), 2);
            QueueConfig { base: u16::from_le_bytes(index), ..config }
        };
        let rings: Vec<_> =
            (0..queues).filter_map(|queue| link.queue_config(queue)).map(used).collect();
        let mut attached = attach(socket, region, &rings, FrontendOptions::default()).unwrap();
        for (queue, signals) in attached.rings.drain(..).enumerate() {
            link.connect(queue, signals.kick, signals.call).unwrap();
        }
        Self { link: Link::Driver(link), cid, attached }
    }

    /// A sound packet from our port to a port of `cid`, for a test to spoil.
    pub(crate) fn packet(&self, op: Op, port: u32, to: (u32, u32)) -> RawHeader {
        RawHeader {
            src_cid: self.cid.into(),
            dst_cid: to.0.into(),
            src_port: port,
            dst_port: to.1,
            kind: 1,
            op: op.to_wire(),
            buf_alloc: BUFFER,
            ..RawHeader::default()
        }
    }

    /// What the driver does on TRANSPORT_RESET: takes the event, reads its CID again, and gives the buffer back. False:
    /// there is no event.
    pub(crate) fn handle_event(&mut self) -> bool {
        let Link::Driver(driver) = &mut self.link else { return false };
        let event = driver.next_event().unwrap();
        if event.is_some() {
            self.cid = self.attached.config_space().unwrap().cid(DEADLINE).unwrap();
            self.publish();
        }
        event == Some(TRANSPORT_RESET)
    }

    /// Stops its rings and lets them run again, as a hypervisor does with a guest that is paused.
    pub(crate) fn pause_and_resume(&mut self) {
        self.set_running(false);
        self.set_running(true);
    }

    /// Stops its rings, or lets them run.
    pub(crate) fn set_running(&mut self, is_running: bool) {
        self.attached.set_running(QUEUE_COUNT, is_running).unwrap();
    }

    /// The CID that it takes for its own.
    pub(crate) fn cid(&self) -> u32 {
        self.cid
    }

    /// Puts a packet into the ring; false when the device has not taken the earlier ones yet.
    pub(crate) fn try_send(&mut self, header: &RawHeader, payload: &[u8]) -> bool {
        let mut slices = Slices::new();
        let Some(buffer) = self.link.next_buffer(&mut slices).unwrap() else { return false };
        let len = copy_in(&slices[buffer.payload.clone()], payload);
        self.link.send(&buffer, &slices, &header.encode(), u32::try_from(len).unwrap());
        true
    }

    /// Sends a packet, waiting for room.
    pub(crate) fn send(&mut self, header: &RawHeader, payload: &[u8]) {
        self.queue(header, payload);
        self.publish();
    }

    /// The same, but the device need not know yet: many are told of at once.
    pub(crate) fn queue(&mut self, header: &RawHeader, payload: &[u8]) {
        let deadline = Instant::now() + DEADLINE;
        while !self.try_send(header, payload) {
            assert!(Instant::now() < deadline, "the device takes nothing");
            self.publish();
            std::thread::yield_now();
        }
    }

    /// Payload with the length that belongs to it.
    pub(crate) fn send_data(&mut self, header: &RawHeader, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        self.send(&RawHeader { len, ..*header }, payload);
    }

    pub(crate) fn publish(&mut self) {
        self.link.publish().unwrap();
        self.link.arm();
    }

    /// The next packet that is there; its buffer is offered again.
    pub(crate) fn poll(&mut self) -> Option<Packet> {
        let mut slices = Slices::new();
        let inbound = self.link.next_inbound(&mut slices).unwrap()?;
        let mut payload = vec![0; inbound.payload_len as usize];
        copy_out(&slices[inbound.payload], &mut payload);
        self.link.finish_inbound(inbound.token);
        self.publish();
        Some(Packet { header: RawHeader::parse(&inbound.header), payload })
    }

    /// The next packet.
    pub(crate) fn receive(&mut self) -> Packet {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(packet) = self.poll() {
                return packet;
            }
            assert!(Instant::now() < deadline, "no packet comes");
            std::thread::yield_now();
        }
    }

    /// The next packet with this operation; others are taken on the way.
    pub(crate) fn expect(&mut self, op: Op) -> Packet {
        loop {
            let packet = self.receive();
            if packet.op() == op {
                return packet;
            }
        }
    }

    /// Opens a connection to a listener.
    pub(crate) fn open(&mut self, port: u32, to: (u32, u32)) {
        let request = self.packet(Op::Request, port, to);
        self.send(&request, &[]);
        self.expect(Op::Response);
    }
}
