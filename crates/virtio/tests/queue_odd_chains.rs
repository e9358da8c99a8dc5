//! Chains that are no packets: completed in their turn, counted, and never in the way of those that are.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod queue_support;

use proptest::prelude::*;
use queue_support::{Guest, LOW, NEXT, WRITE, desc, eventfd, proptest_config, read, write};
use vsock_guest_memory::slice::Slices;
use vsock_guest_memory::{GuestMemory, MemoryPolicy};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::spec::{RX_QUEUE, TX_QUEUE};

const SIZE: u16 = 8;

/// A device with one queue that a hand-written guest owns.
fn link(guest: &Guest, queue: usize) -> Link {
    let mut device = DeviceLink::new();
    device.start_queue(queue, &guest.memory, &guest.config, eventfd(), None).unwrap();
    Link::Device(device)
}

/// A guest that offers chains 0, 1, 2… of these descriptors.
fn offering(list: &[queue_support::Desc]) -> Guest {
    let guest = Guest::new(SIZE, true);
    guest.descriptors(list);
    for n in 0..SIZE {
        guest.head(n, n);
    }
    guest.avail_idx(list.len().try_into().unwrap());
    guest
}

#[test]
fn short_inbound_chain_is_completed_in_its_turn() {
    let guest = offering(&[
        desc(LOW, 44, 0, 0),
        desc(LOW, 43, 0, 0),
        desc(LOW, 0, 0, 0),
        desc(LOW, 50, 0, 0),
        desc(LOW, 100, WRITE, 0),
    ]);
    let mut link = link(&guest, TX_QUEUE);
    let mut slices = Slices::new();
    let first = link.next_inbound(&mut slices).unwrap().unwrap();
    let second = link.next_inbound(&mut slices).unwrap().unwrap();
    assert_eq!((first.payload_len, second.payload_len), (0, 6));
    assert_eq!(link.next_inbound(&mut slices), Ok(None));
    link.publish().unwrap();
    assert_eq!(guest.used_idx(), 0, "those of no use wait for the first");
    link.finish_inbound(first.token);
    link.publish().unwrap();
    assert_eq!(guest.used_idx(), 3);
    link.finish_inbound(second.token);
    link.publish().unwrap();
    let used: Vec<_> = (0..5).map(|n| guest.used(n)).collect();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]);
    assert_eq!((guest.used_idx(), link.stats().skipped), (5, 3));
}

#[test]
fn trap_13_used_length_is_exact_on_rx_and_zero_on_tx() {
    let guest = offering(&[desc(LOW, 3776, WRITE, 0), desc(LOW, 3776, WRITE, 0)]);
    let mut rx = link(&guest, RX_QUEUE);
    for len in [0, 3732] {
        let mut slices = Slices::new();
        let buffer = rx.next_buffer(&mut slices).unwrap().unwrap();
        rx.send(&buffer, &slices, &[0; 44], len);
    }
    rx.publish().unwrap();
    assert_eq!([guest.used(0), guest.used(1)], [(0, 44), (1, 44 + 3732)]);

    let guest = offering(&[desc(LOW, 1000, 0, 0)]);
    let mut tx = link(&guest, TX_QUEUE);
    let packet = tx.next_inbound(&mut Slices::new()).unwrap().unwrap();
    tx.finish_inbound(packet.token);
    tx.publish().unwrap();
    assert_eq!(guest.used(0), (0, 0));
}

#[test]
fn chain_with_parts_of_the_other_direction_is_no_packet() {
    let guest = offering(&[desc(LOW, 100, NEXT, 1), desc(LOW, 100, WRITE, 0)]);
    guest.avail_idx(1);
    for queue in [TX_QUEUE, RX_QUEUE] {
        let mut link = link(&guest, queue);
        let mut slices = Slices::new();
        assert_eq!(link.next_inbound(&mut slices), Ok(None));
        assert_eq!(link.next_buffer(&mut slices), Ok(None));
        assert_eq!((slices.len(), link.stats().skipped), (0, 1));
    }
}

#[test]
fn outbound_chain_that_holds_no_packet_is_completed_in_its_turn() {
    let guest = offering(&[
        desc(LOW, 10, WRITE, 0),
        desc(LOW, 45, WRITE, 0),
        desc(LOW, 100, 0, 0),
        desc(LOW, 44, WRITE, 0),
        desc(LOW, 54, WRITE, 0),
    ]);
    let mut link = link(&guest, RX_QUEUE);
    let mut slices = Slices::new();
    let first = link.next_buffer(&mut slices).unwrap().unwrap();
    let second = link.next_buffer(&mut slices).unwrap().unwrap();
    assert_eq!((first.capacity, second.capacity), (1, 10));
    link.send(&first, &slices, &[1; 44], 0);
    link.send(&second, &slices, &[2; 44], 10);
    link.publish().unwrap();
    let used: Vec<_> = (0..5).map(|n| guest.used(n)).collect();
    assert_eq!(used, [(0, 0), (1, 44), (2, 0), (3, 0), (4, 54)]);
    assert_eq!((guest.used_idx(), link.stats().skipped), (5, 3));
}

#[test]
fn odd_chains_without_end_do_not_keep_us() {
    const MANY: u16 = 500;
    // (queue, of no use there, of use)
    for (queue, odd, packet) in [(TX_QUEUE, (43, 0), (44, 0)), (RX_QUEUE, (44, WRITE), (45, WRITE))]
    {
        let guest = Guest::new(512, true);
        guest.descriptors(&[desc(LOW, odd.0, odd.1, 0), desc(LOW, packet.0, packet.1, 0)]);
        for position in 0..=MANY {
            guest.head(position, u16::from(position == MANY));
        }
        guest.avail_idx(MANY + 1);
        let (mut link, mut slices) = (link(&guest, queue), Slices::new());
        let mut is_found = |link: &mut Link| {
            if queue == TX_QUEUE {
                link.next_inbound(&mut slices).unwrap().is_some()
            } else {
                link.next_buffer(&mut slices).unwrap().is_some()
            }
        };
        assert!(!is_found(&mut link), "others have their turn");
        assert!((1..u64::from(MANY)).contains(&link.stats().skipped));
        assert!(link.arm(), "and then we go on");
        assert!(is_found(&mut link));
        assert_eq!(link.stats().skipped, u64::from(MANY));
    }
}

#[test]
fn what_a_packet_has_cost_is_told_with_it_and_long_chains_of_no_use_end_the_search_soon() {
    const LONG: u16 = 200;
    let guest = Guest::new(256, true);
    // A chain of one header and many empty descriptors, and one of empty ones alone.
    let mut list = vec![desc(LOW, 44, NEXT, 1)];
    list.extend((1..LONG).map(|n| desc(LOW, 0, if n + 1 < LONG { NEXT } else { 0 }, n + 1)));
    guest.descriptors(&list);
    for (position, head) in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 0)] {
        guest.head(position, head);
    }
    guest.avail_idx(5);
    let (mut link, mut slices) = (link(&guest, TX_QUEUE), Slices::new());
    let packet = link.next_inbound(&mut slices).unwrap().unwrap();
    assert_eq!(packet.steps, u32::from(LONG));
    assert_eq!(link.next_inbound(&mut slices), Ok(None), "others have their turn");
    link.finish_inbound(packet.token);
    assert_eq!(link.stats().skipped, 2, "after so many descriptors, not after so many chains");
    let packet = link.next_inbound(&mut slices).unwrap().unwrap();
    assert_eq!(packet.steps, 2 * u32::from(LONG) - 1, "those of no use before it are its cost");
}

#[test]
fn returned_space_takes_the_odd_chains_behind_it_along() {
    let guest = offering(&[
        desc(LOW, 54, WRITE, 0),
        desc(LOW, 10, WRITE, 0),
        desc(LOW, 64, WRITE, 0),
        desc(LOW, 11, WRITE, 0),
    ]);
    let mut link = link(&guest, RX_QUEUE);
    let mut slices = Slices::new();
    let first = link.next_buffer(&mut slices).unwrap().unwrap();
    link.next_buffer(&mut slices).unwrap().unwrap();
    assert_eq!(link.next_buffer(&mut slices), Ok(None));
    link.return_buffers(1);
    link.send(&first, &slices, &[1; 44], 0);
    let second = link.next_buffer(&mut slices).unwrap().unwrap();
    assert_eq!(second.capacity, 20);
    link.send(&second, &slices, &[1; 44], 20);
    assert_eq!(link.next_buffer(&mut slices), Ok(None));
    link.publish().unwrap();
    let used: Vec<_> = (0..4).map(|n| guest.used(n)).collect();
    assert_eq!(used, [(0, 44), (1, 0), (2, 64), (3, 0)]);
    assert_eq!(link.stats().skipped, 2);
}

#[test]
fn space_larger_than_a_packet_is_cut() {
    let guest = offering(&[desc(LOW, 0x1_8000, WRITE, 0)]);
    let mut slices = Slices::new();
    let buffer = link(&guest, RX_QUEUE).next_buffer(&mut slices).unwrap().unwrap();
    assert_eq!(buffer.capacity, 65536);
    assert_eq!(vsock_guest_memory::slice::total(&slices[buffer.payload]), 65536);
}

#[test]
fn header_in_pieces_is_read_and_written_whole() {
    let bytes: Vec<u8> = (0..100).collect();
    let cuts = |write| {
        [
            desc(LOW, 1, NEXT | write, 1),
            desc(LOW + 1, 42, NEXT | write, 2),
            desc(LOW + 43, 57, write, 0),
        ]
    };
    let guest = offering(&cuts(0));
    guest.avail_idx(1);
    write(&guest.memory, LOW, &bytes);
    let mut slices = Slices::new();
    let inbound = link(&guest, TX_QUEUE).next_inbound(&mut slices).unwrap().unwrap();
    assert_eq!((&inbound.header[..], inbound.payload_len), (&bytes[..44], 56));
    let mut payload = [0; 56];
    vsock_guest_memory::slice::copy_out(&slices[inbound.payload], &mut payload);
    assert_eq!(payload, bytes[44..]);

    let guest = offering(&cuts(WRITE));
    guest.avail_idx(1);
    let mut link = link(&guest, RX_QUEUE);
    slices.clear();
    let buffer = link.next_buffer(&mut slices).unwrap().unwrap();
    vsock_guest_memory::slice::copy_in(&slices[buffer.payload.clone()], &bytes[44..]);
    link.send(&buffer, &slices, &bytes[..44].try_into().unwrap(), 56);
    assert_eq!(read(&guest.memory, LOW, 100), bytes);
}

/// The driver's end, and the ring of its receive queue as a hostile device sees it.
fn driver() -> (Link, Guest) {
    let options = DriverOptions { rx_buffers: SIZE, rx_payload: 6, ..DriverOptions::default() };
    let mut driver = DriverLink::new(&options).unwrap();
    driver.set_event_idx(true);
    let region = driver.region().to_region().unwrap();
    let memory = GuestMemory::map(vec![region], MemoryPolicy::RecordSeals).unwrap();
    let config = driver.queue_config(RX_QUEUE).unwrap();
    (Link::Driver(driver), Guest { memory, config })
}

#[test]
fn used_buffer_without_a_header_is_offered_again() {
    let (mut link, device) = driver();
    for n in 0..SIZE {
        device.set_used(n, n.into(), if n == 3 { 44 } else { 43 });
    }
    device.set_used_idx(SIZE);
    let mut slices = Slices::new();
    let inbound = link.next_inbound(&mut slices).unwrap().unwrap();
    assert_eq!(inbound.payload_len, 0);
    assert_eq!(link.next_inbound(&mut slices), Ok(None));
    link.publish().unwrap();
    let avail = |device: &Guest| queue_support::read_u16(&device.memory, device.config.avail + 2);
    assert_eq!((link.stats().skipped, avail(&device)), (7, 15));
    link.finish_inbound(inbound.token);
    link.publish().unwrap();
    assert_eq!(avail(&device), 16);
}

proptest! {
    #![proptest_config(proptest_config(300))]

    /// A device that writes anything into the used ring and the descriptors of a driver gets packets inside
    /// buffers, or an error.
    #[test]
    fn hostile_device_cannot_break_a_driver_link(
        rounds in prop::collection::vec(
            prop::collection::vec((0..SIZE, 0..u32::from(SIZE) + 1, 0..52_u32), 0..12), 1..20),
        jumps in prop::collection::vec(0..10_u16, 20),
    ) {
        let (mut link, device) = driver();
        let mut idx = 0_u16;
        for (round, jump) in rounds.into_iter().zip(jumps) {
            for (position, id, len) in round {
                device.set_used(position, id, len);
                device.put(device.config.desc, position, desc(u64::from(id), len, u16::MAX, 9));
            }
            idx = idx.wrapping_add(jump);
            device.set_used_idx(idx);
            let mut slices = Slices::new();
            loop {
                match link.next_inbound(&mut slices) {
                    Ok(Some(inbound)) => {
                        prop_assert!(inbound.payload_len <= 6);
                        link.finish_inbound(inbound.token);
                    }
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
            link.publish().unwrap();
        }
    }
}
