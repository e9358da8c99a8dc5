//! The device's end of a link is saved and restored elsewhere, in the midst of packets.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod queue_support;

use proptest::prelude::*;
use queue_support::pair::{Pair, receive, send};
use queue_support::{Random, proptest_config, signals};
use vsock_core::saved::Unfit;
use vsock_guest_memory::slice::Slices;
use vsock_virtio::link::Link;
use vsock_virtio::link::device::{DeviceLink, SavedDevice, SavedReset};
use vsock_virtio::queue::SavedQueue;
use vsock_virtio::saved::{Fds, SavedFd, SavedFds};
use vsock_virtio::spec::{EVENT_QUEUE, QUEUE_COUNT, RX_QUEUE, TRANSPORT_RESET, TX_QUEUE};

/// Saves the device of a pair, changes what is saved, and restores it.
fn restored(pair: &mut Pair, spoil: impl FnOnce(&mut SavedDevice)) -> Result<DeviceLink, Unfit> {
    let mut list = SavedFds::new();
    let mut saved = pair.device().save(&mut list);
    let mut fds = Fds::new(list.duplicate().unwrap());
    spoil(&mut saved);
    let memory = pair.memory.clone();
    let device = DeviceLink::restore(saved, Some(&memory), &mut fds)?;
    fds.finish()?;
    Ok(device)
}

fn hand_over(pair: &mut Pair) {
    pair.device = Link::Device(restored(pair, |_| {}).unwrap());
}

#[test]
fn packets_arrive_in_order_over_a_device_that_is_handed_over_again_and_again() {
    for event_idx in [true, false] {
        let (mut random, mut pair) = (Random::new(3), Pair::small(event_idx));
        let (mut sent, mut received) = ([0; 2], [0; 2]);
        for _ in 0..2000 {
            for _ in 0..random.below(30) {
                sent[0] += u32::from(send(&mut pair.driver, sent[0], b"to the device"));
                sent[1] += u32::from(send(&mut pair.device, sent[1], b"to the driver"));
            }
            if random.below(2) == 0 {
                pair.driver.publish().unwrap();
            }
            // What is not visible yet is handed over as such.
            hand_over(&mut pair);
            if random.below(2) == 0 {
                pair.device.publish().unwrap();
            }
            while random.below(20) > 0
                && let Some((number, _)) = receive(&mut pair.device)
            {
                assert_eq!(number, received[0]);
                received[0] += 1;
            }
            while let Some((number, _)) = receive(&mut pair.driver) {
                assert_eq!(number, received[1]);
                received[1] += 1;
            }
        }
        pair.driver.publish().unwrap();
        pair.device.publish().unwrap();
        while receive(&mut pair.device).is_some() {
            received[0] += 1;
        }
        while receive(&mut pair.driver).is_some() {
            received[1] += 1;
        }
        assert_eq!(sent, received);
    }
}

#[test]
fn chain_in_use_is_taken_again() {
    let mut pair = Pair::small(true);
    assert!(send(&mut pair.driver, 7, b"half taken"));
    pair.driver.publish().unwrap();
    assert!(pair.device.next_inbound(&mut Slices::new()).unwrap().is_some());
    hand_over(&mut pair);
    assert_eq!(receive(&mut pair.device), Some((7, b"half taken".to_vec())));
}

#[test]
fn driver_that_sleeps_is_signalled_by_the_successor() {
    let mut pair = Pair::small(true);
    pair.sleep();
    hand_over(&mut pair);
    assert!(send(&mut pair.device, 1, b"wake"));
    pair.device.publish().unwrap();
    assert_eq!(signals(&pair.calls[RX_QUEUE]), 1);
}

#[test]
fn reset_under_way_holds_packets_back_after_the_hand_over_too() {
    let mut pair = Pair::small(true);
    assert!(pair.device().announce_reset());
    hand_over(&mut pair);
    assert!(!send(&mut pair.device, 1, b"later"));
    pair.device.publish().unwrap();
    hand_over(&mut pair);
    assert!(!send(&mut pair.device, 1, b"later"));
    assert_eq!(pair.driver().next_event(), Ok(Some(TRANSPORT_RESET)));
    pair.driver.publish().unwrap();
    assert!(send(&mut pair.device, 1, b"now"));
}

#[test]
fn index_in_memory_does_not_move_the_successor() {
    let mut pair = Pair::small(true);
    assert!(send(&mut pair.driver, 0, b"one"));
    pair.driver.publish().unwrap();
    assert!(receive(&mut pair.device).is_some());
    pair.device.publish().unwrap();
    let config = pair.driver().queue_config(TX_QUEUE).unwrap();
    queue_support::write(&pair.memory, config.used + 2, &99u16.to_le_bytes());
    hand_over(&mut pair);
    assert_eq!(
        pair.device().save(&mut SavedFds::new()).queues[TX_QUEUE].unwrap().queue.config.base,
        1
    );
}

fn spoiled(spoil: impl FnOnce(&mut SavedDevice)) -> Option<Unfit> {
    let mut pair = Pair::small(true);
    assert!(send(&mut pair.device, 1, b"not visible"));
    restored(&mut pair, spoil).err()
}

fn queue(saved: &mut SavedDevice) -> &mut SavedQueue {
    &mut saved.queues[RX_QUEUE].as_mut().unwrap().queue
}

#[test]
fn device_that_cannot_be_is_not_restored() {
    assert_eq!(spoiled(|_| {}), None);
    let unfit = Some(Unfit::Queue);
    assert_eq!(spoiled(|it| queue(it).config.size = 3), unfit);
    assert_eq!(spoiled(|it| queue(it).config.desc = 0), unfit);
    assert_eq!(spoiled(|it| queue(it).config.used += 1), unfit);
    assert_eq!(spoiled(|it| queue(it).published = 2), unfit);
    assert_eq!(spoiled(|it| it.reset = SavedReset::Sent(32769)), unfit);
    let unfit = Some(Unfit::Descriptor);
    assert_eq!(spoiled(|it| it.queues[EVENT_QUEUE] = None), unfit);
    assert_eq!(spoiled(|it| it.queues[EVENT_QUEUE].as_mut().unwrap().kick = SavedFd(0)), unfit);
    assert_eq!(spoiled(|it| it.queues[EVENT_QUEUE].as_mut().unwrap().call = None), unfit);
}

#[test]
fn device_whose_memory_is_gone_is_restored_with_its_queues_stopped() {
    let mut pair = Pair::small(true);
    let mut list = SavedFds::new();
    let saved = pair.device().save(&mut list);
    let mut fds = Fds::new(list.duplicate().unwrap());
    let device = DeviceLink::restore(saved, None, &mut fds).unwrap();
    assert!((0..QUEUE_COUNT).all(|queue| !device.is_running(queue)));
    assert_eq!(fds.finish(), Ok(()));
}

proptest! {
    #![proptest_config(proptest_config(300))]

    /// Numbers of all kinds give a device that can be used, or none.
    #[test]
    fn device_of_any_numbers_is_refused_or_usable(
        which in 0..QUEUE_COUNT, size: u16, base: u16, published: u16, shift in 0..64u64, field in 0..4,
    ) {
        let mut pair = Pair::small(true);
        let device = restored(&mut pair, |saved| {
            let queue = &mut saved.queues[which].as_mut().unwrap().queue;
            match field {
                0 => queue.config.size = size,
                1 => (queue.config.base, queue.published) = (base, published),
                2 => queue.config.avail = queue.config.avail.wrapping_add(1 << shift),
                _ => queue.config.used = queue.config.used.wrapping_sub(1 << shift),
            }
        });
        if let Ok(device) = device {
            let mut link = Link::Device(device);
            let mut slices = Slices::new();
            // The driver's indexes are what such a device finds wrong, if anything.
            let _ = link.next_inbound(&mut slices);
            let _ = link.next_buffer(&mut slices);
            link.publish().unwrap();
            link.arm();
        }
    }
}
