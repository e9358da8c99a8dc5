//! Landlock: no file may be opened, created, removed or renamed, no TCP port bound or connected to, and, from Linux 6.12 on,
//! no abstract Unix socket connected to and no other process signalled.
//!
//! Descriptors that are open already work on, and stat(2) and readlink(2) are not restricted. Nor is connecting to a Unix
//! socket by its path; only the threads that need that have the system calls for it.
//!
//! A process that serves the files of one folder keeps that folder.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

use crate::Profile;

/// Why a thread keeps its files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Missing {
    /// Linux before 5.13, or not built into it, or not among its security modules.
    #[error("the kernel has no Landlock")]
    NoLandlock,
    /// The kernel refuses a rule set of this thread.
    #[error("Landlock: {0}")]
    Ruleset(#[from] RulesetError),
}

/// Restricts the calling thread. On older kernels less is restricted than on newer ones, files always.
pub(crate) fn restrict(profile: Profile) -> Result<(), Missing> {
    let ruleset = nothing()?;
    enter(match readable(profile).and_then(|path| PathFd::new(path).ok()) {
        Some(directory) => ruleset.add_rule(PathBeneath::new(directory, AccessFs::ReadFile))?,
        // Nothing can be read where it does not exist.
        None => ruleset,
    })
}

/// Restricts the calling thread to the files of one folder: to read them, or to change them too.
pub(crate) fn restrict_to(folder: BorrowedFd<'_>, is_writable: bool) -> Result<(), Missing> {
    const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    // No devices, FIFOs and sockets.
    const CHANGE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
        WriteFile | Truncate | RemoveFile | RemoveDir | MakeReg | MakeDir | MakeSym | Refer
    });
    let access = if is_writable { READ | CHANGE } else { READ };
    enter(nothing()?.add_rule(PathBeneath::new(folder, access))?)
}

/// The rules that forbid all.
fn nothing() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()
}

fn enter(ruleset: RulesetCreated) -> Result<(), Missing> {
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(Missing::NoLandlock),
    }
}

/// The directory below which files may be read.
fn readable(profile: Profile) -> Option<&'static str> {
    match profile {
        Profile::Helper => Some("/proc"),
        Profile::Worker | Profile::Control => None,
    }
}
