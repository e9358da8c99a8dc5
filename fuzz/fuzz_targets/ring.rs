//! Invariant: whatever lies in the memory of a ring, a device takes from it only pieces inside that memory, ends, takes
//! no more chains than the ring has entries, and gives each back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};
use vsock_virtio::queue::{DeviceQueue, QueueConfig};
use vsock_guest_memory::slice::{Slices, copy_out};

const LEN: u64 = 16 * 4096;
const BASE: u64 = 0x1000;
const SIZE: u16 = 16;

/// One file for all runs: what a run leaves there is overwritten by the next.
fn memory() -> &'static (File, Arc<GuestMemory>) {
    static MEMORY: OnceLock<(File, Arc<GuestMemory>)> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("fuzz", flags).unwrap());
        ftruncate(&file, LEN).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let copy = file.try_clone().unwrap();
        let region = Region { guest: BASE, user: 1 << 40, len: LEN, offset: 0, file: copy };
        let memory = GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).unwrap();
        (file, memory)
    })
}

fuzz_target!(|input: (u16, u8, &[u8])| {
    let (base, how, bytes) = input;
    let (file, memory) = memory();
    let mut image = vec![0; 8192];
    let len = bytes.len().min(image.len());
    image[..len].copy_from_slice(&bytes[..len]);
    file.write_all_at(&image, 0).unwrap();
    // Descriptors, then the two rings, right behind one another, so that a short input reaches all of them.
    let table = u64::from(SIZE) * 16;
    // A device goes on at the used index that it finds, whatever base the front end names.
    let idx_at = usize::try_from(table).unwrap() + 64 + 2;
    let used_idx = u16::from_le_bytes([image[idx_at], image[idx_at + 1]]);
    let config = QueueConfig {
        size: SIZE,
        desc: BASE,
        avail: BASE + table,
        used: BASE + table + 64,
        base,
        event_idx: how & 1 != 0,
    };
    let Ok(mut ring) = DeviceQueue::new(Arc::clone(memory), &config) else { return };
    let mut slices = Slices::new();
    let mut popped = Vec::new();
    let mut scratch = vec![0; LEN as usize];
    while let Ok(Some(chain)) = ring.pop(&mut slices) {
        let total = u64::from(chain.readable_len) + u64::from(chain.writable_len);
        let pieces = &slices[chain.readable.start..chain.writable.end];
        assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), total);
        for piece in pieces {
            // Reads every byte: outside the mapping, this is the end.
            assert!(piece.len() as u64 <= LEN);
            copy_out(std::slice::from_ref(piece), &mut scratch);
        }
        popped.push((chain.head, chain.writable_len));
        assert!(popped.len() <= usize::from(SIZE), "more chains than entries");
        if how & 2 != 0 && popped.len() == 5 {
            ring.unpop(2);
            popped.truncate(3);
            break;
        }
    }
    for &(head, len) in &popped {
        ring.push_used(head, len);
    }
    ring.publish();
    ring.enable_kicks();
    ring.disable_kicks();
    assert!(ring.available() <= SIZE);
    assert_eq!(ring.next_avail(), used_idx.wrapping_add(popped.len() as u16));
});
