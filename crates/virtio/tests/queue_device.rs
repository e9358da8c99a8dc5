//! The device's side of a ring against a driver written byte by byte.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod queue_support;

use std::sync::Arc;

use queue_support::{Desc, Guest, HIGH, INDIRECT, LOW, NEXT, REGION_LEN, WRITE, config, desc};
use queue_support::{memory, read, write};
use vsock_guest_memory::slice::{Slice, Slices, copy_out};
use vsock_virtio::queue::{DeviceQueue, QueueConfig, QueueError};

fn ring(guest: &Guest) -> DeviceQueue {
    DeviceQueue::new(Arc::clone(&guest.memory), &guest.config).unwrap()
}

/// A guest that offers one chain of these descriptors.
fn offering(list: &[Desc]) -> Guest {
    let guest = Guest::new(8, false);
    guest.descriptors(list);
    guest.avail_idx(1);
    guest
}

/// Pops the chain that these descriptors make: piece lengths of both parts.
fn pop(list: &[Desc]) -> Result<(Vec<usize>, Vec<usize>), QueueError> {
    pop_from(&offering(list))
}

fn pop_from(guest: &Guest) -> Result<(Vec<usize>, Vec<usize>), QueueError> {
    let mut slices = Slices::new();
    let chain = ring(guest).pop(&mut slices)?.unwrap();
    let lens = |pieces: &[Slice]| pieces.iter().map(Slice::len).collect::<Vec<_>>();
    let (readable, writable) = (&slices[chain.readable], &slices[chain.writable]);
    assert_eq!(lens(readable).iter().sum::<usize>(), chain.readable_len as usize);
    assert_eq!(lens(writable).iter().sum::<usize>(), chain.writable_len as usize);
    Ok((lens(readable), lens(writable)))
}

#[test]
fn queue_size_that_is_not_allowed_is_refused() {
    for size in [0, 3, 6, 1000, 32767, 32769, u16::MAX] {
        let config = QueueConfig { size, ..config(8, true) };
        let error = DeviceQueue::new(memory(), &config).err();
        assert_eq!(error, Some(QueueError::BadSize(size)));
    }
    for size in [1, 2, 1024] {
        assert!(DeviceQueue::new(memory(), &config(size, true)).is_ok(), "{size}");
    }
    // 32768 entries are in queue_largest.rs.
}

#[test]
fn ring_area_outside_memory_or_unaligned_is_refused() {
    let good = config(8, true);
    let border = LOW + REGION_LEN;
    for bad in [
        QueueConfig { desc: good.desc + 8, ..good },
        QueueConfig { avail: good.avail + 1, ..good },
        QueueConfig { used: good.used + 2, ..good },
        QueueConfig { desc: 0, ..good },
        QueueConfig { avail: u64::MAX - 1, ..good },
        QueueConfig { used: border - 4, ..good },
    ] {
        assert!(
            matches!(DeviceQueue::new(memory(), &bad), Err(QueueError::OutsideMemory(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn empty_ring_is_none_and_no_error() {
    let guest = Guest::new(8, true);
    assert_eq!(ring(&guest).pop(&mut Slices::new()), Ok(None));
    assert_eq!(ring(&guest).available(), 0);
}

#[test]
fn trap_12_any_descriptor_layout_is_popped() {
    assert_eq!(pop(&[desc(LOW, 44, 0, 0)]), Ok((vec![44], vec![])));
    assert_eq!(pop(&[desc(LOW, 44, WRITE, 0)]), Ok((vec![], vec![44])));
    let split_header =
        [desc(LOW, 40, NEXT, 3), desc(0, 0, 0, 0), desc(LOW, 100, 0, 0), desc(HIGH, 4, NEXT, 2)];
    assert_eq!(pop(&split_header), Ok((vec![40, 4, 100], vec![])));
    let both = [desc(LOW, 4, NEXT, 1), desc(HIGH, 10, NEXT | WRITE, 2), desc(LOW, 1, WRITE, 0)];
    assert_eq!(pop(&both), Ok((vec![4], vec![10, 1])));
    let border = [desc(LOW + REGION_LEN - 1, 3, NEXT, 1), desc(LOW, 0, 0, 0)];
    assert_eq!(pop(&border), Ok((vec![1, 2], vec![])));
}

#[test]
fn chain_as_long_as_the_ring_is_popped() {
    let list: Vec<Desc> =
        (0..8).map(|i| desc(LOW, 1, if i < 7 { NEXT } else { 0 }, i + 1)).collect();
    assert_eq!(pop(&list), Ok((vec![1; 8], vec![])));
}

#[test]
fn indirect_table_is_followed_at_any_alignment() {
    for table in [HIGH, HIGH + 3] {
        let guest = offering(&[desc(LOW, 1, NEXT, 1), desc(table, 3 * 16, INDIRECT | WRITE, 0)]);
        guest.put(table, 0, desc(LOW, 44, NEXT, 2));
        guest.put(table, 2, desc(LOW, 100, NEXT, 1));
        guest.put(table, 1, desc(LOW, 7, WRITE, 0));
        assert_eq!(pop_from(&guest), Ok((vec![1, 44, 100], vec![7])));
    }
}

#[test]
fn indirect_table_longer_than_the_ring_is_followed() {
    let guest = offering(&[desc(HIGH, 17 * 16, INDIRECT, 0)]);
    for i in 0..17 {
        guest.put(HIGH, i, desc(LOW, 1, if i < 16 { NEXT } else { 0 }, i + 1));
    }
    assert_eq!(pop_from(&guest), Ok((vec![1; 17], vec![])));
}

#[test]
fn malformed_chain_is_its_own_error() {
    use QueueError::{BadIndex, BadIndirect, Loop, ReadableAfterWritable, TooLong};
    assert_eq!(pop(&[desc(LOW, 1, NEXT, 0)]), Err(Loop));
    assert_eq!(pop(&[desc(LOW, 1, NEXT, 8)]), Err(BadIndex(8)));
    let order = [desc(LOW, 1, WRITE | NEXT, 1), desc(LOW, 1, 0, 0)];
    assert_eq!(pop(&order), Err(ReadableAfterWritable));
    assert!(matches!(pop(&[desc(0, 1, 0, 0)]), Err(QueueError::OutsideMemory(_))));
    assert!(matches!(pop(&[desc(LOW, u32::MAX, 0, 0)]), Err(QueueError::OutsideMemory(_))));
    assert!(matches!(pop(&[desc(u64::MAX, 1, 0, 0)]), Err(QueueError::OutsideMemory(_))));
    for len in [0, 15, 17, 32769 * 16] {
        assert_eq!(pop(&[desc(HIGH, len, INDIRECT, 0)]), Err(BadIndirect(len)));
    }
    assert_eq!(pop(&[desc(HIGH, 16, INDIRECT | NEXT, 1)]), Err(BadIndirect(16)));
    let guest = offering(&[desc(HIGH, 16, INDIRECT, 0)]);
    guest.put(HIGH, 0, desc(HIGH, 16, INDIRECT, 0));
    assert_eq!(pop_from(&guest), Err(BadIndirect(16)));
    guest.put(HIGH, 0, desc(LOW, 1, NEXT, 0));
    assert_eq!(pop_from(&guest), Err(Loop));
    let guest = offering(&[desc(HIGH, 32, INDIRECT, 0)]);
    guest.put(HIGH, 0, desc(LOW, 1, NEXT, 2));
    assert_eq!(pop_from(&guest), Err(BadIndex(2)));
    // Two buffers that are fine by themselves and too much together cannot fit in this memory; lengths are
    // summed before the address is looked at.
    let sum = [desc(LOW, 1, NEXT, 1), desc(LOW, u32::MAX, 0, 0)];
    assert_eq!(pop(&sum), Err(TooLong));
}

#[test]
fn head_past_the_table_is_refused() {
    let guest = offering(&[]);
    guest.head(0, 8);
    assert_eq!(pop_from(&guest), Err(QueueError::BadIndex(8)));
}

#[test]
fn more_heads_than_entries_stop_the_ring() {
    for idx in [9, 300, u16::MAX] {
        let guest = offering(&[desc(LOW, 1, 0, 0)]);
        guest.avail_idx(idx);
        let mut ring = ring(&guest);
        let error = Err(QueueError::TooManyHeads(idx));
        assert_eq!(ring.pop(&mut Slices::new()), error);
        guest.avail_idx(1);
        assert_eq!(ring.pop(&mut Slices::new()), error, "for ever");
        assert_eq!(ring.available(), 0);
        assert!(!ring.enable_kicks());
    }
}

#[test]
fn heads_in_flight_count_against_the_entries() {
    let guest = offering(&[desc(LOW, 1, 0, 0)]);
    guest.avail_idx(8);
    let mut ring = ring(&guest);
    for _ in 0..8 {
        assert!(ring.pop(&mut Slices::new()).unwrap().is_some());
    }
    guest.avail_idx(9);
    assert_eq!(ring.pop(&mut Slices::new()), Err(QueueError::TooManyHeads(9)));
}

#[test]
fn available_index_that_goes_back_stops_the_ring() {
    let guest = offering(&[desc(LOW, 1, 0, 0)]);
    guest.avail_idx(3);
    let mut ring = ring(&guest);
    for _ in 0..3 {
        ring.pop(&mut Slices::new()).unwrap().unwrap();
    }
    guest.avail_idx(2);
    assert_eq!(ring.pop(&mut Slices::new()), Err(QueueError::TooManyHeads(2)));
}

#[test]
fn malformed_chain_leaves_earlier_pieces_alone() {
    let guest = offering(&[desc(LOW, 5, 0, 0), desc(LOW, 5, NEXT, 9)]);
    guest.head(1, 1);
    guest.avail_idx(2);
    let mut ring = ring(&guest);
    let mut slices = Slices::new();
    let first = ring.pop(&mut slices).unwrap().unwrap();
    assert!(ring.pop(&mut slices).is_err());
    assert_eq!((slices.len(), first.readable), (1, 0..1));
}

#[test]
fn ring_that_was_malformed_once_stays_unusable() {
    let guest = offering(&[desc(LOW, 1, NEXT, 9)]);
    let mut ring = ring(&guest);
    assert_eq!(ring.pop(&mut Slices::new()), Err(QueueError::BadIndex(9)));
    guest.descriptors(&[desc(LOW, 1, 0, 0)]);
    assert_eq!(ring.pop(&mut Slices::new()), Err(QueueError::BadIndex(9)));
}

#[test]
fn used_entries_become_visible_with_publish() {
    let guest = offering(&[desc(LOW, 5, 0, 0), desc(LOW, 5, 0, 0)]);
    guest.head(1, 1);
    guest.avail_idx(2);
    let mut ring = ring(&guest);
    let mut slices = Slices::new();
    for len in [7, 9] {
        let chain = ring.pop(&mut slices).unwrap().unwrap();
        ring.push_used(chain.head, len);
    }
    assert_eq!(guest.used_idx(), 0);
    assert!(ring.publish());
    assert_eq!((guest.used_idx(), guest.used(0), guest.used(1)), (2, (0, 7), (1, 9)));
    assert!(!ring.publish(), "nothing new");
}

#[test]
fn chain_that_is_given_back_untouched_is_popped_again() {
    let guest = offering(&[desc(LOW, 5, 0, 0), desc(LOW, 6, 0, 0), desc(LOW, 7, 0, 0)]);
    guest.head(1, 1);
    guest.head(2, 2);
    guest.avail_idx(3);
    let mut ring = ring(&guest);
    let mut slices = Slices::new();
    assert_eq!(ring.available(), 3);
    for _ in 0..3 {
        ring.pop(&mut slices).unwrap().unwrap();
    }
    assert_eq!((ring.available(), ring.next_avail()), (0, 0));
    ring.unpop(2);
    assert_eq!(ring.available(), 2);
    assert_eq!(ring.pop(&mut slices).unwrap().unwrap().readable_len, 6);
    ring.push_used(0, 0);
    assert_eq!(ring.next_avail(), 1);
}

#[test]
fn ring_goes_on_at_the_used_index_whatever_the_base_is() {
    let guest = offering(&[desc(LOW, 5, 0, 0), desc(LOW, 6, 0, 0)]);
    guest.set_used_idx(41);
    guest.head(41, 1);
    guest.avail_idx(42);
    for base in [0, 40, 41, 42, 49, u16::MAX] {
        let config = QueueConfig { base, ..guest.config };
        let mut ring = DeviceQueue::new(Arc::clone(&guest.memory), &config).unwrap();
        assert_eq!((ring.next_avail(), ring.available()), (41, 1), "base {base}");
        assert_eq!(ring.pop(&mut Slices::new()).unwrap().map(|chain| chain.head), Some(1));
    }
    // More than the ring can hold, or an index that went back: no driver to go on with.
    for idx in [40, 50] {
        guest.avail_idx(idx);
        let error = Err(QueueError::TooManyHeads(idx.wrapping_sub(41)));
        assert_eq!(ring(&guest).pop(&mut Slices::new()), error);
    }
}

#[test]
fn successor_goes_on_from_the_base() {
    let guest = offering(&[desc(LOW, 5, 0, 0), desc(LOW, 6, 0, 0)]);
    guest.head(1, 1);
    guest.avail_idx(2);
    let mut first = ring(&guest);
    let mut slices = Slices::new();
    let chain = first.pop(&mut slices).unwrap().unwrap();
    first.push_used(chain.head, 0);
    first.publish();
    first.pop(&mut slices).unwrap().unwrap();
    let config = QueueConfig { base: first.next_avail(), ..guest.config };
    assert_eq!(config.base, 1);
    let mut second = DeviceQueue::new(Arc::clone(&guest.memory), &config).unwrap();
    let chain = second.pop(&mut slices).unwrap().unwrap();
    assert_eq!((chain.head, chain.readable_len), (1, 6));
    second.push_used(chain.head, 3);
    second.publish();
    assert_eq!((guest.used_idx(), guest.used(1)), (2, (1, 3)));
}

/// Completes `n` more chains in one batch; whether that wants a signal.
fn complete(guest: &Guest, ring: &mut DeviceQueue, n: u16) -> bool {
    let mut slices = Slices::new();
    guest.avail_idx(ring.next_avail().wrapping_add(n));
    for _ in 0..n {
        let chain = ring.pop(&mut slices).unwrap().unwrap();
        ring.push_used(chain.head, 0);
    }
    ring.publish()
}

#[test]
fn event_index_decides_on_calls_also_past_the_wrap() {
    let guest = Guest::new(8, true);
    guest.descriptors(&[desc(LOW, 1, 0, 0)]);
    let mut ring = ring(&guest);
    guest.used_event(100);
    assert!(complete(&guest, &mut ring, 1), "the first batch always signals");
    for _ in 0..3 * 65536 / 8 {
        let at = ring.next_avail();
        guest.used_event(at);
        assert!(complete(&guest, &mut ring, 1));
        assert!(!complete(&guest, &mut ring, 2), "not asked again");
        guest.used_event(at.wrapping_add(7));
        assert!(!complete(&guest, &mut ring, 4), "one short of it");
        assert!(complete(&guest, &mut ring, 1));
    }
}

#[test]
fn flag_decides_on_calls_without_event_index() {
    let guest = Guest::new(8, false);
    guest.descriptors(&[desc(LOW, 1, 0, 0)]);
    let mut ring = ring(&guest);
    guest.avail_flags(1);
    assert!(complete(&guest, &mut ring, 1), "the first batch always signals");
    assert!(!complete(&guest, &mut ring, 1));
    guest.avail_flags(0);
    assert!(complete(&guest, &mut ring, 1));
}

#[test]
fn kicks_are_asked_for_by_event_index() {
    let guest = Guest::new(8, true);
    guest.descriptors(&[desc(LOW, 1, 0, 0)]);
    let mut ring = ring(&guest);
    complete(&guest, &mut ring, 5);
    assert!(!ring.enable_kicks());
    assert_eq!(guest.avail_event(), 5);
    guest.avail_idx(6);
    assert!(ring.enable_kicks(), "one came in between");
    ring.disable_kicks();
    assert_eq!(guest.avail_event(), 4);
}

#[test]
fn kicks_are_asked_for_by_flag_without_event_index() {
    let guest = Guest::new(8, false);
    let mut ring = ring(&guest);
    ring.disable_kicks();
    assert_eq!(guest.used_flags(), 1);
    assert!(!ring.enable_kicks());
    assert_eq!(guest.used_flags(), 0);
    guest.avail_idx(1);
    assert!(ring.enable_kicks());
}

#[test]
fn bytes_of_a_chain_are_those_of_its_descriptors() {
    let guest = offering(&[desc(LOW + REGION_LEN - 2, 4, NEXT, 1), desc(HIGH, 3, 0, 0)]);
    write(&guest.memory, LOW + REGION_LEN - 2, b"abcd");
    write(&guest.memory, HIGH, b"efg");
    let mut slices = Slices::new();
    let chain = ring(&guest).pop(&mut slices).unwrap().unwrap();
    let mut bytes = [0; 7];
    assert_eq!(copy_out(&slices[chain.readable], &mut bytes), 7);
    assert_eq!(&bytes, b"abcdefg");
    assert_eq!(read(&guest.memory, HIGH, 3), b"efg");
}
