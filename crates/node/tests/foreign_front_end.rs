//! A front end that is not ours (the `vhost` crate's, which Cloud Hypervisor has) sets up rings as VMMs were seen to: with
//! the available index as base when it connects again, and with the most entries that a ring can have.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::Read;
use std::os::unix::fs::FileExt;

use node_support::vmm::{CID, Vmm, exchange, exchange_from_guest, packet, switch};
use node_support::{Directory, Listener, pattern, wait_until};
use vsock_core::Op;
use vsock_virtio::link::driver::DriverOptions;
use vsock_virtio::spec::QUEUE_COUNT;

/// What Cloud Hypervisor does after the switch was restarted. Its guest was deaf for ever, as all its receive
/// buffers counted as taken.
#[test]
fn front_end_that_reconnects_with_the_available_index_as_base_is_served_at_once() {
    let directory = Directory::new();
    let (mut vmm, mut guest) =
        Vmm::boot(&DriverOptions { rx_buffers: 128, rx_payload: 4096, ..DriverOptions::default() });
    let first = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    exchange(&directory, &mut guest, 5000);
    for restart in 1..=2 {
        drop(vmm.frontend.take());
        if restart == 1 {
            first.stop();
        }
        let next = switch(&directory);
        let (available, used) = vmm.indexes(0);
        assert!(available != used, "all buffers are on offer, so the two must differ");
        vmm.connect(&directory.0.join("a.sock"));
        exchange(&directory, &mut guest, 5000 + 10 * restart);
        exchange_from_guest(&directory, &mut guest, 6000 + restart);
        next.stop();
    }
}

/// What the driver offered while there was no device is served too, and first.
#[test]
fn packet_that_was_offered_to_nobody_reaches_the_next_device() {
    let directory = Directory::new();
    let (mut vmm, mut guest) = Vmm::boot(&DriverOptions::default());
    // As QEMU does it: with the event queue the driver would first be told that its connections are gone, this one too.
    vmm.rings.truncate(QUEUE_COUNT - 1);
    let first = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    exchange(&directory, &mut guest, 5000);
    drop(vmm.frontend.take());
    first.stop();
    guest.send(&packet(Op::Request, 1030, 6000), &[]);
    let _next = switch(&directory);
    let mut listener = Listener::new(&directory.0.join("host"), 6000, 8);
    vmm.connect(&directory.0.join("a.sock"));
    assert_eq!(guest.expect(Op::Response).0.dst_port, 1030);
    assert_eq!(listener.accept_with_addresses().1, [2, 6000, CID, 1030]);
}

/// A driver that is further ahead of the device than a ring can hold is no driver to go on with.
#[test]
fn available_index_too_far_from_the_used_index_ends_the_attachment() {
    let directory = Directory::new();
    let (mut vmm, _guest) =
        Vmm::boot(&DriverOptions { rx_buffers: 64, ..DriverOptions::default() });
    let ring = vmm.rings[1];
    vmm.memory.write_all_at(&400_u16.to_le_bytes(), ring.used + 2 - vmm.guest).unwrap();
    let switch = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    wait_until("the fault", || {
        switch.events().iter().any(|event| event.to_string().contains("ring index moved by"))
    });
}

/// crosvm asks for the most entries that a ring can have; a limit of 1024 ended its VM.
#[test]
fn rings_of_32768_entries_are_served() {
    let directory = Directory::new();
    let most = DriverOptions {
        rx_buffers: 32768,
        rx_payload: 64,
        tx_buffers: 32768,
        tx_payload: 64,
        split_header: false,
    };
    let (mut vmm, mut guest) = Vmm::boot(&most);
    assert_eq!((vmm.rings[0].size, vmm.rings[1].size), (32768, 32768));
    let _switch = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    // Both indexes go once around the ring, and past the end of 16 bits.
    let mut listener = Listener::new(&directory.0.join("host"), 6000, 8);
    guest.send(&packet(Op::Request, 1025, 6000), &[]);
    guest.expect(Op::Response);
    let mut stream = listener.accept();
    let (data, mut at, mut got) = (pattern(64, 1), 0_u32, [0; 64]);
    let packet = packet(Op::Rw, 1025, 6000);
    while at < 70_000 {
        for _ in 0..32 {
            guest.queue(&packet, &data);
        }
        guest.publish();
        for _ in 0..32 {
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got[..], data);
        }
        at += 32;
    }
}
