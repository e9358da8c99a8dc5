//! A front end that shrinks its file under our mapping: the access goes on, the memory is known to be dead, and a
//! fault elsewhere still reaches whoever handled it before.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::ftruncate;
use support::{HIGH, LOW, read, write};
use vsock_guest_memory::slice::{self, Slices, TransferError};
use vsock_guest_memory::{GuestMemory, MemoryPolicy};

const LEN: u64 = 4 << 12;

/// Memory and the file that its front end can still change.
fn shrinkable() -> (Arc<GuestMemory>, File) {
    let region = support::region(LOW, LEN);
    let file = region.file.try_clone().unwrap();
    (GuestMemory::map(vec![region], MemoryPolicy::RecordSeals).unwrap(), file)
}

#[test]
fn memory_that_lost_its_file_reads_as_zeros_and_is_dead() {
    let (memory, file) = shrinkable();
    let (neighbour, _file) = shrinkable();
    write(&memory, LOW, b"text");
    write(&neighbour, LOW, b"text");
    ftruncate(&file, 0).unwrap();
    assert!(!memory.is_dead());
    assert_eq!(read(&memory, LOW, 4), [0; 4]);
    assert!(memory.is_dead());
    write(&memory, LOW + LEN - 4, b"late");
    assert_eq!(read(&memory, LOW + LEN - 4, 4), b"late");
    assert!(!neighbour.is_dead());
    assert_eq!(read(&neighbour, LOW, 4), b"text");
}

#[test]
fn table_made_from_a_dead_one_is_dead_while_it_has_the_region() {
    let (memory, file) = shrinkable();
    ftruncate(&file, 0).unwrap();
    read(&memory, LOW, 1);
    let more = support::region(HIGH, LEN);
    let larger = memory.with_region_added(more, MemoryPolicy::RecordSeals).unwrap();
    assert!(larger.is_dead());
    let smaller = larger.with_region_removed(LOW, LOW + (1 << 40), LEN).unwrap();
    assert!(!smaller.is_dead());
}

#[test]
fn slot_of_a_dropped_table_starts_alive_again() {
    for _ in 0..200 {
        let (memory, file) = shrinkable();
        assert!(!memory.is_dead());
        ftruncate(&file, 0).unwrap();
        read(&memory, LOW, 1);
        assert!(memory.is_dead());
    }
}

#[test]
fn more_regions_than_one_chunk_of_the_registry_are_all_guarded() {
    let all: Vec<_> = (0..200).map(|_| shrinkable()).collect();
    let (memory, file) = all.last().unwrap();
    ftruncate(file, 0).unwrap();
    read(memory, LOW, 1);
    assert_eq!(all.iter().filter(|(memory, _)| memory.is_dead()).count(), 1);
}

#[test]
fn system_call_on_memory_that_lost_its_file_says_so() {
    let (memory, file) = shrinkable();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    File::from(writer.try_clone().unwrap()).write_all(b"some bytes").unwrap();
    ftruncate(&file, 0).unwrap();
    let mut pieces = Slices::new();
    memory.slice(LOW, 100, &mut pieces).unwrap();
    let got = slice::readv(reader.as_fd(), &pieces);
    assert!(matches!(got, Err(TransferError::MemoryDead)), "{got:?}");
    let put = slice::writev(writer.as_fd(), &pieces);
    assert!(matches!(put, Err(TransferError::MemoryDead)), "{put:?}");
}

/// What the process ends with in the handler that was there before ours.
const HANDED_ON: i32 = 42;

extern "C" fn earlier_handler(_signal: libc::c_int) {
    // SAFETY: _exit is safe in a signal handler.
    unsafe { libc::_exit(HANDED_ON) }
}

/// A handler as Python's faulthandler is: it puts back what was there before it and sends the signal again. Ends
/// the process in a way of its own if it is called twice.
mod later {
    use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
    static CALLED: AtomicBool = AtomicBool::new(false);

    extern "C" fn handler(signal: libc::c_int) {
        // SAFETY: only calls that a signal handler may make; BEFORE is set and never freed.
        unsafe {
            if CALLED.swap(true, Ordering::Relaxed) {
                libc::_exit(43);
            }
            libc::sigaction(signal, BEFORE.load(Ordering::Relaxed), std::ptr::null_mut());
            libc::raise(signal);
        }
    }

    pub(crate) fn install() {
        let ours = handler as extern "C" fn(libc::c_int);
        // SAFETY: valid pointers; the old action is leaked so that the handler can use it at any time.
        unsafe {
            let before = Box::into_raw(Box::new(std::mem::zeroed::<libc::sigaction>()));
            libc::sigaction(libc::SIGBUS, std::ptr::null(), before);
            BEFORE.store(before, Ordering::Relaxed);
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = ours as libc::sighandler_t;
            action.sa_flags = libc::SA_NODEFER;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Not a test of its own: the process that the next test starts, which faults outside guest memory.
#[test]
#[ignore = "faults on purpose; started by fault_outside_guest_memory_is_handed_on"]
fn process_that_faults() {
    let other = std::env::var("OTHER_HANDLER").unwrap();
    if other == "earlier" {
        let handler = earlier_handler as extern "C" fn(libc::c_int);
        // SAFETY: the handler only exits.
        unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
    }
    let _early = shrinkable();
    if other == "later" {
        later::install();
    }
    let (memory, file) = shrinkable();
    ftruncate(&file, 0).unwrap();
    read(&memory, LOW, 1);
    assert!(memory.is_dead());
    let own = support::memfd(4096);
    // SAFETY: a new mapping of a file of ours; reading it faults on purpose once the file is gone.
    unsafe {
        let prot = rustix::mm::ProtFlags::READ;
        let flags = rustix::mm::MapFlags::SHARED;
        let at = rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, flags, &own, 0).unwrap();
        ftruncate(&own, 0).unwrap();
        std::ptr::read_volatile(at.cast::<u8>());
    }
    unreachable!("the fault was swallowed");
}

fn run_faulting_process(other_handler: &str) -> std::process::ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "process_that_faults", "--ignored", "--test-threads=1"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.env("OTHER_HANDLER", other_handler).status().unwrap()
}

#[test]
fn fault_outside_guest_memory_is_handed_on() {
    assert_eq!(run_faulting_process("earlier").code(), Some(HANDED_ON));
    assert_eq!(run_faulting_process("none").signal(), Some(libc::SIGBUS));
}

#[test]
fn fault_that_a_later_handler_hands_back_ends_the_process() {
    assert_eq!(run_faulting_process("later").signal(), Some(libc::SIGBUS));
}
