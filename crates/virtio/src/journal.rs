//! What the data plane tells the control plane: rare events, in order, through a bounded queue and one eventfd.
//!
//! The worker never waits for a reader and never touches the interpreter. When nobody reads, the oldest records go and
//! are counted; the next reader is told how many. Guests and programs cause most records, and none of them may fill a
//! disk with what is written about it: of one kind about one guest, so many are written per second, and the last of
//! them says that more are only counted.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{EventfdFlags, eventfd};

/// Records kept for a reader that is late.
const CAPACITY: usize = 4096;

/// Records of one kind about one guest in one second.
const BURST: u32 = 64;

/// The time in which they count.
const PERIOD: Duration = Duration::from_secs(1);

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, by the wall clock.
    pub at: SystemTime,
    /// What, as a short stable word: `attached`, `detached`, `refused`, …
    pub kind: &'static str,
    /// Which guest's; `u32::MAX` when none.
    pub cid: u32,
    /// For people: why, who, how many.
    pub detail: String,
}

#[derive(Debug, Default)]
struct Records {
    waiting: VecDeque<Record>,
    lost: u64,
    rates: HashMap<(&'static str, u32), Rate>,
}

/// How many records of one kind about one guest were written lately.
#[derive(Debug)]
struct Rate {
    since: Instant,
    written: u32,
    held_back: u64,
}

impl Records {
    /// What to add to a record of this kind; `None`: it is only counted.
    fn admit(&mut self, kind: &'static str, cid: u32, now: Instant) -> Option<String> {
        if self.rates.len() >= CAPACITY {
            self.rates.retain(|_, rate| now.duration_since(rate.since) < PERIOD);
        }
        let fresh = Rate { since: now, written: 0, held_back: 0 };
        let rate = self.rates.entry((kind, cid)).or_insert(fresh);
        let mut addition = String::new();
        if now.duration_since(rate.since) >= PERIOD {
            if rate.held_back > 0 {
                addition = format!(" ({} before it were not written)", rate.held_back);
            }
            *rate = Rate { since: now, written: 0, held_back: 0 };
        }
        if rate.written == BURST {
            rate.held_back += 1;
            return None;
        }
        rate.written += 1;
        if rate.written == BURST {
            addition.push_str(" (more within this second are only counted)");
        }
        Some(addition)
    }
}

/// The queue; cheap to clone, all clones are one queue.
#[derive(Clone, Debug)]
pub struct Journal {
    records: Arc<Mutex<Records>>,
    ready: Arc<OwnedFd>,
}

impl Journal {
    /// An empty queue.
    ///
    /// # Errors
    /// The kernel gives no eventfd.
    pub fn new() -> std::io::Result<Self> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { records: Arc::default(), ready: Arc::new(ready) })
    }

    /// Adds a record and makes the descriptor readable.
    pub fn write(&self, kind: &'static str, cid: u32, detail: impl Into<String>) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(addition) = records.admit(kind, cid, Instant::now()) else { return };
        let detail = detail.into() + &addition;
        let record = Record { at: SystemTime::now(), kind, cid, detail };
        if records.waiting.len() == CAPACITY {
            records.waiting.pop_front();
            records.lost += 1;
        }
        records.waiting.push_back(record);
        drop(records);
        // Fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&*self.ready, &1u64.to_ne_bytes());
    }

    /// Takes all records; when some were lost, the first one says how many.
    pub fn take(&self) -> Vec<Record> {
        let mut count = [0; 8];
        // Empty already: nothing to reset.
        let _ = rustix::io::read(&*self.ready, &mut count);
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = std::mem::take(&mut records.lost);
        let waiting = std::mem::take(&mut records.waiting);
        drop(records);
        let gap = (lost > 0).then(|| Record {
            at: SystemTime::now(),
            kind: "lost",
            cid: u32::MAX,
            detail: format!("{lost} older records were not read in time"),
        });
        gap.into_iter().chain(waiting).collect()
    }
}

impl AsFd for Journal {
    /// Readable while there is something to take.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order_and_once() {
        let journal = Journal::new().unwrap();
        journal.write("attached", 3, "by pid 7");
        journal.write("detached", 3, "it left");
        let kinds: Vec<_> = journal.take().into_iter().map(|record| record.kind).collect();
        assert_eq!(kinds, ["attached", "detached"]);
        assert!(journal.take().is_empty());
    }

    #[test]
    fn late_reader_is_told_how_many_were_lost() {
        let journal = Journal::new().unwrap();
        for i in 0..CAPACITY + 5 {
            journal.write("refused", i.try_into().unwrap(), i.to_string());
        }
        let records = journal.take();
        assert_eq!(records.len(), CAPACITY + 1);
        assert_eq!((records[0].kind, records[1].detail.as_str()), ("lost", "5"));
    }

    #[test]
    fn flood_of_one_kind_about_one_guest_is_cut_and_says_so() {
        let mut records = Records::default();
        let start = Instant::now();
        let written: Vec<_> =
            (0..1000).filter_map(|_| records.admit("spoofed", 3, start)).collect();
        assert_eq!(written.len(), BURST as usize);
        assert_eq!(written[BURST as usize - 1], " (more within this second are only counted)");
        assert_eq!(records.admit("spoofed", 4, start).as_deref(), Some(""));
        assert_eq!(records.admit("fault", 3, start).as_deref(), Some(""));
        let next = records.admit("spoofed", 3, start + PERIOD);
        assert_eq!(next.as_deref(), Some(" (936 before it were not written)"));
    }
}
