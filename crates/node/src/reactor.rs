//! One epoll instance: who listens to which file descriptor, and a waker for other threads.
//!
//! Everything is registered edge-triggered and once for its whole life: a descriptor costs one `epoll_ctl`, however
//! much traffic it carries, and an eventfd of a queue never has to be read. The price is a rule that the worker keeps:
//! whoever is told "readable" or "writable" remembers it until the kernel answers `EAGAIN`.
//! Closing a descriptor takes it out of the set, as none of ours has a second owner; a reaper takes it out before it is
//! closed.
//!
//! A descriptor keeps its [`SourceId`] for life while its [`Owner`] may change: a program's connection starts as that of a
//! client, and becomes a listener's or a flow's when its request is granted. Each owner knows by this id what the
//! descriptor is to it; an event of an id that has been removed, in the same round, finds nothing.

mod saved;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use vsock_core::{Key, Slots};

use crate::reaper::Reaper;

pub(crate) use self::saved::Claims;
pub use self::saved::SavedSources;

/// To whom the events of a descriptor go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A link: the other side has signalled a queue.
    Queue,
    /// A driver link: readable means that the device has gone.
    Device,
    /// A Unix socket of ours on which programs connect.
    Acceptor,
    /// A program that asks for something.
    Client,
    /// A program on a guest's hybrid socket that has not been connected yet.
    HybridClient,
    /// A program that takes connections.
    Listener,
    /// A connection.
    Flow,
}

/// Names a descriptor that is listened to.
pub type SourceId = Key<Owner>;

/// What epoll knows the waker by: no key has this number.
const WAKER: u64 = u64::MAX;

/// What happened to one descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    /// Which descriptor.
    pub(crate) source: SourceId,
    /// There may be something to read, or the other side has ended its half.
    pub(crate) readable: bool,
    /// There may be room to write.
    pub(crate) writable: bool,
    /// The other side has sent an urgent byte (MSG_OOB): a read ends before it, whatever is behind it.
    pub(crate) urgent: bool,
    /// The other side will send no more.
    pub(crate) read_closed: bool,
    /// Both directions are over.
    pub(crate) hung_up: bool,
}

impl Readiness {
    /// There may be something to read at a descriptor.
    pub(crate) fn readable(source: SourceId) -> Self {
        let (readable, writable, urgent, read_closed, hung_up) = (true, false, false, false, false);
        Self { source, readable, writable, urgent, read_closed, hung_up }
    }

    /// The same descriptor has been told of once more.
    pub(crate) fn merge(&mut self, later: Self) {
        self.readable |= later.readable;
        self.writable |= later.writable;
        self.urgent |= later.urgent;
        self.read_closed |= later.read_closed;
        self.hung_up |= later.hung_up;
    }
}

/// Wakes the worker from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Makes the next (or current) wait return.
    pub(crate) fn wake(&self) {
        // The only failure is a counter at its maximum, and then the worker is awake anyhow.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// The descriptors that one worker listens to.
#[derive(Debug)]
pub(crate) struct Sources {
    epoll: Arc<OwnedFd>,
    waker: Waker,
    owners: Slots<Owner>,
}

/// Where the kernel writes what happened; belongs to the thread that waits.
pub(crate) struct Events(Vec<epoll::Event>);

impl Events {
    /// Room for one wait's events; more come with the next.
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(256))
    }
}

impl Sources {
    /// An empty set with its waker.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let waker = Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        let data = epoll::EventData::new_u64(WAKER);
        epoll::add(&epoll, &*waker.0, data, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self { epoll, waker, owners: Slots::new() })
    }

    /// Who closes sockets that are listened to here.
    pub(crate) fn reaper(&self) -> Reaper {
        Reaper::new(Arc::clone(&self.epoll), self.waker())
    }

    /// A handle with which other threads wake this worker.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Listens to everything that can happen to `fd`, until it is closed.
    pub(crate) fn add(&mut self, fd: impl AsFd, owner: Owner) -> io::Result<SourceId> {
        self.add_with(fd, owner, everything())
    }

    /// Listens for input only: eventfds and listening sockets, which are always writable.
    pub(crate) fn add_input(&mut self, fd: impl AsFd, owner: Owner) -> io::Result<SourceId> {
        self.add_with(fd, owner, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    fn add_with(
        &mut self,
        fd: impl AsFd,
        owner: Owner,
        events: epoll::EventFlags,
    ) -> io::Result<SourceId> {
        let id = self.owners.insert(owner);
        let data = epoll::EventData::new_u64(id.to_bits());
        match epoll::add(&self.epoll, fd, data, events) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.owners.remove(id);
                Err(error.into())
            }
        }
    }

    /// Gives a descriptor that is listened to for everything to another owner. What epoll said of it was said to the one
    /// before, so all that is true now is told once more.
    pub(crate) fn hand_over(&mut self, fd: impl AsFd, id: SourceId, owner: Owner) {
        if let Some(before) = self.owners.get_mut(id) {
            *before = owner;
            self.renew(fd, id);
        }
    }

    /// Tells of a descriptor that is listened to for everything once more, as if all that is true now had just come
    /// about.
    pub(crate) fn renew(&self, fd: impl AsFd, id: SourceId) {
        let data = epoll::EventData::new_u64(id.to_bits());
        // Cannot fail for a descriptor in the set.
        let _ = epoll::modify(&self.epoll, fd, data, everything());
    }

    /// Forgets a descriptor that is closed with this.
    pub(crate) fn remove(&mut self, id: SourceId) {
        self.owners.remove(id);
    }

    /// Stops listening to a descriptor that lives on elsewhere.
    pub(crate) fn remove_shared(&mut self, fd: BorrowedFd<'_>, id: SourceId) {
        // It may have been closed by its owner already; then there is nothing to do.
        let _ = epoll::delete(&self.epoll, fd);
        self.owners.remove(id);
    }

    /// To whom the events of a descriptor go; `None`: nobody listens to it any more.
    pub(crate) fn owner(&self, id: SourceId) -> Option<Owner> {
        self.owners.get(id).copied()
    }

    /// Waits until something happens or `timeout` is over (`None`: for ever) and appends what happened to `out`.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        events: &mut Events,
        out: &mut Vec<Readiness>,
    ) -> io::Result<()> {
        let mut timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        events.0.clear();
        loop {
            let spare = rustix::buffer::spare_capacity(&mut events.0);
            match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
                Ok(_) => break,
                // The process was stopped, perhaps for long: what happened meanwhile is heard before time is looked at.
                Err(Errno::INTR) => timeout = Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
                Err(error) => return Err(error.into()),
            }
        }
        out.extend(events.0.iter().filter_map(readiness));
        Ok(())
    }
}

fn everything() -> epoll::EventFlags {
    use epoll::EventFlags as F;
    F::IN | F::PRI | F::OUT | F::RDHUP | F::ET
}

/// What an event says; `None`: it is the waker's, which has done its work by being heard.
fn readiness(event: &epoll::Event) -> Option<Readiness> {
    use epoll::EventFlags as F;
    let flags = event.flags;
    Some(Readiness {
        source: SourceId::from_bits(event.data.u64())?,
        readable: flags.intersects(F::IN | F::RDHUP | F::HUP | F::ERR),
        writable: flags.intersects(F::OUT | F::HUP | F::ERR),
        urgent: flags.contains(F::PRI),
        read_closed: flags.intersects(F::RDHUP | F::HUP),
        hung_up: flags.intersects(F::HUP | F::ERR),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn waker_used_by_another_thread_ends_the_wait_and_names_nobody() {
        let reactor = Sources::new().unwrap();
        let waker = reactor.waker();
        let other = std::thread::spawn(move || waker.wake());
        let mut out = Vec::new();
        reactor.wait(None, &mut Events::new(), &mut out).unwrap();
        other.join().unwrap();
        assert!(out.is_empty());
    }

    #[test]
    fn data_then_half_close_is_told_apart_from_full_close() {
        let mut reactor = Sources::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let id = reactor.add(&ours, Owner::Flow).unwrap();
        theirs.write_all(b"x").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut out = Vec::new();
        reactor.wait(Some(Duration::from_secs(10)), &mut Events::new(), &mut out).unwrap();
        assert!(out[0].source == id && out[0].readable && out[0].read_closed && !out[0].hung_up);
        drop(theirs);
        out.clear();
        reactor.wait(Some(Duration::from_secs(10)), &mut Events::new(), &mut out).unwrap();
        assert!(out[0].hung_up);
    }

    #[test]
    fn descriptor_handed_over_is_told_of_again_with_all_that_is_true() {
        let mut reactor = Sources::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = reactor.add(&ours, Owner::Client).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut out = Vec::new();
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        reactor.hand_over(&ours, id, Owner::Flow);
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        assert_eq!(out.len(), 2);
        assert!(out[1].source == id && out[1].read_closed && out[1].writable);
        assert_eq!(reactor.owner(id), Some(Owner::Flow));
    }

    #[test]
    fn nothing_new_means_no_event_twice() {
        let mut reactor = Sources::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reactor.add(&ours, Owner::Flow).unwrap();
        theirs.write_all(b"x").unwrap();
        let mut out = Vec::new();
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        assert_eq!(out.len(), 1);
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        assert_eq!(out.len(), 1, "edge-triggered: told once");
    }

    #[test]
    fn event_of_a_descriptor_that_was_removed_meanwhile_finds_nobody() {
        let mut reactor = Sources::new().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (other, _its) = UnixStream::pair().unwrap();
        let id = reactor.add(&ours, Owner::Flow).unwrap();
        let mut out = Vec::new();
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        reactor.remove(id);
        assert!(reactor.add(&other, Owner::Client).unwrap() != id);
        assert_eq!(reactor.owner(out[0].source), None);
    }
}
