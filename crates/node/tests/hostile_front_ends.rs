//! Front ends that try to stop the switch: what they hand over must not make the worker wait.

#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

mod node_support;

use std::io::{Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;

use node_support::vmm::{Vmm, exchange, exchange_from_guest, switch};
use node_support::{DEADLINE, Directory};
use vsock_virtio::link::driver::DriverOptions;

/// User-Mode Linux has sockets to be signalled on: they get what the worker signals, by way of the control thread.
#[test]
fn front_end_with_sockets_for_calls_is_signalled_on_them() {
    let directory = Directory::new();
    let mut ends = Vec::new();
    let (mut vmm, mut guest) = Vmm::boot_with(&DriverOptions::default(), || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ends.push(ours);
        theirs.into_raw_fd()
    });
    let _switch = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    exchange(&directory, &mut guest, 5000);
    exchange_from_guest(&directory, &mut guest, 6000);
    let mut signal = [0; 8];
    ends[0].set_read_timeout(Some(DEADLINE)).unwrap();
    ends[0].read_exact(&mut signal).unwrap();
    assert_eq!(u64::from_ne_bytes(signal), 1);
}

/// A full pipe has signals waiting, and nobody waits for room in it.
#[test]
fn front_end_that_reads_none_of_its_signals_is_served() {
    let directory = Directory::new();
    let mut readers = Vec::new();
    let (mut vmm, mut guest) = Vmm::boot_with(&DriverOptions::default(), || {
        let (reader, writer) = std::io::pipe().unwrap();
        (&writer).write_all(&[0; 65536]).unwrap();
        readers.push(reader);
        writer.into_raw_fd()
    });
    let _switch = switch(&directory);
    vmm.connect(&directory.0.join("a.sock"));
    exchange(&directory, &mut guest, 5000);
    exchange_from_guest(&directory, &mut guest, 6000);
}
