//! What the data plane tells the control plane: rare events, in order, through a bounded queue and one eventfd.
//!
//! The worker never waits for a reader and never touches the interpreter. When nobody reads, the oldest records go and
//! are counted; the next reader is told how many. Guests and programs cause most records, and none of them may fill a
//! disk with what is written about it: how many of one kind about one guest are written is limited (`journal/limits.rs`),
//! and the others are only counted. Records of single connections are written only for who wants them, and cost nothing
//! else.

mod limits;

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use rustix::event::{EventfdFlags, eventfd};
use vsock_core::Cid;

use self::limits::{Limited, Limits};
use crate::events::{Event, Kind};

/// Records kept for a reader that is late.
const CAPACITY: usize = 4096;

/// One thing that happened. Its text for people is made when it is displayed.
#[derive(Debug)]
pub struct Record {
    /// When, by the wall clock.
    pub at: SystemTime,
    /// Which guest it is about, or which node; `None`: no one in particular.
    pub about: Option<Cid>,
    /// What happened.
    pub event: Event,
    limited: Limited,
}

impl Record {
    fn new(about: Option<Cid>, event: Event, limited: Limited) -> Self {
        Self { at: SystemTime::now(), about, event, limited }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.event, self.limited)
    }
}

#[derive(Debug, Default)]
struct Records {
    waiting: VecDeque<Record>,
    lost: u64,
    limits: Limits,
}

impl Records {
    fn push(&mut self, record: Record) {
        if self.waiting.len() == CAPACITY {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(record);
    }

    /// Says how many were held back.
    fn tell_held_back(&mut self, now: Instant) {
        for ((kind, about), count) in self.limits.take_untold(now) {
            let event = Event::HeldBack { kind, count };
            self.push(Record::new(about, event, Limited::default()));
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

    /// Whether records of single connections are wanted.
    pub fn wants_flows(&self) -> bool {
        self.wants_flows.load(Ordering::Relaxed)
    }

    /// Adds a record of one connection if such are wanted. The event, of this kind, is made only if it will be written.
    pub fn write_of_flow(&self, about: Cid, kind: Kind, event: impl FnOnce() -> Event) {
        if self.wants_flows() {
            self.add(Some(about), kind, event);
        }
    }

    /// Adds a record and makes the descriptor readable.
    pub fn write(&self, about: Option<Cid>, event: Event) {
        self.add(about, event.kind(), || event);
    }

    fn add(&self, about: Option<Cid>, kind: Kind, event: impl FnOnce() -> Event) {
        let Some(limited) = self.records().limits.admit((kind, about), Instant::now()) else {
            return;
        };
        let record = Record::new(about, event(), limited);
        self.records().push(record);
        // Fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&*self.ready, &1u64.to_ne_bytes());
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all records; when some were lost, the first one says how many. Finds out what programs call themselves, which
    /// reads files: the worker must not call it.
    pub fn take(&self) -> Vec<Record> {
        let mut count = [0; 8];
        // Empty already: nothing to reset.
        let _ = rustix::io::read(&*self.ready, &mut count);
        let mut records = self.records();
        records.tell_held_back(Instant::now());
        let lost = std::mem::take(&mut records.lost);
        let waiting = std::mem::take(&mut records.waiting);
        drop(records);
        let gap = (lost > 0).then(|| Record::new(None, Event::Lost(lost), Limited::default()));
        let mut taken: Vec<_> = gap.into_iter().chain(waiting).collect();
        for record in &mut taken {
            record.event.name_program();
        }
        taken
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
    use crate::events::FlowRecord;
    use vsock_virtio::sys::PeerCredentials;
    use vsock_virtio::vhost_user::Detach;

    const ALPHA: Option<Cid> = Some(Cid(3));

    #[test]
    fn records_come_back_in_order_and_once() {
        let journal = Journal::new().unwrap();
        journal.write(ALPHA, Event::Attached(PeerCredentials { pid: 7, uid: 0, gid: 0 }));
        journal.write(ALPHA, Event::Detached(Detach::Disconnected));
        let records = journal.take();
        let kinds: Vec<_> = records.iter().map(|record| record.event.kind().word()).collect();
        assert_eq!(kinds, ["attached", "detached"]);
        assert_eq!((records[0].about, records[0].to_string().as_str()), (ALPHA, "by pid 7"));
        assert!(journal.take().is_empty());
    }

    #[test]
    fn late_reader_is_told_how_many_were_lost() {
        let journal = Journal::new().unwrap();
        for i in 0..u32::try_from(CAPACITY + 5).unwrap() {
            journal.write(Some(Cid(i)), Event::Running);
        }
        let records = journal.take();
        assert_eq!(records.len(), CAPACITY + 1);
        assert!(matches!(records[0], Record { about: None, event: Event::Lost(5), .. }));
        assert_eq!(records[0].to_string(), "5 older records were not read in time");
        assert_eq!(records[1].about, Some(Cid(5)));
    }

    /// N6: of what nobody wants not even the value is made.
    #[test]
    fn flows_are_written_for_who_wants_them() {
        let journal = Journal::new().unwrap();
        journal.write_of_flow(Cid(3), Kind::Flow, || unreachable!());
        journal.set_wants_flows(true);
        journal.write_of_flow(Cid(3), Kind::Flow, || Event::FlowOpened(Box::new(record())));
        assert_eq!(journal.take().len(), 1);
    }

    fn record() -> FlowRecord {
        use crate::events::Named;
        use vsock_core::{Address, Port, SocketType};
        let at = |cid| Named { address: Address { cid, port: Port(1) }, guest: None };
        let (source, destination) = (at(Cid(2)), at(Cid(3)));
        let kind = SocketType::Stream;
        FlowRecord { source, destination, kind, program: None, by: None }
    }
}
