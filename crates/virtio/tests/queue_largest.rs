//! Rings of 32768 entries, as crosvm asks for: what a guest gets by choosing the size is no memory of ours. This test
//! counts every allocation, so nothing else runs in this process.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod queue_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use queue_support::{Guest, NEXT, desc, eventfd, region};
use vsock_guest_memory::slice::Slices;
use vsock_guest_memory::{GuestMemory, MemoryPolicy};
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::{Link, LinkError};
use vsock_virtio::queue::{QueueConfig, QueueError, QueueLayout};
use vsock_virtio::spec::TX_QUEUE;

/// The system's allocator, and how many bytes it has handed out.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all requests are passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the callee's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BASE: u64 = 0x10_0000;
const BUFFER: u64 = BASE + 0x1_0000;

/// A guest with rings of `size` entries in 2 MiB of memory; its buffers overlap the descriptor table, which nobody minds.
fn guest(size: u16) -> Guest {
    let memory = GuestMemory::map(vec![region(BASE, 2 << 20)], MemoryPolicy::RecordSeals).unwrap();
    let layout = QueueLayout::new(size);
    let desc = BASE + (1 << 20);
    let (avail, used) = (desc + layout.avail, desc + layout.used);
    let config = QueueConfig { size, desc, avail, used, base: 0, event_idx: true };
    Guest { memory, config }
}

fn device(guest: &Guest) -> Link {
    let mut device = DeviceLink::new();
    device.start_queue(TX_QUEUE, &guest.memory, &guest.config, eventfd(), None).unwrap();
    Link::Device(device)
}

/// What a device holds that a guest with a ring of `size` entries has given the dearest work: packets that are held,
/// and behind each as many chains of no use as the ring has.
fn cost(size: u16) -> usize {
    let guest = guest(size);
    // A packet, and a chain too short for one.
    guest.descriptors(&[desc(BUFFER, 44, 0, 0), desc(BUFFER, 1, 0, 0)]);
    for position in 0..size {
        guest.head(position, u16::from(position != 0));
    }
    guest.avail_idx(size);
    let before = HELD.load(Ordering::Relaxed);
    let mut link = device(&guest);
    let mut slices = Slices::with_capacity(4);
    let first = link.next_inbound(&mut slices).unwrap().unwrap();
    for _ in 0..256 {
        slices.clear();
        assert_eq!(link.next_inbound(&mut slices), Ok(None));
    }
    let cost = HELD.load(Ordering::Relaxed) - before;
    // Nothing of it is lost: when the packet is done, the rest goes back with it.
    link.finish_inbound(first.token);
    while link.arm() {
        slices.clear();
        assert_eq!(link.next_inbound(&mut slices), Ok(None));
    }
    link.publish().unwrap();
    assert_eq!((guest.used_idx(), link.stats().skipped), (size, u64::from(size) - 1));
    cost
}

fn longest_chain(length: u16) -> Result<u32, LinkError> {
    let guest = guest(32768);
    for index in 0..length {
        let more = if index + 1 < length { NEXT } else { 0 };
        guest.put(guest.config.desc, index, desc(BUFFER, 44, more, index + 1));
    }
    guest.avail_idx(1);
    let inbound = device(&guest).next_inbound(&mut Slices::new())?;
    Ok(inbound.unwrap().payload_len)
}

#[test]
fn largest_ring_costs_no_more_than_one_of_1024_entries() {
    assert_eq!(cost(32768), cost(1024));
    assert_eq!(longest_chain(1024), Ok(1023 * 44));
    let too_long = LinkError::Queue { queue: TX_QUEUE, error: QueueError::TooLong };
    assert_eq!(longest_chain(1025), Err(too_long));
    assert_eq!(longest_chain(32767), Err(too_long));
}
