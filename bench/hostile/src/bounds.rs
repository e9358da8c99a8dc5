//! How long an attack goes on: until standard input says something or ends, and never beyond a time and a count.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vsock_load::orders;

/// Longer than any case is measured.
const MOST_TIME: Duration = Duration::from_secs(60);

/// More than any attack does in that time.
const MOST: u64 = 1 << 32;

/// The clock is read once in so many steps.
const STEPS_PER_LOOK: u64 = 16;

/// Counts the steps of an attack and says whether there may be another.
#[derive(Clone)]
pub(crate) struct Bounds {
    is_over: Arc<AtomicBool>,
    end: Instant,
    steps: u64,
}

impl Bounds {
    /// From now on; a thread waits for standard input.
    pub(crate) fn new() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_over);
        std::thread::spawn(move || {
            // A word, the end and an error all say that it is over.
            let _ = std::io::stdin().read(&mut [0; 64]);
            flag.store(true, Ordering::Relaxed);
        });
        Self { is_over, end: Instant::now() + MOST_TIME, steps: 0 }
    }

    /// Says that the attack goes on from here, all preparations done.
    pub(crate) fn ready() {
        orders::answer("\"ready\": true");
    }

    /// Whether there may be another step; counts it.
    #[inline]
    pub(crate) fn another(&mut self) -> bool {
        if self.is_over.load(Ordering::Relaxed) || self.steps >= MOST {
            return false;
        }
        if self.steps.is_multiple_of(STEPS_PER_LOOK) && Instant::now() >= self.end {
            self.is_over.store(true, Ordering::Relaxed);
            return false;
        }
        self.steps += 1;
        true
    }

    /// Waits, holding what the attack has taken.
    pub(crate) fn hold(&mut self) {
        while self.another() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many steps there were.
    pub(crate) fn count(&self) -> u64 {
        self.steps
    }
}
