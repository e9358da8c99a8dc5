//! Counts what comes in over a stream, in a thread that does nothing else.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use super::stream::Stream;
use crate::clock;
use crate::guest::Tally;
use crate::pattern;

/// A clock is asked once in so many small reads.
const READS_PER_LOOK: u64 = 16;

/// What came in over one stream since it was last reset; nobody resets while something comes.
#[derive(Default)]
pub(crate) struct Counter {
    bytes: AtomicU64,
    reads: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    wrong: AtomicU64,
    checks: bool,
}

impl Counter {
    pub(crate) fn new(checks: bool) -> Self {
        Self { checks, ..Self::default() }
    }

    /// Reads until the stream ends.
    pub(crate) fn read(&self, mut stream: Stream, size: usize) {
        let mut bytes = vec![0; size];
        let mut place = 0;
        while let Ok(n) = stream.read(&mut bytes) {
            if n == 0 {
                break;
            }
            self.note(&bytes[..n], &mut place);
        }
    }

    /// Notes one read, and where in the stream it ends. Only the thread that reads calls it, so plain loads and
    /// stores will do.
    pub(crate) fn note(&self, bytes: &[u8], place: &mut u64) {
        let is_wrong = self.checks && !pattern::matches(bytes, *place);
        let n = bytes.len();
        *place += n as u64;
        let reads = self.reads.load(Ordering::Relaxed);
        self.reads.store(reads + 1, Ordering::Relaxed);
        if n >= 4096 || reads.is_multiple_of(READS_PER_LOOK) {
            let now = clock::now();
            self.last.store(now, Ordering::Relaxed);
            if reads == 0 {
                self.first.store(now, Ordering::Relaxed);
            }
        }
        if is_wrong {
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
        // Last, as it is what others wait for.
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + n as u64, Ordering::Release);
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally {
            bytes: self.bytes.load(Ordering::Acquire),
            packets: self.reads.load(Ordering::Relaxed),
            first: self.first.load(Ordering::Relaxed),
            last: self.last.load(Ordering::Relaxed),
            wrong: self.wrong.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn reset(&self) {
        for number in [&self.bytes, &self.reads, &self.first, &self.last, &self.wrong] {
            number.store(0, Ordering::Release);
        }
    }
}
