//! A guest that writes its virtqueues itself: descriptors, available and used ring, and their indexes.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vsock_core::{Op, RawHeader};
use vsock_guest_memory::{GuestMemory, SharedRegion, sealed_memory};
use vsock_load::Result;
use vsock_load::joining::front_end;
use vsock_virtio::queue::{QueueConfig, QueueLayout};
use vsock_virtio::vhost_user::{Attached, FrontendOptions, attach};

/// First guest address.
pub(crate) const BASE: u64 = 1 << 20;
/// Room for one queue.
const QUEUE_STRIDE: u64 = 1 << 16;
/// Where indirect tables are; one of 1024 entries has 16 KiB.
pub(crate) const TABLES: u64 = BASE + (1 << 20);
/// Where buffers are.
pub(crate) const BUFFERS: u64 = BASE + (2 << 20);
/// Usual size of the memory.
pub(crate) const MEMORY: u64 = 8 << 20;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// What a used entry is set to, to see that the device has written it.
const UNUSED: u32 = u32::MAX;

/// Guest memory, written by copies.
#[derive(Clone)]
pub(crate) struct Memory(Arc<GuestMemory>);

impl Memory {
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        if let Ok(piece) = self.0.piece(at, bytes.len() as u64) {
            piece.copy_from(bytes);
        }
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if let Ok(piece) = self.0.piece(at, N as u64) {
            piece.copy_to(&mut bytes);
        }
        bytes
    }

    /// Writes a descriptor into a table, in the queue or in memory.
    pub(crate) fn descriptor(&self, table: u64, index: u16, buffer: (u64, u32), flags: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&index.wrapping_add(1).to_le_bytes());
        self.write(table + u64::from(index) * 16, &bytes);
    }

    /// Writes a table of `count` descriptors: the first has the buffer, the others `filler`.
    pub(crate) fn table(
        &self,
        at: u64,
        count: u16,
        first: (u64, u32),
        filler: (u64, u32),
        flags: u16,
    ) {
        for index in 0..count {
            let buffer = if index == 0 { first } else { filler };
            let next = if index + 1 < count { NEXT } else { 0 };
            self.descriptor(at, index, buffer, flags | next);
        }
    }
}

/// One virtqueue.
pub(crate) struct Ring {
    memory: Memory,
    config: QueueConfig,
    kick: Option<OwnedFd>,
    /// The available index, of which the device may know less.
    pub(crate) next: u16,
    /// Used entries that were seen.
    seen: u16,
}

impl Ring {
    pub(crate) fn new(memory: &Memory, config: QueueConfig) -> Self {
        let ring = Self { memory: memory.clone(), config, kick: None, next: 0, seen: 0 };
        // No calls: whoever attacks looks.
        ring.memory.write(config.avail, &1u16.to_le_bytes());
        for index in 0..config.size {
            ring.forget(index);
        }
        ring
    }

    pub(crate) fn size(&self) -> u16 {
        self.config.size
    }

    /// Where the descriptors are.
    pub(crate) fn descriptors(&self) -> u64 {
        self.config.desc
    }

    /// Gives every descriptor the same content.
    pub(crate) fn fill(&self, buffer: (u64, u32), flags: u16) {
        for index in 0..self.config.size {
            self.memory.descriptor(self.config.desc, index, buffer, flags);
        }
    }

    /// Asks for a call with every used entry, or for none.
    pub(crate) fn want_calls(&self, wants: bool) {
        self.memory.write(self.config.avail, &u16::from(!wants).to_le_bytes());
    }

    /// Writes an available entry that the device does not know of yet.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next % self.config.size);
        self.memory.write(self.config.avail + 4 + slot * 2, &head.to_le_bytes());
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the device all entries.
    pub(crate) fn publish(&self) {
        self.publish_index(self.next);
    }

    /// Shows the device any index.
    pub(crate) fn publish_index(&self, index: u16) {
        fence(Ordering::SeqCst);
        self.memory.write(self.config.avail + 2, &index.to_le_bytes());
    }

    pub(crate) fn kick(&self) {
        if let Some(kick) = &self.kick {
            // Full means that it was kicked already.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }

    /// How many chains the device has not given back.
    pub(crate) fn under_way(&self) -> u16 {
        fence(Ordering::SeqCst);
        self.next.wrapping_sub(u16::from_le_bytes(self.memory.read(self.config.used + 2)))
    }

    /// Offers heads until the queue is full; how many.
    pub(crate) fn refill(&mut self, mut head: impl FnMut(u16) -> u16) -> u16 {
        let room = self.config.size.saturating_sub(self.under_way());
        for _ in 0..room {
            let head = head(self.next);
            self.offer(head);
        }
        if room > 0 {
            self.publish();
            self.kick();
        }
        room
    }

    /// Whether the device has written `count` more used entries, even if its index does not say so yet.
    pub(crate) fn sees_used(&mut self, count: u16) -> bool {
        let slot = self.seen.wrapping_add(count - 1) % self.config.size;
        let id = u32::from_le_bytes(self.memory.read(self.used_entry(slot)));
        if id == UNUSED {
            return false;
        }
        self.forget(slot);
        self.seen = self.seen.wrapping_add(count);
        true
    }

    /// Offers and shows `count` more of the heads that are in the available ring from its last round.
    pub(crate) fn again(&mut self, count: u16) {
        self.next = self.next.wrapping_add(count);
        self.publish();
    }

    fn forget(&self, slot: u16) {
        self.memory.write(self.used_entry(slot), &UNUSED.to_le_bytes());
    }

    fn used_entry(&self, slot: u16) -> u64 {
        self.config.used + 4 + u64::from(slot) * 8
    }
}

/// A guest whose virtqueues are the attack's.
pub(crate) struct RingGuest {
    pub(crate) memory: Memory,
    pub(crate) rx: Ring,
    pub(crate) tx: Ring,
    pub(crate) event: Ring,
    pub(crate) cid: u32,
    pub(crate) calls: Vec<OwnedFd>,
    _attached: Attached,
}

impl RingGuest {
    /// Joins with queues of `size` descriptors in `len` bytes of memory, nothing in them.
    pub(crate) fn join(socket: &Path, size: u16, len: u64) -> Result<Self> {
        let (file, table) = sealed_memory("vsock-hostile", BASE, len)?;
        let memory = Memory(table);
        let configs: [QueueConfig; 3] = [0, 1, 2].map(|queue| config(queue, size));
        let mut rings = configs.map(|config| Ring::new(&memory, config));
        let region = SharedRegion { guest: BASE, len, file: std::os::fd::AsFd::as_fd(&file) };
        let options = FrontendOptions { event_idx: false, ..front_end() };
        let mut attached = attach(socket, region, &configs, options)?;
        let mut calls = Vec::new();
        for (ring, signals) in rings.iter_mut().zip(attached.rings.drain(..)) {
            ring.kick = Some(signals.kick);
            calls.push(signals.call);
        }
        let [rx, tx, event] = rings;
        let cid = attached.cid;
        Ok(Self { memory, rx, tx, event, cid, calls, _attached: attached })
    }

    /// Writes a header into memory and says where.
    pub(crate) fn header(&self, at: u64, op: Op, to: (u32, u32)) -> (u64, u32) {
        let header = RawHeader {
            src_cid: self.cid.into(),
            dst_cid: to.0.into(),
            src_port: 5,
            dst_port: to.1,
            kind: 1,
            op: op.to_wire(),
            buf_alloc: 1 << 18,
            ..RawHeader::default()
        };
        self.memory.write(at, &header.encode());
        (at, 44)
    }
}

/// Where a queue is.
pub(crate) fn config(queue: u64, size: u16) -> QueueConfig {
    let (layout, at) = (QueueLayout::new(size), BASE + queue * QUEUE_STRIDE);
    QueueConfig {
        size,
        desc: at,
        avail: at + layout.avail,
        used: at + layout.used,
        base: 0,
        event_idx: false,
    }
}

/// Memory of `len` bytes to show to a device, and the file behind it.
pub(crate) fn memory(len: u64) -> Result<(std::fs::File, Memory)> {
    let (file, table) = sealed_memory("vsock-hostile", BASE, len)?;
    Ok((file, Memory(table)))
}
