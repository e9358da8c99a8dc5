//! Device and driver on threads of their own, asleep whenever there is nothing to do: no wake-up is ever lost, and
//! what was published is whole when it is seen. The two short races at the end are what the fences of the rings are
//! for: without one, a release build loses some of every thousand wake-ups there (too rare for whole links to show).

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod queue_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use queue_support::{Guest, LOW, eventfd, signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vsock_guest_memory::slice::{Slices, copy_in, copy_out};
use vsock_guest_memory::{GuestMemory, MemoryPolicy};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::queue::{DeviceQueue, DriverQueue};
use vsock_virtio::spec::QUEUE_COUNT;

const PACKETS: u32 = 30_000;
const PAYLOAD: usize = 20;
/// Only a fault takes that long.
const DEADLINE: Duration = Duration::from_secs(20);

fn pair(event_idx: bool) -> (Link, Link) {
    let options = DriverOptions {
        rx_buffers: 4,
        rx_payload: PAYLOAD as u32,
        tx_buffers: 4,
        tx_payload: PAYLOAD as u32,
        split_header: false,
    };
    let mut driver = DriverLink::new(&options).unwrap();
    driver.set_event_idx(event_idx);
    let region = driver.region().to_region().unwrap();
    let memory = GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).unwrap();
    let mut device = DeviceLink::new();
    for queue in 0..QUEUE_COUNT {
        let (kick, call) = (eventfd(), eventfd());
        driver.connect(queue, kick.try_clone().unwrap(), call.try_clone().unwrap()).unwrap();
        let config = driver.queue_config(queue).unwrap();
        device.start_queue(queue, &memory, &config, kick, Some(call)).unwrap();
    }
    (Link::Device(device), Link::Driver(driver))
}

/// Sends what there is room for and takes what there is; true when anything moved.
fn turn(link: &mut Link, sent: &mut u32, received: &mut u32) -> bool {
    let (before, mut slices) = ((*sent, *received), Slices::new());
    while *sent < PACKETS
        && let Some(buffer) = link.next_buffer(&mut slices).unwrap()
    {
        copy_in(&slices[buffer.payload.clone()], &[*sent as u8; PAYLOAD]);
        let mut header = [0; 44];
        header[40..].copy_from_slice(&sent.to_le_bytes());
        link.send(&buffer, &slices, &header, 1 + *sent % PAYLOAD as u32);
        *sent += 1;
    }
    while let Some(inbound) = link.next_inbound(&mut slices).unwrap() {
        assert_eq!(inbound.header[40..], received.to_le_bytes());
        let mut payload = vec![0; inbound.payload_len as usize];
        copy_out(&slices[inbound.payload], &mut payload);
        assert_eq!(payload, vec![*received as u8; 1 + *received as usize % PAYLOAD]);
        link.finish_inbound(inbound.token);
        *received += 1;
    }
    link.publish().unwrap();
    before != (*sent, *received)
}

/// Waits for a signal, with a deadline that only a lost one can reach.
fn sleep(link: &Link) {
    let fds = link.notify_fds();
    let mut watched: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let deadline = Timespec::try_from(DEADLINE).unwrap();
    assert!(poll(&mut watched, Some(&deadline)).unwrap() > 0, "a wake-up was lost");
    for fd in &fds {
        signals(fd);
    }
}

/// One end: until all was sent and received, and the other side has taken it.
fn run(mut link: Link) {
    let (mut sent, mut received) = (0, 0);
    while sent < PACKETS || received < PACKETS {
        link.disarm();
        while turn(&mut link, &mut sent, &mut received) {}
        if (sent < PACKETS || received < PACKETS) && !link.arm() {
            sleep(&link);
        }
    }
}

#[test]
fn sleeping_ends_on_two_threads_never_lose_a_wakeup() {
    for event_idx in [true, false] {
        let (device, driver) = pair(event_idx);
        std::thread::scope(|scope| {
            scope.spawn(|| run(device));
            scope.spawn(|| run(driver));
        });
    }
}

/// Lets two threads go on at the same moment, as exactly as can be.
#[derive(Default)]
struct Gate(AtomicU32);

impl Gate {
    fn pass(&self) {
        let mine = self.0.fetch_add(1, Ordering::AcqRel) / 2;
        let start = Instant::now();
        for turn in 1_u32.. {
            if self.0.load(Ordering::Acquire) / 2 > mine {
                return;
            }
            // The other thread may not even be running.
            if turn.is_multiple_of(1000) {
                std::thread::yield_now();
                assert!(start.elapsed() < DEADLINE, "the other thread is gone");
            }
            std::hint::spin_loop();
        }
    }
}

const RACES: u32 = 30_000;

/// Runs `publish` and `enable` at the same moment, again and again: one of both must notice the other.
fn race(mut publish: impl FnMut(&Gate) -> bool + Send, mut enable: impl FnMut(&Gate) -> bool) {
    let (gate, signalled) = (Gate::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..RACES {
                signalled.store(publish(&gate), Ordering::Relaxed);
                gate.pass();
                gate.pass();
            }
        });
        let mut lost = 0;
        for _ in 0..RACES {
            let noticed = enable(&gate);
            gate.pass();
            lost += u32::from(!noticed && !signalled.load(Ordering::Relaxed));
            gate.pass();
        }
        assert_eq!(lost, 0, "wake-ups lost of {RACES}");
    });
}

fn rings(event_idx: bool) -> (DeviceQueue, DriverQueue) {
    let guest = Guest::new(8, event_idx);
    let driver = DriverQueue::new(Arc::clone(&guest.memory), &guest.config).unwrap();
    (DeviceQueue::new(Arc::clone(&guest.memory), &guest.config).unwrap(), driver)
}

#[test]
fn call_and_the_wish_for_it_never_miss_each_other() {
    for event_idx in [true, false] {
        let (mut device, mut driver) = rings(event_idx);
        let publish = move |gate: &Gate| {
            gate.pass();
            let chain = device.pop(&mut Slices::new()).unwrap().unwrap();
            device.push_used(chain.head, 0);
            gate.pass();
            device.publish()
        };
        let enable = move |gate: &Gate| {
            while driver.pop_used().unwrap().is_some() {}
            driver.disable_calls();
            driver.add(&[(LOW, 1)], &[]).unwrap();
            driver.publish();
            gate.pass();
            gate.pass();
            driver.enable_calls()
        };
        race(publish, enable);
    }
}

#[test]
fn kick_and_the_wish_for_it_never_miss_each_other() {
    for event_idx in [true, false] {
        let (mut device, mut driver) = rings(event_idx);
        let publish = move |gate: &Gate| {
            while driver.pop_used().unwrap().is_some() {}
            driver.add(&[(LOW, 1)], &[]).unwrap();
            gate.pass();
            driver.publish()
        };
        let enable = move |gate: &Gate| {
            while let Some(chain) = device.pop(&mut Slices::new()).unwrap() {
                device.push_used(chain.head, 0);
            }
            device.publish();
            device.disable_kicks();
            gate.pass();
            device.enable_kicks()
        };
        race(publish, enable);
    }
}
