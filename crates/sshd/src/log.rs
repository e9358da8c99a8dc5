//! What the guest's log gets: lines on stderr.

use std::fmt::Display;
use std::io::{Write, stderr};

/// Says something there. Unlike `eprintln!` it goes on when nobody reads stderr any more.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(stderr(), "vsock-sshd: {line}");
}
