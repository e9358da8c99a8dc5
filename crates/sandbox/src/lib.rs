//! What a thread of a switch gives up once it is set up: system calls (seccomp), files and networks (Landlock), and new
//! privileges (no_new_privs).
//!
//! All three belong to the calling thread, and to threads that it starts later. Other threads of the process, such as
//! Python's, keep all they have. Nothing is ever given back. docs/decisions/0017-sandbox.md says why a call that is not in
//! a list fails with ENOSYS, why a few others end the process, and what this does not protect from.
//!
//! | module | what it is |
//! | --- | --- |
//! | `calls` | the lists: what each kind of thread calls, and why |
//! | `filter` | a list as a seccomp filter |
//! | `files` | Landlock |
//! | `rights` | capabilities, of a process that serves a folder |

#![forbid(unsafe_code)]

mod calls;
mod files;
mod filter;
mod rights;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

/// What a thread is for, which decides what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Moves packets between guests and programs. Opens no file, makes no socket to connect with, starts no thread.
    Worker,
    /// Serves the vhost-user front end of one guest, and maps that guest's memory.
    Control,
    /// Does what may take long: reads in `/proc` what a program may do, connects to a program's socket, asks a device.
    Helper,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Worker, Self::Control, Self::Helper];
}

/// Whether the threads of a node give up what they do not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// They do, as far as the kernel lets them.
    #[default]
    Enforced,
    /// They keep all that the process has.
    Disabled,
}

impl Sandbox {
    /// Takes from the calling thread what `profile` does not need. What the kernel does not support stays, and the answer
    /// says so.
    #[must_use]
    pub fn enter(self, profile: Profile) -> State {
        match self {
            Self::Disabled => State::Disabled,
            Self::Enforced => {
                // Found out once for the process, before Linux 6.4 from a file: rustix is asked for it with all memory.
                let _ = rustix::param::page_size();
                // Landlock's own calls are in no list.
                let files = files::restrict(profile).err();
                let calls = filter::restrict(profile).err();
                State::of(calls, files)
            }
        }
    }
}

/// Takes from the calling thread, which serves the files of one folder and starts no thread, all other files, all sockets, the
/// rights of root but those to files, and the calls that only an intruder makes: without `is_writable` also those that change
/// files. The caller confines what it names by itself: stat(2) is not restricted, nor are chmod(2) and utimensat(2) of a
/// folder that is writable.
///
/// # Errors
///
/// The kernel does not take the rights away.
pub fn keep_folder(folder: BorrowedFd<'_>, is_writable: bool) -> io::Result<State> {
    rights::keep_those_to_files()?;
    let files = files::restrict_to(folder, is_writable).err();
    Ok(State::of(filter::restrict_to_files(is_writable).err(), files))
}

/// What a thread has given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// All that its profile does not need.
    On,
    /// One of system calls and files; why not the other.
    Partly(String),
    /// Nothing, and why.
    Off(String),
    /// Nothing, as was asked for.
    Disabled,
}

impl State {
    fn of(calls: Option<filter::Missing>, files: Option<files::Missing>) -> Self {
        match (calls, files) {
            (None, None) => Self::On,
            (Some(calls), None) => Self::Partly(calls.to_string()),
            (None, Some(files)) => Self::Partly(files.to_string()),
            (Some(calls), Some(files)) => Self::Off(format!("{calls}; {files}")),
        }
    }

    /// Of two threads that were to give up the same, what both have given up.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        let kept = |state: &Self| match state {
            Self::On => 0,
            Self::Partly(_) => 1,
            Self::Off(_) | Self::Disabled => 2,
        };
        if kept(other) > kept(&self) { other.clone() } else { self }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => f.write_str("on"),
            Self::Partly(missing) => write!(f, "partly ({missing})"),
            Self::Off(missing) => write!(f, "off ({missing})"),
            Self::Disabled => f.write_str("off (disabled)"),
        }
    }
}
