//! Guest memory whose every byte a test can write, as a guest could.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vsock_guest_memory::slice::{Slices, copy_in, copy_out};
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};

/// A region for rings.
pub(crate) const RING_AT: u64 = 0x1_0000;
/// Two regions that meet: buffers may lie across the border at `LOW + REGION_LEN`.
pub(crate) const LOW: u64 = 0x10_0000;
pub(crate) const REGION_LEN: u64 = 0x1_0000;
/// A region by itself.
pub(crate) const HIGH: u64 = 0x4000_0000;

pub(crate) fn memfd(len: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("test", flags).unwrap());
    ftruncate(&file, len).unwrap();
    file
}

pub(crate) fn region(guest: u64, len: u64) -> Region {
    Region { guest, user: guest + (1 << 40), len, offset: 0, file: memfd(len) }
}

/// Room for rings, two regions that meet, and one far away.
pub(crate) fn memory() -> Arc<GuestMemory> {
    let regions = vec![
        region(HIGH, REGION_LEN),
        region(LOW, REGION_LEN),
        region(RING_AT, 0x1_0000),
        region(LOW + REGION_LEN, REGION_LEN),
    ];
    GuestMemory::map(regions, MemoryPolicy::RecordSeals).unwrap()
}

pub(crate) fn write(memory: &Arc<GuestMemory>, at: u64, bytes: &[u8]) {
    let mut pieces = Slices::new();
    memory.slice(at, bytes.len().try_into().unwrap(), &mut pieces).unwrap();
    assert_eq!(copy_in(&pieces, bytes), bytes.len());
}

pub(crate) fn read(memory: &Arc<GuestMemory>, at: u64, len: u32) -> Vec<u8> {
    let mut pieces = Slices::new();
    memory.slice(at, len, &mut pieces).unwrap();
    let mut bytes = vec![0; len as usize];
    assert_eq!(copy_out(&pieces, &mut bytes), bytes.len());
    bytes
}
