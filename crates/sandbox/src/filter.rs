//! A list of system calls as two seccomp filters: one ends the process on calls that none of its threads makes by mistake,
//! the other lets through what the list has and answers ENOSYS to the rest. The kernel takes the stricter of two answers.
//!
//! A call that is allowed whatever its arguments costs nothing: the kernel (from 5.11 on) finds that out when the filters
//! are installed, and does not run them for it.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use crate::Profile;
use crate::calls::{BESIDES_FILES, CHANGES, Call, FATAL, Which, allowed};

/// Why a thread keeps its system calls.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Missing {
    /// The kernel has no seccomp, or another filter forbids it.
    #[error("seccomp: {0}")]
    Refused(#[from] seccompiler::Error),
    /// There are no lists for this kind of processor.
    #[error("seccomp: {0}")]
    NoFilter(#[from] BackendError),
}

/// Restricts the calling thread.
pub(crate) fn restrict(profile: Profile) -> Result<(), Missing> {
    let (fatal, refusing) = (fatal(&[FATAL])?, refusing(profile)?);
    // The second one allows no third.
    apply_filter(&fatal)?;
    Ok(apply_filter(&refusing)?)
}

/// Takes from the calling thread, which reads files, or changes them too, what such a thread never calls, and nothing else.
pub(crate) fn restrict_to_files(is_writable: bool) -> Result<(), Missing> {
    let changes = if is_writable { &[] } else { CHANGES };
    Ok(apply_filter(&fatal(&[FATAL, BESIDES_FILES, changes])?)?)
}

/// Of a call that is in several lists, the last one counts.
fn fatal(lists: &[&[Call]]) -> Result<BpfProgram, BackendError> {
    let calls = lists.iter().flat_map(|list| list.iter().copied());
    program(calls, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn refusing(profile: Profile) -> Result<BpfProgram, BackendError> {
    let refused = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    program(allowed(profile), refused, SeccompAction::Allow)
}

fn program(
    calls: impl Iterator<Item = Call>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    // No rules mean that a call matches whatever its arguments.
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    for Call { number, which } in calls {
        rules.insert(number, chain(which)?);
    }
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, matched, machine)?.try_into()
}

/// A rule for each way in which the arguments of a call may match.
fn chain(which: Which) -> Result<Vec<SeccompRule>, BackendError> {
    let alone = |argument, compare, value: c_int| {
        let value = u64::from(value.cast_unsigned());
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)?;
        SeccompRule::new(vec![condition])
    };
    let bits = |bits: c_int| SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned()));
    match which {
        Which::All => Ok(Vec::new()),
        Which::OneOf(argument, values) => {
            values.iter().map(|value| alone(argument, SeccompCmpOp::Eq, *value)).collect()
        }
        Which::Not(argument, value) => Ok(vec![alone(argument, SeccompCmpOp::Ne, value)?]),
        Which::With(argument, set) => Ok(vec![alone(argument, bits(set), set)?]),
        Which::Without(argument, unset) => Ok(vec![alone(argument, bits(unset), 0)?]),
        Which::OwnProcess(argument) => {
            let pid = std::process::id().cast_signed();
            Ok(vec![alone(argument, SeccompCmpOp::Eq, pid)?])
        }
    }
}
