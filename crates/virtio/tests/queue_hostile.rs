//! Whatever a guest writes into its rings, popping gives a valid chain or an error: never a crash, never an access
//! outside memory (regions lie between guard pages), never an endless walk.
//!
//! The expected outcome comes from a second, simple walk over the same descriptors.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod queue_support;

use std::sync::Arc;

use proptest::prelude::*;
use queue_support::{
    Desc, Guest, HIGH, INDIRECT, LOW, NEXT, REGION_LEN, WRITE, eventfd, proptest_config,
};
use vsock_guest_memory::slice::{Slice, Slices, copy_in, copy_out, total};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::queue::DeviceQueue;
use vsock_virtio::spec::{RX_QUEUE, TX_QUEUE};

const SIZE: u16 = 8;
const TABLES: [u64; 2] = [HIGH, HIGH + 0x1001];
const TABLE_LEN: u16 = 6;

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => LOW..LOW + 2 * REGION_LEN,
        2 => LOW + REGION_LEN - 100..LOW + REGION_LEN,
        2 => LOW + 2 * REGION_LEN - 100..LOW + 2 * REGION_LEN + 10,
        2 => prop::sample::select(TABLES.to_vec()),
        1 => any::<u64>(),
        1 => u64::MAX - 100..=u64::MAX,
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..100_u32,
        2 => (0..10_u32).prop_map(|n| n * 16),
        2 => 0..0x2_0000_u32,
        1 => any::<u32>(),
        1 => u32::MAX - 100..=u32::MAX,
    ]
}

fn descriptor() -> impl Strategy<Value = Desc> {
    let flags = prop_oneof![
        4 => Just(0), 4 => Just(NEXT), 2 => Just(WRITE), 3 => Just(NEXT | WRITE),
        1 => Just(INDIRECT), 1 => any::<u16>(),
    ];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (address(), length(), flags, next).prop_map(|(addr, len, flags, next)| Desc {
        addr,
        len,
        flags,
        next,
    })
}

/// A descriptor of one of the tables that are really there.
fn indirect() -> impl Strategy<Value = Desc> {
    let count = prop_oneof![8 => 1..=u32::from(TABLE_LEN), 1 => Just(2000)];
    (prop::sample::select(TABLES.to_vec()), count).prop_map(|(addr, count)| Desc {
        addr,
        len: count * 16,
        flags: INDIRECT,
        next: 0,
    })
}

/// A short buffer that is there.
fn plain(limit: u16) -> impl Strategy<Value = Desc> {
    let flags = prop::sample::select(vec![0, NEXT, NEXT, WRITE, NEXT | WRITE]);
    (LOW..LOW + REGION_LEN, 0..100_u32, flags, 0..limit).prop_map(|(addr, len, flags, next)| Desc {
        addr,
        len,
        flags,
        next,
    })
}

/// All that a guest controls.
#[derive(Debug, Clone)]
struct Hostile {
    ring: Vec<Desc>,
    tables: Vec<Vec<Desc>>,
    heads: Vec<u16>,
    idx: u16,
    base: u16,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let entry = prop_oneof![2 => descriptor(), 1 => indirect(), 2 => plain(SIZE)];
    let ring = prop::collection::vec(entry, usize::from(SIZE));
    let entry = prop_oneof![1 => descriptor(), 4 => plain(TABLE_LEN)];
    let tables = prop::collection::vec(prop::collection::vec(entry, usize::from(TABLE_LEN)), 2);
    let heads =
        prop::collection::vec(prop_oneof![9 => 0..SIZE, 1 => any::<u16>()], usize::from(SIZE));
    let ahead = prop_oneof![8 => 0..=SIZE, 1 => any::<u16>()];
    (ring, tables, heads, ahead, any::<u16>()).prop_map(|(ring, tables, heads, ahead, base)| {
        Hostile { ring, tables, heads, idx: base.wrapping_add(ahead), base }
    })
}

impl Hostile {
    fn install(&self) -> Guest {
        let mut guest = Guest::new(SIZE, true);
        // The front end's base is anything; the ring goes on at the used index.
        guest.config.base = self.idx;
        guest.set_used_idx(self.base);
        for (table, list) in TABLES.iter().zip(&self.tables) {
            for (index, d) in (0..).zip(list) {
                guest.put(*table, index, *d);
            }
        }
        guest.descriptors(&self.ring);
        for (position, head) in (0..).zip(&self.heads) {
            guest.head(position, *head);
        }
        guest.avail_idx(self.idx);
        guest
    }

    fn is_memory(addr: u64, len: u32) -> bool {
        let end = u128::from(addr) + u128::from(len);
        let inside = |start: u64, size: u64| addr >= start && end <= u128::from(start + size);
        len == 0
            || inside(LOW, 2 * REGION_LEN)
            || inside(HIGH, REGION_LEN)
            || inside(queue_support::RING_AT, 0x1_0000)
    }

    /// The descriptors of a chain in order, or none if it is malformed.
    fn flatten(&self, guest: &Guest, head: u16) -> Option<Vec<Desc>> {
        let mut flat: Vec<Desc> = Vec::new();
        let mut index = head;
        for _ in 0..SIZE {
            let d = *self.ring.get(usize::from(index))?;
            if d.flags & INDIRECT != 0 {
                if d.flags & NEXT != 0 || d.len % 16 != 0 || d.len == 0 || d.len > 32768 * 16 {
                    return None;
                }
                flat.extend(Self::flatten_table(guest, d)?);
                return Some(flat);
            }
            flat.push(d);
            if d.flags & NEXT == 0 {
                return Some(flat);
            }
            index = d.next;
        }
        None
    }

    fn flatten_table(guest: &Guest, table: Desc) -> Option<Vec<Desc>> {
        guest.memory.piece(table.addr, table.len.into()).ok()?;
        let count = (table.len / 16) as u16;
        let mut flat = Vec::new();
        let mut index = 0;
        for _ in 0..count {
            if index >= count {
                return None;
            }
            let bytes = queue_support::read(&guest.memory, table.addr + u64::from(index) * 16, 16);
            let d = Desc {
                addr: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
                len: u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
                flags: u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
                next: u16::from_le_bytes(bytes[14..].try_into().unwrap()),
            };
            if d.flags & INDIRECT != 0 {
                return None;
            }
            flat.push(d);
            if d.flags & NEXT == 0 {
                return Some(flat);
            }
            index = d.next;
        }
        None
    }

    /// Readable and writable bytes of the chain at `head`, or none if it is malformed.
    fn expected(&self, guest: &Guest, head: u16) -> Option<(u32, u32)> {
        let flat = self.flatten(guest, head)?;
        let (mut readable, mut writable, mut writing) = (0_u32, 0_u32, false);
        for d in flat {
            let writes = d.flags & WRITE != 0;
            if (writing && !writes) || !Self::is_memory(d.addr, d.len) {
                return None;
            }
            writing |= writes;
            let sum = if writes { &mut writable } else { &mut readable };
            *sum = sum.checked_add(d.len)?;
        }
        readable.checked_add(writable)?;
        Some((readable, writable))
    }
}

/// Reads and writes every byte: a piece outside memory would fault here.
fn touch(pieces: &[Slice]) {
    let mut bytes = vec![0; total(pieces)];
    copy_out(pieces, &mut bytes);
    assert_eq!(copy_in(pieces, &bytes), bytes.len());
}

/// Both queues of a link on the same hostile ring, moved as a worker would.
fn drive_link(link: &mut Link, guest: &Guest) {
    let mut slices = Slices::new();
    for _ in 0..3 {
        slices.clear();
        while let Ok(Some(inbound)) = link.next_inbound(&mut slices) {
            assert_eq!(total(&slices[inbound.payload.clone()]), inbound.payload_len as usize);
            touch(&slices[inbound.payload]);
            link.finish_inbound(inbound.token);
        }
        let mut buffers = Vec::new();
        while let Ok(Some(buffer)) = link.next_buffer(&mut slices) {
            assert_eq!(total(&slices[buffer.header.clone()]), 44);
            assert_eq!(total(&slices[buffer.payload.clone()]), buffer.capacity as usize);
            buffers.push(buffer);
        }
        let keep = buffers.len() / 2;
        link.return_buffers((buffers.len() - keep) as u16);
        for buffer in &buffers[..keep] {
            link.send(buffer, &slices, &[7; 44], buffer.capacity);
        }
        link.publish().unwrap();
        link.arm();
        link.disarm();
    }
    assert!(!guest.memory.is_dead());
}

proptest! {
    #![proptest_config(proptest_config(400))]

    /// Each chain is exactly what the simple walk says, and the first malformed one stops the ring.
    #[test]
    fn hostile_descriptors_give_a_valid_chain_or_an_error(hostile in hostile()) {
        let guest = hostile.install();
        let mut ring = DeviceQueue::new(Arc::clone(&guest.memory), &guest.config).unwrap();
        let ahead = hostile.idx.wrapping_sub(hostile.base);
        let mut slices = Slices::new();
        if ahead > SIZE {
            prop_assert!(ring.pop(&mut slices).is_err());
            return Ok(());
        }
        for n in 0..ahead {
            let position = hostile.base.wrapping_add(n);
            let head = hostile.heads[usize::from(position % SIZE)];
            let before = slices.len();
            let popped = ring.pop(&mut slices);
            let Some((readable, writable)) = hostile.expected(&guest, head) else {
                prop_assert!(popped.is_err(), "{popped:?}");
                prop_assert_eq!(slices.len(), before);
                prop_assert_eq!(ring.pop(&mut slices), popped);
                return Ok(());
            };
            let chain = popped.unwrap().unwrap();
            prop_assert_eq!(
                (chain.head, chain.readable_len, chain.writable_len), (head, readable, writable));
            prop_assert_eq!((chain.readable.start, chain.writable.end), (before, slices.len()));
            prop_assert_eq!(chain.readable.end, chain.writable.start);
            prop_assert_eq!(total(&slices[chain.readable]), readable as usize);
            prop_assert_eq!(total(&slices[chain.writable]), writable as usize);
        }
        prop_assert_eq!(ring.pop(&mut slices), Ok(None));
    }

    /// Every byte of every chain can be read and written.
    #[test]
    fn hostile_descriptors_never_lead_outside_memory(hostile in hostile()) {
        let guest = hostile.install();
        let mut ring = DeviceQueue::new(Arc::clone(&guest.memory), &guest.config).unwrap();
        let mut slices = Slices::new();
        while let Ok(Some(chain)) = ring.pop(&mut slices) {
            touch(&slices);
            slices.clear();
            ring.push_used(chain.head, chain.writable_len);
        }
        ring.publish();
        ring.enable_kicks();
    }

    /// The packet path on such rings: short headers and wrong directions are completed, the rest is whole.
    #[test]
    fn hostile_rings_cannot_break_a_link(hostile in hostile()) {
        let guest = hostile.install();
        let mut device = DeviceLink::new();
        for queue in [RX_QUEUE, TX_QUEUE] {
            let call = Some(eventfd());
            device.start_queue(queue, &guest.memory, &guest.config, eventfd(), call).unwrap();
        }
        drive_link(&mut Link::Device(device), &guest);
    }

    /// Rings at any addresses and of any size: refused or usable, and used where they are.
    #[test]
    fn hostile_ring_config_is_refused_or_harmless(
        size in prop_oneof![Just(0_u16), Just(1), Just(8), Just(1024), any::<u16>()],
        desc in address(), avail in address(), used in address(), base: u16, event_idx: bool,
    ) {
        let guest = Guest::new(SIZE, event_idx);
        let config = vsock_virtio::queue::QueueConfig { size, desc, avail, used, base, event_idx };
        let ring = DeviceQueue::new(Arc::clone(&guest.memory), &config);
        let whole = |addr: u64, len: u64| guest.memory.piece(addr, len).is_ok();
        if let Ok(mut ring) = ring {
            prop_assert!(size.is_power_of_two() && size <= 32768);
            prop_assert!(whole(desc, 16 * u64::from(size)) && desc % 16 == 0);
            prop_assert!(whole(avail, 4 + 2 * u64::from(size)) && avail % 2 == 0);
            prop_assert!(whole(used, 4 + 8 * u64::from(size)) && used % 4 == 0);
            let mut slices = Slices::new();
            while let Ok(Some(chain)) = ring.pop(&mut slices) {
                ring.push_used(chain.head, 0);
            }
            ring.publish();
            ring.enable_kicks();
            ring.disable_kicks();
        }
    }
}
