//! Device and driver on threads of their own, asleep whenever there is nothing to do: no wake-up is ever lost, and
//! what was published is whole when it is seen. This is what the fences of the rings are for.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod ring_support;

use std::sync::Arc;

use ring_support::{eventfd, signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vsock_virtio::device::DeviceLink;
use vsock_virtio::driver::{DriverLink, DriverOptions};
use vsock_virtio::link::{Link, QUEUE_COUNT};
use vsock_virtio::memory::{GuestMemory, MemoryPolicy, Region};
use vsock_virtio::slice::{copy_in, copy_out};

const PACKETS: u32 = 30_000;
const PAYLOAD: usize = 20;

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
    let shared = driver.region();
    let file = shared.file.try_clone().unwrap();
    let region = Region { guest: shared.guest, user: 0, len: shared.len, offset: 0, file };
    let memory = Arc::new(GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).unwrap());
    let mut device = DeviceLink::new();
    for queue in 0..QUEUE_COUNT {
        let (kick, call) = (eventfd(), eventfd());
        driver.connect(queue, kick.try_clone().unwrap(), call.try_clone().unwrap()).unwrap();
        let config = driver.ring_config(queue).unwrap();
        device.start_ring(queue, &memory, &config, kick, Some(call)).unwrap();
    }
    (Link::Device(device), Link::Driver(driver))
}

/// Sends what there is room for and takes what there is; true when anything moved.
fn turn(link: &mut Link, sent: &mut u32, received: &mut u32) -> bool {
    let (before, mut slices) = ((*sent, *received), Vec::new());
    while *sent < PACKETS
        && let Some(space) = link.next_space(&mut slices).unwrap()
    {
        copy_in(&slices[space.payload.clone()], &[*sent as u8; PAYLOAD]);
        let mut header = [0; 44];
        header[40..].copy_from_slice(&sent.to_le_bytes());
        link.send(&space, &slices, &header, 1 + *sent % PAYLOAD as u32);
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
    let deadline = Timespec { tv_sec: 20, tv_nsec: 0 };
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
