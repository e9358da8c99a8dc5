//! What a restricted thread must still be able to do, beside its work: end well, end badly, and outlive guest memory that
//! goes. Its work itself is what the tests of the node do, whose threads are restricted.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::mpsc::channel;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use support::{Outcome, errno, outcome_in, status_in};
use vsock_guest_memory::slice::{Slices, copy_out};
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};
use vsock_sandbox::{Profile, Sandbox};

const LEN: u64 = 4 << 12;

#[test]
fn memory_that_loses_its_file_reads_as_zeros() {
    for profile in Profile::ALL {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        ftruncate(&file, LEN).unwrap();
        let shrinks = file.try_clone().unwrap();
        let region = Region { guest: 0, user: 1 << 40, len: LEN, offset: 0, file };
        let memory = GuestMemory::map(vec![region], MemoryPolicy::RecordSeals).unwrap();
        ftruncate(&shrinks, 0).unwrap();
        let outcome = outcome_in(profile, || {
            let mut pieces = Slices::new();
            memory.slice(0, 4, &mut pieces).unwrap();
            let mut bytes = [1; 4];
            copy_out(&pieces, &mut bytes);
            if bytes == [0; 4] && memory.is_dead() { Ok(()) } else { Err(1) }
        });
        assert_eq!(outcome, Outcome::Done, "{profile:?}");
    }
}

#[test]
fn fault_outside_guest_memory_ends_the_process_as_ever() {
    for profile in Profile::ALL {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, LEN).unwrap();
        // The handler of guest memory is there, and hands this fault on.
        let region = Region { guest: 0, user: 1 << 40, len: LEN, offset: 0, file: file.into() };
        let _memory = GuestMemory::map(vec![region], MemoryPolicy::RecordSeals).unwrap();
        let own = memfd_create("own", MemfdFlags::CLOEXEC).unwrap();
        let status = status_in(profile, || {
            // SAFETY: a new mapping of a page that its file does not have; reading it faults on purpose.
            unsafe {
                let prot = rustix::mm::ProtFlags::READ;
                let flags = rustix::mm::MapFlags::SHARED;
                let at = rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, flags, &own, 0);
                std::ptr::read_volatile(at.unwrap().cast::<u8>()).into()
            }
        });
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{profile:?}");
    }
}

/// Not a test of its own: the process that the next test starts, a thread of which panics.
#[test]
#[ignore = "panics on purpose; started by panic_says_what_it_has_to_say_and_can_be_caught"]
fn process_whose_threads_panic() {
    for profile in Profile::ALL {
        let thread = std::thread::spawn(move || {
            let _ = Sandbox::Enforced.enter(profile);
            std::panic::catch_unwind(|| panic!("panic of {profile:?}")).is_err()
        });
        assert!(thread.join().unwrap());
    }
}

#[test]
fn panic_says_what_it_has_to_say_and_can_be_caught() {
    for backtrace in ["0", "1"] {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "process_whose_threads_panic", "--ignored", "--nocapture"]);
        let ended = process.env("RUST_BACKTRACE", backtrace).output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        let said = String::from_utf8(ended.stderr).unwrap();
        for profile in Profile::ALL {
            assert!(said.contains(&format!("panic of {profile:?}")), "{said}");
        }
    }
}

#[test]
fn abort_ends_the_process_by_its_signal() {
    for profile in Profile::ALL {
        let status = status_in(profile, || std::process::abort());
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{profile:?}");
    }
}

#[test]
fn much_memory_is_allocated_and_freed() {
    for profile in Profile::ALL {
        let outcome = outcome_in(profile, || {
            let mut all: Vec<Vec<u8>> = (0..200).map(|size| vec![1; size << 12]).collect();
            all.iter_mut().for_each(|one| one.extend_from_within(..));
            drop(all);
            Ok(())
        });
        assert_eq!(outcome, Outcome::Done, "{profile:?}");
    }
}

/// The C library has every thread make the call, and aborts if one cannot.
#[test]
fn program_beside_restricted_threads_drops_its_privileges() {
    for profile in Profile::ALL {
        let (go, wait) = channel::<()>();
        let (restricted, is_restricted) = channel();
        let thread = std::thread::spawn(move || {
            restricted.send(Sandbox::Enforced.enter(profile)).unwrap();
            wait.recv().unwrap_err();
        });
        is_restricted.recv().unwrap();
        let same = libc::uid_t::MAX;
        // SAFETY: these change nothing: -1 means that an id stays.
        let dropped = unsafe {
            libc::setresgid(same, same, same);
            libc::setresuid(same, same, same)
        };
        assert_eq!(errno(dropped.into()), Ok(()), "{profile:?}");
        drop(go);
        thread.join().unwrap();
    }
}

#[test]
fn thread_that_a_restricted_one_starts_is_restricted_as_well() {
    for profile in Profile::ALL {
        let starter = std::thread::spawn(move || {
            let _ = Sandbox::Enforced.enter(profile);
            let named = std::thread::Builder::new().name("started".into());
            let open = || std::fs::File::create("/tmp/vsock-forbidden").map(drop);
            named.spawn(open).unwrap().join().unwrap().map_err(|error| error.raw_os_error())
        });
        assert_eq!(starter.join().unwrap(), Err(Some(libc::ENOSYS)), "{profile:?}");
    }
}
