//! What the machine can do at all: copies between shared mappings, wake-ups by eventfd.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::event::{EventfdFlags, eventfd as new_eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vsock_guest_memory::slice::{self, Slices};
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};

use crate::Result;
use crate::clock::{self, Durations};
use crate::orders::{Order, answer};

/// `memcpy SIZE SOURCE_BYTES TARGET_BYTES SECONDS`: copies of SIZE bytes round and round both mappings.
pub(crate) fn memcpy(arguments: &[String]) -> Result<()> {
    let order = Order::parse(&arguments.join(" "));
    let (size, seconds): (u32, f64) = (order.number(0)?, order.number(3)?);
    let from = mapping(order.number(1)?, size)?;
    let to = mapping(order.number(2)?, size)?;
    // Once round, so that no page is touched for the first time.
    for index in 0..from.len().max(to.len()) {
        slice::copy(&to[index % to.len()..][..1], &from[index % from.len()..][..1]);
    }
    let (start, mut bytes) = (clock::now(), 0);
    let end = start + clock::nanoseconds(seconds);
    let mut index = 0;
    while clock::now() < end {
        for _ in 0..16 {
            bytes += slice::copy(&to[index % to.len()..][..1], &from[index % from.len()..][..1]);
            index += 1;
        }
    }
    let elapsed = clock::seconds(clock::now() - start);
    answer(&format!("\"bytes\": {bytes}, \"seconds\": {elapsed:.6}"));
    Ok(())
}

/// The pieces of `size` bytes of a shared mapping, which they hold.
fn mapping(len: u64, size: u32) -> Result<Slices> {
    const BASE: u64 = 1 << 20;
    let file = memfd_create("vsock-load", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    let region = Region { guest: BASE, user: BASE, len, offset: 0, file: File::from(file) };
    let memory = GuestMemory::map(vec![region], MemoryPolicy::RecordSeals)?;
    let mut pieces = Slices::new();
    for piece in 0..len / u64::from(size) {
        memory.slice(BASE + piece * u64::from(size), size, &mut pieces)?;
    }
    Ok(pieces)
}

/// `eventfd SECONDS`: round trips between two processes that wake each other.
pub(crate) fn eventfd(arguments: &[String]) -> Result<()> {
    let seconds: f64 = Order::parse(&arguments.join(" ")).number(0)?;
    let make = || new_eventfd(0, EventfdFlags::CLOEXEC);
    let (there, back) = (make()?, make()?);
    // A child gets descriptors without unsafe code as its standard input and output.
    let mut child = Command::new(std::env::current_exe()?)
        .arg("eventfd-answer")
        .stdin(Stdio::from(there.try_clone()?))
        .stdout(Stdio::from(back.try_clone()?))
        .spawn()?;
    let mut durations = Durations::default();
    round_trip(&there, &back)?;
    let start = clock::now();
    let end = start + clock::nanoseconds(seconds);
    let mut before = start;
    while before < end {
        round_trip(&there, &back)?;
        let after = clock::now();
        durations.note(after - before);
        before = after;
    }
    answer(&durations.json(before - start));
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn round_trip(there: &OwnedFd, back: &OwnedFd) -> Result<()> {
    signal(there.as_fd())?;
    wait(back.as_fd())
}

fn signal(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::io::write(fd, &1_u64.to_ne_bytes())?;
    Ok(())
}

fn wait(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::io::read(fd, &mut [0_u8; 8])?;
    Ok(())
}

/// The other process of [`eventfd`], until it is killed.
pub(crate) fn answer_forever() -> Result<()> {
    loop {
        wait(rustix::stdio::stdin())?;
        signal(rustix::stdio::stdout())?;
    }
}
