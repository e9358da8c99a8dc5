//! The rings' part: descriptors, and the packet path over them, both ends in one process.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vsock_guest_memory::slice::Slices;
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::queue::{DeviceQueue, DriverQueue, QueueConfig, QueueLayout};
use vsock_virtio::spec::QUEUE_COUNT;

use crate::{PACKETS, Path, broken};

const BASE: u64 = 1 << 20;
const LEN: u64 = 1 << 20;
const SIZE: u16 = 256;
/// Where the buffers are, behind the ring.
const BUFFERS: u64 = BASE + (1 << 18);
const HEADER: [u8; 44] = [7; 44];
const PAYLOAD: u32 = 64;

/// Unwraps where a failure means that the path is no path.
pub(crate) fn must<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| broken(&error.to_string()))
}

/// A buffer is offered, taken, given back and taken back.
pub(crate) struct Ring {
    driver: DriverQueue,
    device: DeviceQueue,
    slices: Slices,
}

impl Ring {
    pub(crate) fn new() -> Self {
        let file = File::from(must(memfd_create("vsock-paths", MemfdFlags::CLOEXEC)));
        must(ftruncate(&file, LEN));
        let region = Region { guest: BASE, user: BASE, len: LEN, offset: 0, file };
        let memory = must(GuestMemory::map(vec![region], MemoryPolicy::RecordSeals));
        let layout = QueueLayout::new(SIZE);
        let (avail, used) = (BASE + layout.avail, BASE + layout.used);
        let config = QueueConfig { size: SIZE, desc: BASE, avail, used, base: 0, event_idx: true };
        let driver = must(DriverQueue::new(Arc::clone(&memory), &config));
        let device = must(DeviceQueue::new(memory, &config));
        Self { driver, device, slices: Slices::with_capacity(PACKETS) }
    }
}

impl Path for Ring {
    fn step(&mut self) {
        for buffer in 0..PACKETS as u64 {
            must(self.driver.add(&[(BUFFERS + buffer * 8192, 4140)], &[]));
        }
        self.driver.publish();
        self.slices.clear();
        for _ in 0..PACKETS {
            let Some(chain) = must(self.device.pop(&mut self.slices)) else { broken("no chain") };
            self.device.push_used(chain.head, 0);
        }
        self.device.publish();
        for _ in 0..PACKETS {
            if must(self.driver.pop_used()).is_none() {
                broken("nothing used");
            }
        }
    }
}

/// Both ends of a link over one memory.
pub(crate) struct Pair {
    pub(crate) device: Link,
    pub(crate) driver: Link,
    pub(crate) signals: Vec<OwnedFd>,
}

impl Pair {
    pub(crate) fn new(options: &DriverOptions) -> Self {
        let mut signals = Vec::new();
        let mut signal = || {
            let fd = must(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK));
            let other = must(fd.try_clone());
            signals.push(must(fd.try_clone()));
            (fd, other)
        };
        let mut driver = must(DriverLink::new(options));
        driver.set_event_idx(true);
        let region = must(driver.region().to_region());
        let memory = must(GuestMemory::map(vec![region], MemoryPolicy::RequireSeals));
        let mut device = DeviceLink::new();
        for queue in 0..QUEUE_COUNT {
            let Some(config) = driver.queue_config(queue) else { broken("no ring") };
            let ((kick, its_kick), (call, its_call)) = (signal(), signal());
            must(device.start_queue(queue, &memory, &config, its_kick, Some(its_call)));
            must(driver.connect(queue, kick, call));
        }
        let (mut device, mut driver) = (Link::Device(device), Link::Driver(driver));
        device.disarm();
        driver.disarm();
        Self { device, driver, signals }
    }
}

/// A packet from one end of a link to the other, without signals, as between two that are busy.
pub(crate) struct Links {
    from: Link,
    to: Link,
    slices: Slices,
    _signals: Vec<OwnedFd>,
}

impl Links {
    pub(crate) fn new(to_device: bool) -> Self {
        let Pair { device, driver, signals } = Pair::new(&DriverOptions::default());
        let (from, to) = if to_device { (driver, device) } else { (device, driver) };
        Self { from, to, slices: Slices::with_capacity(4 * PACKETS), _signals: signals }
    }
}

impl Path for Links {
    fn step(&mut self) {
        self.slices.clear();
        for _ in 0..PACKETS {
            let Some(buffer) = must(self.from.next_buffer(&mut self.slices)) else {
                broken("no buffer")
            };
            self.from.send(&buffer, &self.slices, &HEADER, PAYLOAD);
        }
        must(self.from.publish());
        self.slices.clear();
        for _ in 0..PACKETS {
            let Some(inbound) = must(self.to.next_inbound(&mut self.slices)) else {
                broken("no packet")
            };
            std::hint::black_box(inbound.header);
            self.to.finish_inbound(inbound.token);
        }
        must(self.to.publish());
    }
}
