//! Capabilities: which of root's rights a process keeps that serves a folder as root.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Any file is read and changed as its owner may. Not among them is `FSETID`: with it, a program with set-user-ID would keep
/// that when it is written to.
const KEPT: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH).union(CapabilitySet::FOWNER);

/// Takes all others from the calling thread.
pub(crate) fn keep_those_to_files() -> io::Result<()> {
    let had = capabilities(None)?;
    let sets = CapabilitySets {
        effective: had.effective & KEPT,
        permitted: had.permitted & KEPT,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}
