//! Which descriptors may be sockets of ours without a stream: a hint that keeps reads and writes fast.
//!
//! A read or write of a connected socket, or of a file, needs nothing from us, and must not cost a system call to find
//! that out. So the calls that make a socket, or start a connect, put its number here, and the first read or write
//! that finds it connected takes it out. A wrong entry costs one system call; a missing one (a socket that was copied to a
//! number used before, in the middle of a connect) costs a mistake (D33).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sys::Fd;

const WORDS: usize = 64;

/// At first each may be one: what a program inherits was made by another.
static SUSPECTS: [AtomicU64; WORDS] = [const { AtomicU64::new(u64::MAX) }; WORDS];

fn place(fd: Fd) -> Option<(&'static AtomicU64, u64)> {
    let number = usize::try_from(fd.0).ok()?;
    Some((SUSPECTS.get(number / 64)?, 1 << (number % 64)))
}

/// Whether `fd` may be one; larger numbers than the table has always may.
pub(crate) fn has(fd: Fd) -> bool {
    place(fd).map_or(fd.0 >= 0, |(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

/// `fd` is one.
pub(crate) fn add(fd: Fd) {
    if let Some((word, bit)) = place(fd) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// `fd` is none any more.
pub(crate) fn remove(fd: Fd) {
    if let Some((word, bit)) = place(fd) {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspect_is_known_until_removed() {
        let (fd, other) = (Fd(1000), Fd(1001));
        assert!(has(fd) && has(other), "at first all are");
        remove(other);
        add(fd);
        assert!(has(fd) && !has(other));
        remove(fd);
        assert!(!has(fd));
    }

    #[test]
    fn number_beyond_the_table_is_always_suspect_and_a_negative_one_never() {
        remove(Fd(100_000));
        assert!(has(Fd(100_000)));
        assert!(!has(Fd(-1)));
    }
}
