//! Runs a function in a child process, in a thread of some profile, and tells how that ended.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use vsock_sandbox::{Profile, Sandbox, State};

/// How a call ended, made by a thread of some profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was carried out.
    Done,
    /// It failed with this error.
    Failed(i32),
    /// The process was ended by this signal.
    Killed(i32),
}

/// Forks, restricts the child's only thread, and has it do something that says how it went.
pub(crate) fn outcome_in(profile: Profile, act: impl FnOnce() -> Result<(), i32>) -> Outcome {
    outcome_behind(|| Sandbox::Enforced.enter(profile), act)
}

/// The same behind other restrictions.
pub(crate) fn outcome_behind(
    restrict: impl FnOnce() -> State,
    act: impl FnOnce() -> Result<(), i32>,
) -> Outcome {
    let status = status_behind(restrict, || act().err().unwrap_or(0));
    match (status.signal(), status.code()) {
        (Some(signal), _) => Outcome::Killed(signal),
        (None, Some(0)) => Outcome::Done,
        (None, code) => Outcome::Failed(code.expect("a process ends by a signal or with a code")),
    }
}

/// The same, with an exit code.
pub(crate) fn status_in(profile: Profile, act: impl FnOnce() -> i32) -> ExitStatus {
    status_behind(|| Sandbox::Enforced.enter(profile), act)
}

fn status_behind(restrict: impl FnOnce() -> State, act: impl FnOnce() -> i32) -> ExitStatus {
    // SAFETY: the child does what it does in this thread alone, allocates memory (which the C library allows after
    // fork) and ends with _exit.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "{}", io::Error::last_os_error());
        if child == 0 {
            let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
            let state = restrict();
            let code = if matches!(state, State::On | State::Partly(_)) { act() } else { 125 };
            libc::_exit(code);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        ExitStatus::from_raw(status)
    }
}

/// The error of a system call that returned this, if it failed.
pub(crate) fn errno(returned: libc::c_long) -> Result<(), i32> {
    if returned >= 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error().raw_os_error().unwrap())
}

/// Whether this kernel has Landlock; asked of a thread that is restricted for that.
pub(crate) fn has_landlock() -> bool {
    let asked = std::thread::spawn(|| Sandbox::Enforced.enter(Profile::Worker));
    asked.join().unwrap() == State::On
}
