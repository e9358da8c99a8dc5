//! What the data plane tells the control plane: rare events, in order, through a bounded queue and one eventfd.
//!
//! The worker never waits for a reader and never touches the interpreter. When nobody reads, the oldest records go and
//! are counted; the next reader is told how many. Guests and programs cause most records, and none of them may fill a
//! disk with what is written about it: of one kind about one guest, so many are written per second, and the last of
//! them says that more are only counted. How many that were is said by the next one, or when a reader asks a second
//! later. Records of single connections are written only for who wants them, and cost nothing else.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

    fn push(&mut self, kind: &'static str, cid: u32, detail: String) {
        if self.waiting.len() == CAPACITY {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(Record { at: SystemTime::now(), kind, cid, detail });
    }

    /// Says how many were held back, of each kind whose second is over.
    fn tell_held_back(&mut self, now: Instant) {
        let over = |rate: &Rate| rate.held_back > 0 && now.duration_since(rate.since) >= PERIOD;
        let told: Vec<_> = self
            .rates
            .iter_mut()
            .filter(|(_, rate)| over(rate))
            .map(|(&key, rate)| (key, std::mem::take(&mut rate.held_back)))
            .collect();
        for ((kind, cid), count) in told {
            self.push(kind, cid, format!("{count} more were not written"));
        }
    }
}

/// The queue; cheap to clone, all clones are one queue.
#[derive(Clone, Debug)]
pub struct Journal {
    records: Arc<Mutex<Records>>,
    ready: Arc<OwnedFd>,
    wants_flows: Arc<AtomicBool>,
}

impl Journal {
    /// An empty queue.
    ///
    /// # Errors
    /// The kernel gives no eventfd.
    pub fn new() -> std::io::Result<Self> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { records: Arc::default(), ready: Arc::new(ready), wants_flows: Arc::default() })
    }

    /// Whether records of single connections are wanted, from now on; at first they are not.
    pub fn set_wants_flows(&self, wanted: bool) {
        self.wants_flows.store(wanted, Ordering::Relaxed);
    }

    /// Adds a record of one connection if such are wanted. `detail` is made only if it will be written.
    pub fn write_of_flow(&self, kind: &'static str, cid: u32, detail: impl FnOnce() -> String) {
        if self.wants_flows.load(Ordering::Relaxed) {
            self.add(kind, cid, detail);
        }
    }

    /// Adds a record and makes the descriptor readable.
    pub fn write(&self, kind: &'static str, cid: u32, detail: impl Into<String>) {
        self.add(kind, cid, || detail.into());
    }

    fn add(&self, kind: &'static str, cid: u32, detail: impl FnOnce() -> String) {
        let Some(addition) = self.records().admit(kind, cid, Instant::now()) else { return };
        let detail = detail() + &addition;
        self.records().push(kind, cid, detail);
        // Fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&*self.ready, &1u64.to_ne_bytes());
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all records; when some were lost, the first one says how many.
    pub fn take(&self) -> Vec<Record> {
        let mut count = [0; 8];
        // Empty already: nothing to reset.
        let _ = rustix::io::read(&*self.ready, &mut count);
        let mut records = self.records();
        records.tell_held_back(Instant::now());
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

    /// N6: a storm may be over with the second.
    #[test]
    fn what_was_held_back_is_told_to_who_asks_later() {
        let mut records = Records::default();
        let start = Instant::now();
        for _ in 0..100 {
            let _ = records.admit("flow", 3, start);
        }
        records.tell_held_back(start + PERIOD / 2);
        assert!(records.waiting.is_empty());
        records.tell_held_back(start + PERIOD);
        records.tell_held_back(start + PERIOD);
        let told: Vec<_> = records.waiting.iter().map(|it| (it.cid, it.detail.as_str())).collect();
        assert_eq!(told, [(3, "36 more were not written")]);
    }

    /// N6: what nobody wants is not even put into words.
    #[test]
    fn flows_are_written_for_who_wants_them() {
        let journal = Journal::new().unwrap();
        journal.write_of_flow("flow", 3, || unreachable!());
        journal.set_wants_flows(true);
        journal.write_of_flow("flow", 3, || "from=2:1 to=3:2".into());
        assert_eq!(journal.take().len(), 1);
    }
}
