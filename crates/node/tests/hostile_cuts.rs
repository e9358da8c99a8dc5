//! A guest that cuts its packets into more pieces than the kernel takes at once: what is a packet arrives, and what is
//! too long for one ends its connection, with both sides told.

#![allow(clippy::unwrap_used, reason = "tests panic")]

mod node_support;
#[path = "../../virtio/tests/queue_support/mod.rs"]
mod queue_support;

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use node_support::{Lab, Listener, guest_counter, pattern, request, wait_until};
use queue_support::{Guest, INDIRECT, NEXT, RING_AT, config, desc, memfd, read, write};
use vsock_core::{EOM, Op, RawHeader};
use vsock_guest_memory::SharedRegion;
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};
use vsock_virtio::queue::{DriverQueue, QueueConfig, QueueLayout};
use vsock_virtio::vhost_user::{Attached, FrontendOptions, attach};

const HOST: u32 = 2;
const A: u32 = 3;
const PORT: u32 = 6000;
const STREAM: u16 = 1;
const SEQPACKET: u16 = 2;
/// An operation of the client protocol.
const LISTEN: u8 = 3;
/// The most that a program may ask for.
const BUFFER: u32 = 16 << 20;

/// Where things lie in the guest's memory.
const LEN: u64 = 4 << 20;
const RX_RING: u64 = RING_AT + 0x1_0000;
const TABLES: u64 = RING_AT + 0x2_0000;
const TABLE_LEN: u64 = 0x4000;
const RX_BUFFERS: u64 = RING_AT + 0x4_0000;
const DATA: u64 = RING_AT + 0x10_0000;
/// Packets under way at most.
const PACKETS: u16 = 4;

/// A guest that writes its transmit ring by hand, each chain an indirect table.
struct Cutter {
    tx: Guest,
    rx: DriverQueue,
    sent: u16,
    attached: Attached,
}

impl Cutter {
    fn join(socket: &Path) -> Self {
        let file = memfd(LEN);
        let (guest, user) = (RING_AT, RING_AT);
        let region = Region { guest, user, len: LEN, offset: 0, file: file.try_clone().unwrap() };
        let memory = GuestMemory::map(vec![region], MemoryPolicy::RecordSeals).unwrap();
        let layout = QueueLayout::new(16);
        let (avail, used) = (RX_RING + layout.avail, RX_RING + layout.used);
        let rx_config =
            QueueConfig { size: 16, desc: RX_RING, avail, used, base: 0, event_idx: false };
        let mut rx = DriverQueue::new(Arc::clone(&memory), &rx_config).unwrap();
        for n in 0..16 {
            rx.add(&[], &[(RX_BUFFERS + n * 4096, 4096)]).unwrap();
        }
        rx.publish();
        let tx = Guest { memory, config: config(1024, false) };
        let shared = SharedRegion { file: file.as_fd(), guest, len: LEN };
        let rings = [rx_config, tx.config];
        let options = FrontendOptions { event_idx: false, ..FrontendOptions::default() };
        let attached = attach(socket, shared, &rings, options).unwrap();
        Self { tx, rx, sent: 0, attached }
    }

    fn packet(&self, op: Op, port: u32, kind: u16) -> RawHeader {
        RawHeader {
            src_cid: A.into(),
            dst_cid: HOST.into(),
            src_port: port,
            dst_port: PORT,
            kind,
            op: op.to_wire(),
            buf_alloc: BUFFER,
            ..RawHeader::default()
        }
    }

    /// Puts a packet into the ring whose payload is `pieces` (guest address and length).
    fn queue(&mut self, header: &RawHeader, pieces: &[(u64, u32)]) {
        let place = u64::from(self.sent % PACKETS);
        let (table, at) = (TABLES + place * TABLE_LEN, DATA - (place + 1) * 64);
        write(&self.tx.memory, at, &header.encode());
        let all = [&[(at, 44)], pieces].concat();
        for (index, &(addr, len)) in (0u16..).zip(&all) {
            let next = if usize::from(index) + 1 < all.len() { NEXT } else { 0 };
            self.tx.put(table, index, desc(addr, len, next, index + 1));
        }
        let head = self.sent % PACKETS;
        let len = u32::try_from(all.len() * 16).unwrap();
        self.tx.put(self.tx.config.desc, head, desc(table, len, INDIRECT, 0));
        self.tx.head(self.sent, head);
        self.sent += 1;
    }

    /// Lets the device know, and waits until it has taken all.
    fn publish(&mut self) {
        self.tx.avail_idx(self.sent);
        rustix::io::write(&self.attached.rings[1].kick, &1u64.to_ne_bytes()).unwrap();
        wait_until("the packets are taken", || self.tx.used_idx() == self.sent);
    }

    fn send(&mut self, header: &RawHeader, pieces: &[(u64, u32)]) {
        self.queue(header, pieces);
        self.publish();
    }

    /// The next packet with this operation; its buffer is not used again.
    fn expect(&mut self, op: Op) -> RawHeader {
        let mut found = None;
        wait_until("a packet comes", || {
            let Some((head, _)) = self.rx.pop_used().unwrap() else { return false };
            let bytes = read(&self.tx.memory, RX_BUFFERS + u64::from(head) * 4096, 44);
            let header = RawHeader::parse(&bytes.try_into().unwrap());
            found = (header.op == op.to_wire()).then_some(header);
            found.is_some()
        });
        found.unwrap()
    }

    /// Writes `data` and says where it lies: in pieces of `len` bytes, with a gap after each.
    fn cut(&self, at: u64, data: &[u8], len: usize) -> Vec<(u64, u32)> {
        let mut pieces = Vec::new();
        for (n, part) in (0u64..).zip(data.chunks(len)) {
            let place = at + n * (len as u64 + 4);
            write(&self.tx.memory, place, part);
            pieces.push((place, u32::try_from(part.len()).unwrap()));
        }
        pieces
    }
}

/// A program that takes connections and leaves them as large a buffer as there is.
fn listen(lab: &Lab, kind: u16) -> Listener {
    let directory = lab.path("host");
    let mut listener = match kind {
        STREAM => Listener::new(&directory, PORT, 8),
        _ => Listener::of_messages(&directory, PORT, 8),
    };
    let mut again = request(LISTEN, 0, 0, 8);
    again[16..20].copy_from_slice(&BUFFER.to_le_bytes());
    std::io::Write::write_all(&mut listener.0, &again).unwrap();
    listener
}

#[test]
fn packets_in_more_pieces_than_a_call_takes_arrive_whole() {
    for kind in [STREAM, SEQPACKET] {
        let lab = Lab::new(0);
        let mut guest = Cutter::join(&lab.path("a.sock"));
        let mut listener = listen(&lab, kind);
        guest.send(&guest.packet(Op::Request, 1, kind), &[]);
        guest.expect(Op::Response);
        let mut program = listener.accept();

        // The first leaves room for more in the same call, which the second overflows.
        let data = pattern(900 * 60 + 1023 * 60, 7);
        let (first, second) = data.split_at(900 * 60);
        let first = guest.cut(DATA, first, 60);
        let second = guest.cut(DATA + 0x2_0000, second, 60);
        let rw = guest.packet(Op::Rw, 1, kind);
        guest.queue(&RawHeader { len: 900 * 60, ..rw }, &first);
        guest.queue(&RawHeader { len: 1023 * 60, flags: EOM, ..rw }, &second);
        guest.publish();
        let mut got = vec![0; data.len()];
        program.read_exact(&mut got).unwrap();
        assert!(got == data, "kind {kind}: content differs");
    }
}

#[test]
fn packet_of_more_than_64_kib_ends_its_connection_and_no_other() {
    for kind in [STREAM, SEQPACKET] {
        let lab = Lab::new(0);
        let mut guest = Cutter::join(&lab.path("a.sock"));
        let mut listener = listen(&lab, kind);
        let mut programs = Vec::new();
        for port in [1, 2] {
            guest.send(&guest.packet(Op::Request, port, kind), &[]);
            assert_eq!(guest.expect(Op::Response).dst_port, port);
            programs.push(listener.accept());
        }
        let pieces = vec![(DATA, 2052); 1023];
        let len = 1023 * 2052;
        guest.send(&RawHeader { len, flags: EOM, ..guest.packet(Op::Rw, 1, kind) }, &pieces);
        assert_eq!(guest.expect(Op::Rst).dst_port, 1);
        assert_eq!(programs[0].read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(guest_counter(&lab.switch, A, "malformed"), 1);

        let pieces = guest.cut(DATA, b"all is well", 1);
        guest.send(&RawHeader { len: 11, flags: EOM, ..guest.packet(Op::Rw, 2, kind) }, &pieces);
        let mut got = [0; 11];
        programs[1].read_exact(&mut got).unwrap();
        assert_eq!(&got, b"all is well");
    }
}
