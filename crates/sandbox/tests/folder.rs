//! What a process that serves one folder has given up, tried from inside of one.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::CapabilitySet;
use support::{Outcome, errno, has_landlock, outcome_behind};
use vsock_sandbox::keep_folder;

const KILLED: Outcome = Outcome::Killed(libc::SIGSYS);

fn tried<T>(done: io::Result<T>) -> Result<(), i32> {
    done.map(drop).map_err(|error| error.raw_os_error().unwrap())
}

/// How something ends that a process does which serves a folder.
fn outcome(folder: &Path, is_writable: bool, act: impl Fn() -> Result<(), i32>) -> Outcome {
    let folder = File::open(folder).unwrap();
    outcome_behind(|| keep_folder(folder.as_fd(), is_writable).unwrap(), act)
}

fn write(path: &Path) -> Result<(), i32> {
    tried(OpenOptions::new().write(true).open(path))
}

#[test]
fn files_of_the_folder_alone_are_opened_and_are_written_only_if_that_is_wanted() {
    if !has_landlock() {
        eprintln!("this kernel has no Landlock");
        return;
    }
    let place = std::env::temp_dir().join(format!("vsock-folder-{}", std::process::id()));
    let (inside, outside) = (place.join("in/file"), place.join("file"));
    fs::create_dir_all(place.join("in")).unwrap();
    for file in [&inside, &outside] {
        fs::write(file, "text").unwrap();
    }
    let refused = Outcome::Failed(libc::EACCES);
    for is_writable in [false, true] {
        let of = |act: &dyn Fn() -> Result<(), i32>| outcome(&place.join("in"), is_writable, act);
        let changes = if is_writable { Outcome::Done } else { refused };
        assert_eq!(of(&|| tried(File::open(&inside))), Outcome::Done);
        assert_eq!(of(&|| tried(fs::read_dir(place.join("in")))), Outcome::Done);
        assert_eq!(of(&|| write(&inside)), changes);
        let moved = || {
            tried(fs::rename(&inside, place.join("in/new")))?;
            tried(fs::rename(place.join("in/new"), &inside))
        };
        assert_eq!(of(&moved), if is_writable { Outcome::Done } else { KILLED });
        assert_eq!(of(&|| tried(File::open(&outside))), refused);
        assert_eq!(of(&|| tried(fs::read_dir(&place))), refused);
        assert_eq!(of(&|| write(&outside)), refused);
        assert_eq!(
            of(&|| tried(fs::remove_file(&outside))),
            if is_writable { refused } else { KILLED }
        );
        assert_ne!(of(&|| tried(fs::hard_link(&outside, place.join("in/new")))), Outcome::Done);
    }
    fs::remove_dir_all(&place).unwrap();
}

/// What a call gives that has these arguments.
fn call(number: libc::c_long, arguments: [usize; 3]) -> Result<(), i32> {
    // SAFETY: the callers pass numbers, null, and paths that end with a zero; the kernel looks at them itself.
    errno(unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], 0, 0) })
}

#[test]
fn call_that_only_an_intruder_makes_ends_the_process() {
    let folder = std::env::temp_dir();
    for is_writable in [false, true] {
        let of = |act: &dyn Fn() -> Result<(), i32>| outcome(&folder, is_writable, act);
        assert_eq!(of(&|| tried(std::net::TcpListener::bind("127.0.0.1:0"))), KILLED);
        assert_eq!(of(&|| tried(std::os::unix::net::UnixDatagram::unbound())), KILLED);
        assert_eq!(of(&|| tried(std::os::unix::net::UnixStream::pair())), KILLED);
        // PTRACE_TRACEME has no other arguments.
        for number in [libc::SYS_ptrace, libc::SYS_io_uring_setup, libc::SYS_clone3] {
            assert_eq!(of(&|| call(number, [0; 3])), KILLED, "{number}");
        }
        // A process of its own, whose end nobody hears of.
        assert_eq!(of(&|| call(libc::SYS_clone, [0; 3])), KILLED);
        let execve = || call(libc::SYS_execve, [c"/bin/true".as_ptr() as usize, 0, 0]);
        assert_eq!(of(&execve), KILLED);
        let no_owner = [usize::MAX, c"/".as_ptr() as usize, usize::MAX];
        assert_eq!(of(&|| call(libc::SYS_fchownat, no_owner)), KILLED);
        assert_eq!(of(&|| call(libc::SYS_kill, [std::process::id() as usize, 0, 0])), KILLED);
    }
}

/// Landlock does not restrict all of them.
#[test]
fn one_that_only_reads_is_ended_by_calls_that_change_files() {
    let none = c"/nonexistent/file".as_ptr() as usize;
    let here = libc::AT_FDCWD as usize;
    for (number, arguments) in [
        (libc::SYS_fchmodat, [here, none, 0o777]),
        (libc::SYS_fchmod, [usize::MAX, 0o777, 0]),
        (libc::SYS_utimensat, [here, none, 0]),
        (libc::SYS_truncate, [none, 0, 0]),
        (libc::SYS_ftruncate, [usize::MAX, 0, 0]),
        (libc::SYS_unlinkat, [here, none, 0]),
        (libc::SYS_mkdirat, [here, none, 0]),
        (libc::SYS_symlinkat, [none, here, none]),
    ] {
        let of =
            |is_writable| outcome(&std::env::temp_dir(), is_writable, || call(number, arguments));
        assert_eq!(of(false), KILLED, "{number}");
        assert!(matches!(of(true), Outcome::Failed(_)), "{number}");
    }
}

/// Only of interest if this is root: others never had them.
#[test]
fn rights_to_files_are_all_that_is_left_of_roots() {
    let folder = std::env::temp_dir();
    let kept = || {
        let has = rustix::thread::capabilities(None).unwrap();
        let file =
            CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::FOWNER;
        if file.contains(has.permitted | has.effective | has.inheritable) { Ok(()) } else { Err(1) }
    };
    assert_eq!(outcome(&folder, true, kept), Outcome::Done);
}
