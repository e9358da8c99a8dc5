//! What all guests' memory may take of a process. Alone in its process, as the sums are the process's.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::sync::Arc;

use support::memfd;
use vsock_guest_memory::{GuestMemory, MemoryError, MemoryPolicy, Region};

const TIB: u64 = 1 << 40;

fn map(len: u64) -> Result<Arc<GuestMemory>, MemoryError> {
    let region = Region { guest: 0, user: 0, len, offset: 0, file: memfd(len) };
    GuestMemory::map(vec![region], MemoryPolicy::RecordSeals)
}

/// S11: front ends that claim files of any size, which cost them nothing, leave addresses for everything else.
#[test]
fn memory_of_all_guests_leaves_half_of_the_addresses() {
    let most: Vec<_> = (0..64).map(|_| map(TIB).unwrap()).collect();
    assert!(matches!(map(4096), Err(MemoryError::NoRoom { guest: 0, len: 4096 })));
    // A guest that goes gives its share back.
    drop(most);
    map(64 * TIB).unwrap();
    assert!(matches!(map(64 * TIB + 4096), Err(MemoryError::NoRoom { .. })));
}
