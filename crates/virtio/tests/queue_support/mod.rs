//! Guest memory and rings whose every byte a test can write, as a guest could.

#![allow(dead_code, reason = "each test file uses its own part")]

#[path = "../../../guest-memory/tests/support/mod.rs"]
mod memory_support;
pub(crate) mod pair;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use proptest::test_runner::{Config, RngSeed};
use vsock_guest_memory::GuestMemory;
use vsock_virtio::queue::{QueueConfig, QueueLayout};

#[allow(unused_imports, reason = "as above")]
pub(crate) use memory_support::{
    HIGH, LOW, REGION_LEN, RING_AT, memfd, memory, read, region, write,
};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Property tests take the same cases every time, unless PROPTEST_RNG_SEED names others.
pub(crate) fn proptest_config(cases: u32) -> Config {
    let mut config = Config { cases, ..Config::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x0076_736f_636b);
    }
    config
}

/// Numbers that look random and are the same every time (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Fewer than `limit` bytes.
    pub(crate) fn bytes(&mut self, limit: u64) -> Vec<u8> {
        let (len, start) = (self.below(limit), self.next());
        (0..len).map(|n| (start.wrapping_add(n) % 251) as u8).collect()
    }
}

pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap()
}

/// How often an eventfd was signalled since the last time.
pub(crate) fn signals(fd: &impl AsFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd.as_fd(), &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::AGAIN);
            0
        }
    }
}

pub(crate) fn config(size: u16, event_idx: bool) -> QueueConfig {
    let layout = QueueLayout::new(size.max(1).next_power_of_two());
    QueueConfig {
        size,
        desc: RING_AT,
        avail: RING_AT + layout.avail,
        used: RING_AT + layout.used,
        base: 0,
        event_idx,
    }
}

pub(crate) fn read_u16(memory: &Arc<GuestMemory>, at: u64) -> u16 {
    u16::from_le_bytes(read(memory, at, 2).try_into().unwrap())
}

pub(crate) fn read_u32(memory: &Arc<GuestMemory>, at: u64) -> u32 {
    u32::from_le_bytes(read(memory, at, 4).try_into().unwrap())
}

/// A descriptor as a guest writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

/// The driver's side of a ring, byte by byte.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) config: QueueConfig,
}

impl Guest {
    pub(crate) fn new(size: u16, event_idx: bool) -> Self {
        Self { memory: memory(), config: config(size, event_idx) }
    }

    /// Writes a descriptor of any table.
    pub(crate) fn put(&self, table: u64, index: u16, d: Desc) {
        let mut bytes = Vec::new();
        bytes.extend(d.addr.to_le_bytes());
        bytes.extend(d.len.to_le_bytes());
        bytes.extend(d.flags.to_le_bytes());
        bytes.extend(d.next.to_le_bytes());
        write(&self.memory, table + u64::from(index) * 16, &bytes);
    }

    /// Writes descriptors of the ring from the first on.
    pub(crate) fn descriptors(&self, list: &[Desc]) {
        for (index, d) in (0..).zip(list) {
            self.put(self.config.desc, index, *d);
        }
    }

    /// Writes an entry of the available ring.
    pub(crate) fn head(&self, position: u16, head: u16) {
        let place = u64::from(position % self.config.size);
        write(&self.memory, self.config.avail + 4 + place * 2, &head.to_le_bytes());
    }

    pub(crate) fn avail_idx(&self, idx: u16) {
        write(&self.memory, self.config.avail + 2, &idx.to_le_bytes());
    }

    pub(crate) fn avail_flags(&self, flags: u16) {
        write(&self.memory, self.config.avail, &flags.to_le_bytes());
    }

    pub(crate) fn used_event(&self, idx: u16) {
        let at = self.config.avail + 4 + u64::from(self.config.size) * 2;
        write(&self.memory, at, &idx.to_le_bytes());
    }

    pub(crate) fn avail_event(&self) -> u16 {
        read_u16(&self.memory, self.config.used + 4 + u64::from(self.config.size) * 8)
    }

    pub(crate) fn used_flags(&self) -> u16 {
        read_u16(&self.memory, self.config.used)
    }

    pub(crate) fn set_used_flags(&self, flags: u16) {
        write(&self.memory, self.config.used, &flags.to_le_bytes());
    }

    pub(crate) fn used_idx(&self) -> u16 {
        read_u16(&self.memory, self.config.used + 2)
    }

    pub(crate) fn set_used_idx(&self, idx: u16) {
        write(&self.memory, self.config.used + 2, &idx.to_le_bytes());
    }

    pub(crate) fn used(&self, position: u16) -> (u32, u32) {
        let at = self.config.used + 4 + u64::from(position % self.config.size) * 8;
        (read_u32(&self.memory, at), read_u32(&self.memory, at + 4))
    }

    pub(crate) fn set_used(&self, position: u16, id: u32, len: u32) {
        let at = self.config.used + 4 + u64::from(position % self.config.size) * 8;
        write(&self.memory, at, &id.to_le_bytes());
        write(&self.memory, at + 4, &len.to_le_bytes());
    }
}
