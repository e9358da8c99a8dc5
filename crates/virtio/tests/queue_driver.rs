//! The driver's side of a ring against a device written byte by byte: an honest one and a hostile one.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod queue_support;

use std::sync::Arc;

use proptest::prelude::*;
use queue_support::{Guest, LOW, proptest_config};
use vsock_guest_memory::slice::Slices;
use vsock_virtio::queue::{DeviceQueue, DriverQueue, QueueConfig, QueueError, QueueFull};

fn driver(guest: &Guest) -> DriverQueue {
    DriverQueue::new(Arc::clone(&guest.memory), &guest.config).unwrap()
}

fn device(guest: &Guest) -> DeviceQueue {
    DeviceQueue::new(Arc::clone(&guest.memory), &guest.config).unwrap()
}

#[test]
fn chain_arrives_as_offered() {
    let guest = Guest::new(8, true);
    let (mut driver, mut device) = (driver(&guest), device(&guest));
    let head = driver.add(&[(LOW, 44), (LOW + 100, 5)], &[(LOW + 200, 7)]).unwrap();
    let mut slices = Slices::new();
    assert_eq!(device.pop(&mut slices), Ok(None), "not published yet");
    driver.publish();
    let chain = device.pop(&mut slices).unwrap().unwrap();
    assert_eq!((chain.head, chain.readable_len, chain.writable_len), (head, 49, 7));
    assert_eq!(driver.pop_used(), Ok(None));
    device.push_used(head, 6);
    device.publish();
    assert_eq!(driver.pop_used(), Ok(Some((head, 6))));
    assert_eq!(driver.free_descriptors(), 8);
}

#[test]
fn device_knows_when_the_driver_has_taken_everything_if_the_driver_tells() {
    for event_idx in [true, false] {
        let guest = Guest::new(8, event_idx);
        let (mut driver, mut device) = (driver(&guest), device(&guest));
        let mut slices = Slices::new();
        for _ in 0..2 {
            driver.add(&[], &[(LOW, 44)]).unwrap();
            driver.publish();
            let head = device.pop(&mut slices).unwrap().unwrap().head;
            driver.disable_calls();
            device.push_used(head, 44);
            device.publish();
            assert_eq!(device.is_used_seen(), !event_idx, "published, and nobody has looked");
            assert_eq!(driver.pop_used(), Ok(Some((head, 44))));
            assert!(!driver.enable_calls());
            assert!(device.is_used_seen());
        }
    }
}

#[test]
fn full_ring_refuses_and_keeps_what_it_has() {
    let guest = Guest::new(4, true);
    let mut driver = driver(&guest);
    driver.add(&[(LOW, 1); 3], &[]).unwrap();
    assert_eq!(driver.add(&[(LOW, 1); 2], &[]), Err(QueueFull));
    assert_eq!(driver.add(&[], &[]), Err(QueueFull));
    assert_eq!(driver.free_descriptors(), 1);
    assert!(driver.add(&[], &[(LOW, 1)]).is_ok());
    assert_eq!(driver.free_descriptors(), 0);
}

#[test]
fn descriptors_are_reused_for_ever() {
    let start = QueueConfig { base: 65000, ..Guest::new(8, true).config };
    let guest = Guest { config: start, ..Guest::new(8, true) };
    let (mut driver, mut device) = (driver(&guest), device(&guest));
    let mut slices = Slices::new();
    for round in 0..70_000_u32 {
        let parts = round as usize % 4 + 1;
        let heads =
            [driver.add(&[(LOW, 1); 4][..parts], &[]), driver.add(&[], &[(LOW, round % 50)])];
        driver.publish();
        for head in heads {
            slices.clear();
            let chain = device.pop(&mut slices).unwrap().unwrap();
            assert_eq!(chain.head, head.unwrap());
            device.push_used(chain.head, chain.writable_len);
        }
        device.publish();
        for (head, len) in heads.into_iter().zip([0, round % 50]) {
            assert_eq!(driver.pop_used(), Ok(Some((head.unwrap(), len))));
        }
        assert_eq!(driver.free_descriptors(), 8);
    }
}

#[test]
fn used_entry_that_lies_stops_the_ring() {
    let lie = |id: u32, len: u32, idx: u16| {
        let guest = Guest::new(4, true);
        let mut driver = driver(&guest);
        driver.add(&[(LOW, 10), (LOW, 10)], &[(LOW, 20)]).unwrap();
        driver.publish();
        guest.set_used(0, id, len);
        guest.set_used_idx(idx);
        let result = driver.pop_used();
        assert_eq!(driver.pop_used().is_err(), result.is_err(), "for ever");
        assert!(!driver.enable_calls() || result.is_ok());
        result
    };
    assert_eq!(lie(0, 20, 1), Ok(Some((0, 20))));
    assert_eq!(lie(0, 21, 1), Err(QueueError::BadUsedLength(21)));
    assert_eq!(lie(1, 0, 1), Err(QueueError::BadUsedId(1)));
    assert_eq!(lie(3, 0, 1), Err(QueueError::BadUsedId(3)));
    assert_eq!(lie(65536, 0, 1), Err(QueueError::BadUsedId(65536)));
    assert_eq!(lie(u32::MAX, 0, 1), Err(QueueError::BadUsedId(u32::MAX)));
    assert_eq!(lie(0, 0, 2), Err(QueueError::TooManyHeads(2)));
    assert_eq!(lie(0, 0, u16::MAX), Err(QueueError::TooManyHeads(u16::MAX)));
}

#[test]
fn chain_is_taken_back_once() {
    let guest = Guest::new(4, true);
    let mut driver = driver(&guest);
    for _ in 0..2 {
        driver.add(&[(LOW, 1)], &[]).unwrap();
    }
    driver.publish();
    guest.set_used(0, 1, 0);
    guest.set_used(1, 1, 0);
    guest.set_used_idx(2);
    assert_eq!(driver.pop_used(), Ok(Some((1, 0))));
    assert_eq!(driver.pop_used(), Err(QueueError::BadUsedId(1)));
}

#[test]
fn unpublished_chain_cannot_have_been_used() {
    let guest = Guest::new(4, true);
    let mut driver = driver(&guest);
    driver.add(&[(LOW, 1)], &[]).unwrap();
    guest.set_used_idx(1);
    assert_eq!(driver.pop_used(), Err(QueueError::TooManyHeads(1)));
}

#[test]
fn kicks_and_calls_follow_flags_without_event_index() {
    let guest = Guest::new(8, false);
    let mut driver = driver(&guest);
    driver.add(&[(LOW, 1)], &[]).unwrap();
    assert!(driver.publish());
    assert!(!driver.publish());
    guest.set_used_flags(1);
    driver.add(&[(LOW, 1)], &[]).unwrap();
    assert!(!driver.publish());
    let flags = |guest: &Guest| queue_support::read_u16(&guest.memory, guest.config.avail);
    driver.disable_calls();
    assert_eq!(flags(&guest), 1);
    assert!(!driver.enable_calls());
    assert_eq!(flags(&guest), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Add(u8, u8),
    Publish,
    Take,
    Used { position: u16, id: u32, len: u32 },
    Scribble { at: u16, byte: u8 },
    Index(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_u8, 0..3_u8).prop_map(|(r, w)| Step::Add(r, w)),
        2 => Just(Step::Publish),
        3 => Just(Step::Take),
        3 => (0..8_u16, prop_oneof![0..10_u32, any::<u32>()], prop_oneof![0..200_u32, any::<u32>()])
            .prop_map(|(position, id, len)| Step::Used { position, id, len }),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Step::Scribble { at, byte }),
        3 => prop_oneof![0..20_u16, any::<u16>()].prop_map(Step::Index),
    ]
}

proptest! {
    #![proptest_config(proptest_config(500))]

    /// Whatever a device writes into ring memory, the driver keeps its count of descriptors, takes back only
    /// chains in flight, and never believes a length larger than the chain.
    #[test]
    fn hostile_device_cannot_break_the_driver(steps in prop::collection::vec(step(), 1..200)) {
        let guest = Guest::new(8, true);
        let mut driver = driver(&guest);
        let mut in_flight: Vec<(u16, u16, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Add(r, w) => {
                    let (r, w) = (usize::from(r), usize::from(w));
                    let free = driver.free_descriptors();
                    match driver.add(&[(LOW, 9); 2][..r], &[(LOW, 50); 2][..w]) {
                        Ok(head) => {
                            prop_assert!(in_flight.iter().all(|chain| chain.0 != head));
                            in_flight.push((head, (r + w) as u16, 50 * w as u32));
                        }
                        Err(QueueFull) => prop_assert!(r + w == 0 || usize::from(free) < r + w),
                    }
                }
                Step::Publish => { driver.publish(); }
                Step::Take => if let Ok(Some((head, len))) = driver.pop_used() {
                    let place = in_flight.iter().position(|chain| chain.0 == head);
                    prop_assert!(place.is_some());
                    let chain = in_flight.swap_remove(place.unwrap());
                    prop_assert!(len <= chain.2);
                },
                Step::Used { position, id, len } => guest.set_used(position, id, len),
                Step::Scribble { at, byte } => {
                    let len = 16 * 8 + 200;
                    queue_support::write(&guest.memory, guest.config.desc + u64::from(at) % len, &[byte]);
                }
                Step::Index(idx) => guest.set_used_idx(idx),
            }
            let taken: u16 = in_flight.iter().map(|chain| chain.1).sum();
            prop_assert_eq!(driver.free_descriptors(), 8 - taken);
        }
    }
}
