//! Nanoseconds since the process began, and what a list of durations says.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Now; never 0.
pub fn now() -> u64 {
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Seconds as nanoseconds.
pub fn nanoseconds(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds.clamp(0.0, 3600.0)).as_nanos()).unwrap_or(0)
}

/// Nanoseconds as seconds.
#[allow(clippy::cast_precision_loss)] // nobody measures longer than 100 days
pub fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Durations of single operations.
#[derive(Default)]
pub struct Durations(Vec<u64>);

impl Durations {
    /// Notes one duration.
    pub fn note(&mut self, nanoseconds: u64) {
        self.0.push(nanoseconds);
    }

    /// Count and percentiles as members of a JSON object, in microseconds.
    pub fn json(mut self, elapsed: u64) -> String {
        self.0.sort_unstable();
        let at = |part: usize| {
            // `part` thousandths of the list; the last for small lists.
            let index = (self.0.len() * part / 1000).min(self.0.len().saturating_sub(1));
            seconds(self.0.get(index).copied().unwrap_or(0)) * 1e6
        };
        format!(
            "\"count\": {}, \"seconds\": {:.6}, \"p50\": {:.3}, \"p90\": {:.3}, \"p99\": {:.3}, \"p999\": {:.3}, \"max\": {:.3}",
            self.0.len(),
            seconds(elapsed),
            at(500),
            at(900),
            at(990),
            at(999),
            at(1000),
        )
    }
}
