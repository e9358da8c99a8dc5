//! What a process that serves one folder has given up, tried from inside of one.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use support::{Outcome, errno, has_landlock, outcome_behind};
use vsock_sandbox::keep_folder;

fn tried<T>(done: io::Result<T>) -> Result<(), i32> {
    done.map(drop).map_err(|error| error.raw_os_error().unwrap())
}

/// How something ends that a process does which serves a folder.
fn outcome(folder: &Path, is_writable: bool, act: impl Fn() -> Result<(), i32>) -> Outcome {
    let folder = File::open(folder).unwrap();
    outcome_behind(|| keep_folder(folder.as_fd(), is_writable), act)
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
        assert_eq!(of(&moved), changes);
        assert_eq!(of(&|| tried(File::open(&outside))), refused);
        assert_eq!(of(&|| tried(fs::read_dir(&place))), refused);
        assert_eq!(of(&|| write(&outside)), refused);
        assert_eq!(of(&|| tried(fs::remove_file(&outside))), refused);
        assert_ne!(of(&|| tried(fs::hard_link(&outside, place.join("in/new")))), Outcome::Done);
        let device = || tried(std::os::unix::net::UnixListener::bind(place.join("in/socket")));
        assert_eq!(of(&device), refused);
    }
    fs::remove_dir_all(&place).unwrap();
}

#[test]
fn call_that_only_an_intruder_makes_ends_the_process() {
    let folder = std::env::temp_dir();
    let killed = Outcome::Killed(libc::SIGSYS);
    assert_eq!(
        outcome(&folder, true, || tried(std::net::TcpListener::bind("127.0.0.1:0"))),
        killed
    );
    let ptrace = || {
        // SAFETY: PTRACE_TRACEME has no other arguments.
        errno(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0) })
    };
    assert_eq!(outcome(&folder, true, ptrace), killed);
    let execve = || {
        // SAFETY: the path is a constant, and no arguments are an empty list.
        errno(unsafe { libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0) })
    };
    assert_eq!(outcome(&folder, true, execve), killed);
}
