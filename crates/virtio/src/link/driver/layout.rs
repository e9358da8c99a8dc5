//! Where queues and buffers of a userspace guest lie in its memory, and the memory itself.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vsock_core::MAX_PAYLOAD;

use super::super::packet::HEADER_BYTES;
use crate::queue::{MAX_QUEUE_SIZE, QueueConfig, QueueLayout};
use crate::spec::QUEUE_COUNT;
use vsock_guest_memory::{GuestMemory, sealed_memory};

/// First guest address: not 0, so that a zero address is always wrong.
pub(super) const BASE: u64 = 1 << 20;

const LINE: u64 = 64;
const EVENT_BUFFERS: u16 = 8;
const EVENT_LEN: u32 = 4;

/// How many buffers of what size a userspace guest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverOptions {
    /// Number of receive buffers, at most 32768 (16384 with `split_header`).
    pub rx_buffers: u16,
    /// Payload bytes of one receive buffer: 3732 and 4096 are what Linux guests have.
    pub rx_payload: u32,
    /// Number of transmit buffers, at most 32768 (16384 with `split_header`).
    pub tx_buffers: u16,
    /// Payload bytes of one transmit buffer.
    pub tx_payload: u32,
    /// Header and payload are two descriptors, as old Linux guests do it, instead of one.
    pub split_header: bool,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            rx_buffers: 256,
            rx_payload: MAX_PAYLOAD,
            tx_buffers: 256,
            tx_payload: MAX_PAYLOAD,
            split_header: false,
        }
    }
}

/// The buffers of one queue.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    first: u64,
    stride: u64,
    /// Number of buffers.
    pub(super) count: u16,
    /// Bytes of one, header included.
    pub(super) len: u32,
    split_header: bool,
}

impl Buffers {
    /// The guest address of a buffer.
    pub(super) fn address(&self, buffer: u16) -> u64 {
        self.first + u64::from(buffer) * self.stride
    }

    /// The descriptors for the first `len` bytes of a buffer: one or two, and how many.
    pub(super) fn parts(&self, buffer: u16, len: u32) -> ([(u64, u32); 2], usize) {
        let address = self.address(buffer);
        if self.split_header && len > HEADER_BYTES {
            let payload = (address + u64::from(HEADER_BYTES), len - HEADER_BYTES);
            ([(address, HEADER_BYTES), payload], 2)
        } else {
            ([(address, len), (0, 0)], 1)
        }
    }
}

/// The whole memory.
pub(super) struct Layout {
    pub(super) queues: [QueueConfig; QUEUE_COUNT],
    pub(super) buffers: [Buffers; QUEUE_COUNT],
    pub(super) len: u64,
}

impl Layout {
    pub(super) fn new(options: &DriverOptions) -> io::Result<Self> {
        let split = options.split_header;
        let mut place = BASE;
        let queues = [
            queue(&mut place, options.rx_buffers, split)?,
            queue(&mut place, options.tx_buffers, split)?,
            queue(&mut place, EVENT_BUFFERS, false)?,
        ];
        let rx = packet_buffers(&mut place, options.rx_buffers, options.rx_payload, split)?;
        let tx = packet_buffers(&mut place, options.tx_buffers, options.tx_payload, split)?;
        let event = Buffers {
            first: place,
            stride: LINE,
            count: EVENT_BUFFERS,
            len: EVENT_LEN,
            split_header: false,
        };
        place += u64::from(EVENT_BUFFERS) * LINE;
        let len = (place - BASE).next_multiple_of(rustix::param::page_size() as u64);
        Ok(Self { queues, buffers: [rx, tx, event], len })
    }

    /// Memory of that size, as a file and mapped.
    pub(super) fn allocate(&self) -> io::Result<(File, Arc<GuestMemory>)> {
        sealed_memory("vsock-guest", BASE, self.len)
    }
}

/// Places a queue that has descriptors for `buffers` buffers.
fn queue(place: &mut u64, buffers: u16, split: bool) -> io::Result<QueueConfig> {
    let wanted = u32::from(buffers) * if split { 2 } else { 1 };
    let size = u16::try_from(wanted.next_power_of_two())
        .ok()
        .filter(|size| buffers > 0 && *size <= MAX_QUEUE_SIZE)
        .ok_or_else(|| misuse("a queue has 1 to 32768 buffers, or 16384 with split headers"))?;
    let layout = QueueLayout::new(size);
    let desc = *place;
    *place += layout.len;
    let (avail, used) = (desc + layout.avail, desc + layout.used);
    Ok(QueueConfig { size, desc, avail, used, base: 0, event_idx: false })
}

/// Places packet buffers, with their payload (not their header) at the start of a cache line.
fn packet_buffers(
    place: &mut u64,
    count: u16,
    payload: u32,
    split_header: bool,
) -> io::Result<Buffers> {
    if payload == 0 || payload > MAX_PAYLOAD {
        return Err(misuse("a buffer has room for 1 to 65536 bytes of payload"));
    }
    let len = HEADER_BYTES + payload;
    let lead = LINE - u64::from(HEADER_BYTES);
    let stride = (lead + u64::from(len)).next_multiple_of(LINE);
    let first = *place + lead;
    *place += u64::from(count) * stride;
    Ok(Buffers { first, stride, count, len, split_header })
}

fn misuse(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
