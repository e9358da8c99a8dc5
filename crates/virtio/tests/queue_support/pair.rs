//! Both ends of a link over one memfd, and packets that can be told apart.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vsock_guest_memory::slice::{Slices, copy_in, copy_out};
use vsock_guest_memory::{GuestMemory, MemoryPolicy};
use vsock_virtio::link::Link;
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::spec::QUEUE_COUNT;

use super::{eventfd, signals};

/// Both ends of a link, and their signals.
pub(crate) struct Pair {
    pub(crate) device: Link,
    pub(crate) driver: Link,
    pub(crate) memory: Arc<GuestMemory>,
    /// Device to driver, per queue.
    pub(crate) calls: Vec<OwnedFd>,
    /// Driver to device, per queue.
    pub(crate) kicks: Vec<OwnedFd>,
}

/// The device's own view of a driver's memory.
fn mapped(driver: &DriverLink) -> Arc<GuestMemory> {
    let region = driver.region().to_region().unwrap();
    GuestMemory::map(vec![region], MemoryPolicy::RequireSeals).unwrap()
}

impl Pair {
    pub(crate) fn new(options: &DriverOptions, event_idx: bool) -> Self {
        let mut driver = DriverLink::new(options).unwrap();
        driver.set_event_idx(event_idx);
        let memory = mapped(&driver);
        let mut device = DeviceLink::new();
        let (mut kicks, mut calls) = (Vec::new(), Vec::new());
        for queue in 0..QUEUE_COUNT {
            let (kick, call) = (eventfd(), eventfd());
            driver.connect(queue, kick.try_clone().unwrap(), call.try_clone().unwrap()).unwrap();
            assert_eq!(signals(&kick), 1, "buffers may be there already");
            let config = driver.queue_config(queue).unwrap();
            let fds = (kick.try_clone().unwrap(), Some(call.try_clone().unwrap()));
            device.start_queue(queue, &memory, &config, fds.0, fds.1).unwrap();
            kicks.push(kick);
            calls.push(call);
        }
        let (device, driver) = (Link::Device(device), Link::Driver(driver));
        Self { device, driver, memory, calls, kicks }
    }

    pub(crate) fn small(event_idx: bool) -> Self {
        let options =
            DriverOptions { rx_payload: 100, tx_payload: 100, ..DriverOptions::default() };
        Self::new(&options, event_idx)
    }

    pub(crate) fn device(&mut self) -> &mut DeviceLink {
        match &mut self.device {
            Link::Device(device) => device,
            Link::Driver(_) | Link::Loopback(_) => unreachable!(),
        }
    }

    pub(crate) fn driver(&mut self) -> &mut DriverLink {
        match &mut self.driver {
            Link::Driver(driver) => driver,
            Link::Device(_) | Link::Loopback(_) => unreachable!(),
        }
    }

    /// Stops a ring and starts it again where it was, as a front end does.
    pub(crate) fn restart(&mut self, queue: usize) {
        let mut config = self.driver().queue_config(queue).unwrap();
        config.base = self.device().stop_queue(queue);
        let memory = Arc::clone(&self.memory);
        let (kick, call) = (self.kicks[queue].try_clone().unwrap(), &self.calls[queue]);
        let call = Some(call.try_clone().unwrap());
        self.device().start_queue(queue, &memory, &config, kick, call).unwrap();
    }

    /// Both ends look at everything until nothing is left, and go to sleep with signals on.
    pub(crate) fn sleep(&mut self) {
        for link in [&mut self.device, &mut self.driver] {
            assert!(!link.arm(), "nothing left to do");
        }
        for fd in self.calls.iter().chain(&self.kicks) {
            signals(fd);
        }
    }
}

pub(crate) fn header(number: u32) -> [u8; 44] {
    let mut header = [0; 44];
    header[..4].copy_from_slice(&number.to_le_bytes());
    header[40..].copy_from_slice(&(!number).to_le_bytes());
    header
}

/// Sends one packet if there is room; false when there is none.
pub(crate) fn send(link: &mut Link, number: u32, payload: &[u8]) -> bool {
    let mut slices = Slices::new();
    let Some(buffer) = link.next_buffer(&mut slices).unwrap() else { return false };
    assert!(payload.len() <= buffer.capacity as usize);
    assert_eq!(copy_in(&slices[buffer.payload.clone()], payload), payload.len());
    link.send(&buffer, &slices, &header(number), payload.len().try_into().unwrap());
    true
}

/// Takes one packet, if any: its number and payload.
pub(crate) fn receive(link: &mut Link) -> Option<(u32, Vec<u8>)> {
    let mut slices = Slices::new();
    let inbound = link.next_inbound(&mut slices).unwrap()?;
    let number = u32::from_le_bytes(inbound.header[..4].try_into().unwrap());
    assert_eq!(inbound.header, header(number));
    let mut payload = vec![0; inbound.payload_len as usize];
    assert_eq!(copy_out(&slices[inbound.payload], &mut payload), payload.len());
    link.finish_inbound(inbound.token);
    Some((number, payload))
}
