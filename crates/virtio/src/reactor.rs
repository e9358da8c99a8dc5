//! One epoll instance: file descriptors in, tokens out, and a bell that other threads can ring.
//!
//! Everything is registered edge-triggered and once for its whole life: a descriptor costs one `epoll_ctl`, however
//! much traffic it carries, and an eventfd of a ring never has to be read. The price is a rule that the worker keeps:
//! whoever is told "readable" or "writable" remembers it until the kernel answers `EAGAIN`.
//! Closing a descriptor takes it out of the set, as none of ours has a second owner.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// What a descriptor is known by in the reactor: an index chosen by the worker.
pub(crate) type Token = usize;

/// The token of the bell; the worker never gives it to anything else.
pub(crate) const BELL: Token = usize::MAX;

/// What happened to one descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    /// Whose descriptor.
    pub(crate) token: Token,
    /// There may be something to read, or the other side has ended its half.
    pub(crate) readable: bool,
    /// There may be room to write.
    pub(crate) writable: bool,
    /// The other side will send no more.
    pub(crate) read_closed: bool,
    /// Both directions are over.
    pub(crate) hung_up: bool,
}

/// Wakes the worker from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Bell(Arc<OwnedFd>);

impl Bell {
    /// Makes the next (or current) wait return.
    pub(crate) fn ring(&self) {
        // The only failure is a counter at its maximum, and then the worker is awake anyhow.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// The set of descriptors one worker listens to.
#[derive(Debug)]
pub(crate) struct Reactor {
    epoll: OwnedFd,
    bell: Bell,
}

/// Where the kernel writes what happened; belongs to the thread that waits.
pub(crate) struct Events(Vec<epoll::Event>);

impl Events {
    /// Room for one wait's events; more come with the next.
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(256))
    }
}

impl Reactor {
    /// An empty set with its bell.
    pub(crate) fn new() -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = Bell(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        let data = epoll::EventData::new_u64(BELL as u64);
        epoll::add(&epoll, &*bell.0, data, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self { epoll, bell })
    }

    /// A handle with which other threads wake this reactor.
    pub(crate) fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Watches `fd` for everything that can happen to it, until it is closed.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token) -> std::io::Result<()> {
        let data = epoll::EventData::new_u64(token as u64);
        Ok(epoll::add(&self.epoll, fd, data, everything())?)
    }

    /// Tells of a descriptor watched for everything once more, as if all that is true now had just come about.
    pub(crate) fn renew(&self, fd: impl AsFd, token: Token) {
        let data = epoll::EventData::new_u64(token as u64);
        // Cannot fail for a descriptor in the set.
        let _ = epoll::modify(&self.epoll, fd, data, everything());
    }

    /// Watches `fd` for input only: eventfds and listening sockets, which are always writable.
    pub(crate) fn watch_input(&self, fd: impl AsFd, token: Token) -> std::io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token as u64), flags)?)
    }

    /// Stops watching a descriptor that lives on elsewhere.
    pub(crate) fn forget(&self, fd: BorrowedFd<'_>) {
        // It may have been closed by its owner already; then there is nothing to do.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits until something happens or `timeout` is over (`None`: for ever) and appends what happened to `out`.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        events: &mut Events,
        out: &mut Vec<Readiness>,
    ) -> std::io::Result<()> {
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
        out.extend(events.0.iter().map(readiness));
        Ok(())
    }
}

fn everything() -> epoll::EventFlags {
    use epoll::EventFlags as F;
    F::IN | F::OUT | F::RDHUP | F::ET
}

fn readiness(event: &epoll::Event) -> Readiness {
    use epoll::EventFlags as F;
    let flags = event.flags;
    let token = event.data.u64();
    Readiness {
        token: usize::try_from(token).unwrap_or(BELL),
        readable: flags.intersects(F::IN | F::RDHUP | F::HUP | F::ERR),
        writable: flags.intersects(F::OUT | F::HUP | F::ERR),
        read_closed: flags.intersects(F::RDHUP | F::HUP),
        hung_up: flags.intersects(F::HUP | F::ERR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn bell_rung_by_another_thread_ends_the_wait() {
        let reactor = Reactor::new().unwrap();
        let bell = reactor.bell();
        let ringer = std::thread::spawn(move || bell.ring());
        let mut out = Vec::new();
        reactor.wait(Some(Duration::from_secs(10)), &mut Events::new(), &mut out).unwrap();
        ringer.join().unwrap();
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].token, BELL);
    }

    #[test]
    fn data_then_half_close_is_told_apart_from_full_close() {
        let reactor = Reactor::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reactor.watch(&ours, 7).unwrap();
        theirs.write_all(b"x").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut out = Vec::new();
        reactor.wait(Some(Duration::from_secs(10)), &mut Events::new(), &mut out).unwrap();
        assert!(out[0].token == 7 && out[0].readable && out[0].read_closed && !out[0].hung_up);
        drop(theirs);
        out.clear();
        reactor.wait(Some(Duration::from_secs(10)), &mut Events::new(), &mut out).unwrap();
        assert!(out[0].hung_up);
    }

    #[test]
    fn renewed_descriptor_is_told_of_again_with_all_that_is_true() {
        let reactor = Reactor::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        reactor.watch(&ours, 1).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut out = Vec::new();
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        reactor.renew(&ours, 2);
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        assert_eq!(out.len(), 2);
        assert!(out[1].token == 2 && out[1].read_closed && out[1].writable);
    }

    #[test]
    fn nothing_new_means_no_event_twice() {
        let reactor = Reactor::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reactor.watch(&ours, 1).unwrap();
        theirs.write_all(b"x").unwrap();
        let mut out = Vec::new();
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        assert_eq!(out.len(), 1);
        reactor.wait(Some(Duration::ZERO), &mut Events::new(), &mut out).unwrap();
        assert_eq!(out.len(), 1, "edge-triggered: told once");
    }
}
