//! How many records of one kind about one guest are written: some at once, and then one from time to time. The last of
//! those at once says that more are only counted; how many that were is said by the next one, or to who asks later.
//!
//! A storm that lasts is thus a few lines a minute, for days. Records of single connections, which somebody has asked
//! for, come back sooner.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use vsock_core::Cid;

use crate::events::Kind;

/// Records that may be written at once.
const BURST: u32 = 64;

/// The time in which one of them comes back.
const PACE: Duration = Duration::from_secs(5);

/// The same for records of single connections.
const PACE_OF_FLOWS: Duration = Duration::from_micros(1_000_000 / 64);

/// How long a storm may go on before it is said how many were held back.
const STORM: Duration = Duration::from_secs(1);

/// Guests and kinds that are known; of more, those are forgotten of which nothing is held back.
const CAPACITY: usize = 4096;

/// What a limit is for.
type Subject = (Kind, Option<Cid>);

/// What a record says of others like it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limited {
    /// So many before it were only counted.
    before: u64,
    /// More are only counted for a while.
    is_last: bool,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.before > 0 {
            write!(f, " ({} before it were not written)", self.before)?;
        }
        f.write_str(if self.is_last { " (more are only counted for a while)" } else { "" })
    }
}

/// The limits of all kinds of records about all guests.
#[derive(Debug, Default)]
pub(super) struct Limits(HashMap<Subject, Bucket>);

/// A bucket of tokens: a record takes one, and they come back with time.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// When the last token came back.
    refilled: Instant,
    held_back: u64,
    /// When the first of those came.
    held_since: Instant,
    /// When it was last said how many were held back.
    told: Option<Instant>,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST, refilled: now, held_back: 0, held_since: now, told: None }
    }

    fn refill(&mut self, pace: Duration, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled).as_nanos() / pace.as_nanos();
        let back = u32::try_from(passed).unwrap_or(u32::MAX).min(BURST - self.tokens);
        self.tokens += back;
        // A full bucket starts over, so that what has passed of the time for one more does not count.
        self.refilled = if self.tokens == BURST { now } else { self.refilled + pace * back };
    }

    /// Takes how many were held back.
    fn tell(&mut self, now: Instant) -> u64 {
        if self.held_back > 0 {
            self.told = Some(now);
        }
        std::mem::take(&mut self.held_back)
    }
}

fn pace(kind: Kind) -> Duration {
    if matches!(kind, Kind::Flow | Kind::FlowRefused) { PACE_OF_FLOWS } else { PACE }
}

impl Limits {
    /// What a record says of others like it; `None`: it is only counted.
    pub(super) fn admit(&mut self, subject: Subject, now: Instant) -> Option<Limited> {
        let pace = pace(subject.0);
        if self.0.len() >= CAPACITY {
            self.0.retain(|&(kind, _), bucket| {
                bucket.refill(self::pace(kind), now);
                bucket.tokens < BURST || bucket.held_back > 0
            });
        }
        let bucket = self.0.entry(subject).or_insert_with(|| Bucket::new(now));
        bucket.refill(pace, now);
        if bucket.tokens == 0 {
            if bucket.held_back == 0 {
                bucket.held_since = now;
            }
            bucket.held_back += 1;
            return None;
        }
        bucket.tokens -= 1;
        let before = bucket.tell(now);
        Some(Limited { before, is_last: bucket.tokens == 0 && before == 0 })
    }

    /// How many were held back, of each that has not been told of lately.
    pub(super) fn take_untold(&mut self, now: Instant) -> Vec<(Subject, u64)> {
        let has_passed = |since: Instant, time| now.saturating_duration_since(since) >= time;
        let mut told = Vec::new();
        for (&subject, bucket) in &mut self.0 {
            let is_due = bucket.told.is_none_or(|told| has_passed(told, pace(subject.0)));
            if bucket.held_back > 0 && has_passed(bucket.held_since, STORM) && is_due {
                told.push((subject, bucket.tell(now)));
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOOFED: Subject = (Kind::Spoofed, Some(Cid(3)));
    const FLOW: Subject = (Kind::Flow, Some(Cid(3)));

    /// Plays a storm of 1000 records a second that lasts so many, with a reader who asks every second: records that were
    /// written, records that said how many were not, and how many those were.
    fn storm(limits: &mut Limits, subject: Subject, time: u64) -> (u64, u64, u64) {
        let start = Instant::now();
        let (mut written, mut telling, mut counted) = (0, 0, 0);
        for second in 0..time {
            let now = start + Duration::from_secs(second);
            for millisecond in 0..1000 {
                let at = now + Duration::from_millis(millisecond);
                if let Some(limited) = limits.admit(subject, at) {
                    written += 1;
                    counted += limited.before;
                }
            }
            for (of, count) in limits.take_untold(now + Duration::from_secs(1)) {
                assert_eq!(of, subject);
                telling += 1;
                counted += count;
            }
        }
        (written, telling, counted)
    }

    #[test]
    fn flood_of_one_kind_about_one_guest_is_cut_and_says_so() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let written: Vec<_> = (0..1000).filter_map(|_| limits.admit(SPOOFED, start)).collect();
        assert_eq!(written.len(), BURST as usize);
        let last = written[BURST as usize - 1].to_string();
        assert_eq!(last, " (more are only counted for a while)");
        let unlimited = Some(Limited::default());
        assert_eq!(limits.admit((Kind::Spoofed, Some(Cid(4))), start), unlimited);
        assert_eq!(limits.admit((Kind::Fault, Some(Cid(3))), start), unlimited);
        let next = limits.admit(SPOOFED, start + PACE).unwrap();
        assert_eq!(next.to_string(), " (936 before it were not written)");
        assert_eq!(limits.admit(SPOOFED, start + PACE), None);
    }

    #[test]
    fn storm_that_lasts_is_a_few_lines_a_minute_and_each_of_its_records_is_counted() {
        let mut limits = Limits::default();
        let (written, telling, counted) = storm(&mut limits, SPOOFED, 600);
        let paces = 600 / PACE.as_secs();
        assert!(written <= u64::from(BURST) + paces && telling <= paces, "{written}, {telling}");
        assert_eq!(written + counted + limits.0[&SPOOFED].held_back, 600_000);
    }

    #[test]
    fn records_of_connections_go_on_at_64_a_second() {
        let (written, telling, _) = storm(&mut Limits::default(), FLOW, 10);
        assert!((10 * 64..=11 * 64).contains(&written) && telling <= 10, "{written}, {telling}");
    }

    /// N6: a storm may be over with the second.
    #[test]
    fn what_was_held_back_is_told_to_who_asks_later_and_again_after_a_while() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        for _ in 0..100 {
            let _ = limits.admit(SPOOFED, start);
        }
        assert_eq!(limits.take_untold(start + STORM / 2), []);
        assert_eq!(limits.take_untold(start + STORM), [(SPOOFED, 36)]);
        assert_eq!(limits.take_untold(start + STORM), []);
        assert_eq!(limits.admit(SPOOFED, start + STORM), None);
        assert_eq!(limits.take_untold(start + STORM * 2), []);
        assert_eq!(limits.take_untold(start + STORM + PACE), [(SPOOFED, 1)]);
    }

    #[test]
    fn bucket_is_full_again_after_a_quiet_time_and_never_fuller() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let flood =
            |limits: &mut Limits, at| (0..100).filter_map(|_| limits.admit(SPOOFED, at)).count();
        assert_eq!(flood(&mut limits, start), 64);
        assert_eq!(flood(&mut limits, start + PACE * 5 / 2), 2);
        assert_eq!(flood(&mut limits, start + PACE * 3), 1, "the half was not lost");
        assert_eq!(flood(&mut limits, start + PACE * 1000), 64);
    }
}
