//! Hints which descriptors may be sockets of ours that need a check before data moves: what keeps reads and writes fast.
//!
//! A read or write of a connected socket, or of a file, needs nothing from us, and must not cost a system call to find
//! that out. So the calls that make a socket, or start a connect, set its hint here, and the first read or write that
//! finds it connected clears the hint. A hint too many costs one system call; a hint that is missing (of a socket that
//! was copied to a number used before, in the middle of a connect) costs a mistake (D33).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sys::Fd;

const WORDS: usize = 64;

/// At first each is set: what a program inherits was made by another.
static HINTS: [AtomicU64; WORDS] = [const { AtomicU64::new(u64::MAX) }; WORDS];

fn place(fd: Fd) -> Option<(&'static AtomicU64, u64)> {
    let number = usize::try_from(fd.0).ok()?;
    Some((HINTS.get(number / 64)?, 1 << (number % 64)))
}

/// Whether the hint of `fd` is set; that of a number beyond the table always is.
pub(crate) fn has(fd: Fd) -> bool {
    place(fd).map_or(fd.0 >= 0, |(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

/// Sets the hint of `fd`.
pub(crate) fn set(fd: Fd) {
    if let Some((word, bit)) = place(fd) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Clears the hint of `fd`.
pub(crate) fn clear(fd: Fd) {
    if let Some((word, bit)) = place(fd) {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_is_there_until_it_is_cleared() {
        let (fd, other) = (Fd(1000), Fd(1001));
        assert!(has(fd) && has(other), "at first all are set");
        clear(other);
        set(fd);
        assert!(has(fd) && !has(other));
        clear(fd);
        assert!(!has(fd));
    }

    #[test]
    fn number_beyond_the_table_always_has_its_hint_and_a_negative_one_never() {
        clear(Fd(100_000));
        assert!(has(Fd(100_000)));
        assert!(!has(Fd(-1)));
    }
}
