//! A driver with more receive buffers than it offers, and a device that uses them as it likes: in any order, hardly at
//! all or to the brim, and many late. No buffer is lost, and there are always some on offer. And a driver that sends more
//! than is to be under way.

#![allow(clippy::unwrap_used, reason = "tests panic")]

mod queue_support;

use queue_support::pair::{Pair, header, receive, send};
use queue_support::{Random, signals};
use vsock_guest_memory::slice::{Slices, copy_in};
use vsock_virtio::link::Link;
use vsock_virtio::link::driver::DriverOptions;
use vsock_virtio::queue::{Chain, DeviceQueue};
use vsock_virtio::spec::{RX_QUEUE, TX_QUEUE};

const BUFFERS: u16 = 200;
const PAYLOAD: u32 = 65536;
/// What the driver offers with packets of that size.
const FEW: usize = 32;

/// A device that has popped chains and not given them back.
struct Hoarder {
    ring: DeviceQueue,
    held: Vec<(Chain, Slices)>,
    number: u32,
}

impl Hoarder {
    fn take_all(&mut self) {
        let mut slices = Slices::new();
        while let Some(chain) = self.ring.pop(&mut slices).unwrap() {
            self.held.push((chain, std::mem::take(&mut slices)));
        }
    }

    /// Gives one of those it holds back, with `len` bytes of a packet in it.
    fn use_one(&mut self, which: usize, len: u32) {
        let (chain, slices) = self.held.swap_remove(which);
        copy_in(&slices[chain.writable.clone()][..1], &header(self.number));
        self.number += 1;
        self.ring.push_used(chain.head, len);
        self.ring.publish();
    }
}

/// Takes the next packet, and leaves its buffer with the caller.
fn next(driver: &mut Link) -> Option<vsock_virtio::link::BufferToken> {
    driver.next_inbound(&mut Slices::new()).unwrap().map(|inbound| inbound.token)
}

fn start(options: &DriverOptions) -> (Pair, Hoarder) {
    let mut pair = Pair::new(options, true);
    let config = pair.driver().queue_config(RX_QUEUE).unwrap();
    let ring = DeviceQueue::new(pair.memory.clone(), &config).unwrap();
    let mut hoarder = Hoarder { ring, held: Vec::new(), number: 0 };
    hoarder.take_all();
    (pair, hoarder)
}

#[test]
fn device_that_uses_buffers_in_any_order_and_to_any_length_never_runs_out() {
    for split_header in [false, true] {
        let options = DriverOptions {
            rx_buffers: BUFFERS,
            rx_payload: PAYLOAD,
            split_header,
            ..DriverOptions::default()
        };
        let (mut pair, mut device) = start(&options);
        let (mut random, mut taken) = (Random::new(7), Vec::new());
        for round in 0..3000u32 {
            // Phases of packets with little in them, of full ones, and of both, some too short for a header.
            let len = match (round / 500) % 3 {
                0 => 44 + random.below(64),
                1 => u64::from(44 + PAYLOAD),
                _ => random.below(u64::from(44 + PAYLOAD) + 1),
            };
            let which = random.below(device.held.len() as u64);
            device.use_one(usize::try_from(which).unwrap(), u32::try_from(len).unwrap());
            taken.extend(next(&mut pair.driver));
            if taken.len() > 20 {
                for token in taken.drain(..) {
                    pair.driver.finish_inbound(token);
                }
            }
            pair.driver.publish().unwrap();
            device.take_all();
            assert!(device.held.len() + taken.len() >= FEW, "round {round}");
            assert!(device.held.len() + taken.len() <= usize::from(BUFFERS), "round {round}");
        }
        // With packets that are next to empty, all buffers come.
        for token in taken.drain(..) {
            pair.driver.finish_inbound(token);
        }
        for _ in 0..200 {
            device.use_one(0, 44);
            let token = next(&mut pair.driver).unwrap();
            pair.driver.finish_inbound(token);
            pair.driver.publish().unwrap();
            device.take_all();
        }
        assert_eq!(device.held.len(), usize::from(BUFFERS));
    }
}

#[test]
fn device_that_gives_nothing_back_gets_no_more_than_it_was_offered() {
    let options =
        DriverOptions { rx_buffers: BUFFERS, rx_payload: PAYLOAD, ..DriverOptions::default() };
    let (mut pair, mut device) = start(&options);
    for _ in 0..10 {
        assert_eq!(next(&mut pair.driver), None);
        pair.driver.publish().unwrap();
        device.take_all();
    }
    assert_eq!(device.held.len(), FEW);
    // All of those it kept come back at once, the last first.
    while !device.held.is_empty() {
        device.use_one(device.held.len() - 1, 44 + PAYLOAD);
    }
    let tokens: Vec<_> = std::iter::from_fn(|| next(&mut pair.driver)).collect();
    assert_eq!(tokens.len(), FEW);
    for token in tokens {
        pair.driver.finish_inbound(token);
    }
    pair.driver.publish().unwrap();
    device.take_all();
    assert_eq!(device.held.len(), FEW);
}

#[test]
fn driver_with_much_under_way_is_told_when_the_device_has_used_some() {
    let mut pair = Pair::new(&DriverOptions::default(), true);
    let payload = vec![0; PAYLOAD as usize];
    let mut sent = 0;
    while send(&mut pair.driver, sent, &payload) {
        sent += 1;
    }
    assert_eq!(sent, 32, "2 MiB");
    pair.driver.publish().unwrap();
    assert!(!pair.driver.arm(), "nothing to do");
    assert_eq!(signals(&pair.calls[TX_QUEUE]), 0);
    assert_eq!(receive(&mut pair.device).unwrap().0, 0);
    pair.device.publish().unwrap();
    assert_eq!(signals(&pair.calls[TX_QUEUE]), 1);
    assert!(send(&mut pair.driver, sent, &payload));
    assert!(!send(&mut pair.driver, sent, &payload));
}

#[test]
fn small_packets_are_under_way_in_all_buffers() {
    let options = DriverOptions::default();
    let mut pair = Pair::new(&options, true);
    let sent = (0..1000).take_while(|number| send(&mut pair.driver, *number, b"small")).count();
    assert_eq!(sent, usize::from(options.tx_buffers));
}
