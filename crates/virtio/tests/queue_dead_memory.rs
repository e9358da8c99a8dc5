//! A ring whose memory loses its backing while it runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod queue_support;

use std::sync::Arc;

use queue_support::{Guest, NEXT, desc};
use rustix::fs::ftruncate;
use vsock_guest_memory::slice::Slices;
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};
use vsock_virtio::queue::DeviceQueue;

#[test]
fn ring_whose_memory_lost_its_file_does_not_crash() {
    let guest = Guest::new(8, true);
    let file = queue_support::memfd(0x1_0000);
    let region = Region {
        guest: queue_support::RING_AT,
        user: 0,
        len: 0x1_0000,
        offset: 0,
        file: file.try_clone().unwrap(),
    };
    let memory = GuestMemory::map(vec![region], MemoryPolicy::RecordSeals).unwrap();
    let guest = Guest { memory: Arc::clone(&memory), ..guest };
    guest.descriptors(&[desc(queue_support::RING_AT, 44, NEXT, 1), desc(0, 0, 0, 0)]);
    guest.avail_idx(2);
    let mut ring = DeviceQueue::new(memory, &guest.config).unwrap();
    assert!(ring.pop(&mut Slices::new()).unwrap().is_some());
    ftruncate(&file, 0).unwrap();
    // The cached index says there is one more; its descriptor reads as zeros and is an empty chain.
    let chain = ring.pop(&mut Slices::new()).unwrap().unwrap();
    assert_eq!((chain.readable_len, chain.writable_len), (0, 0));
    assert!(ring.is_dead());
    ring.push_used(chain.head, 0);
    ring.publish();
    ring.enable_kicks();
}
