//! A front end that was taken over, by what it hands over as kick and call.
//!
//! Each attachment has one ring whose every chain makes the device call, so that the descriptor is used all the time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::pipe::pipe;
use vsock_core::{Op, RawHeader};
use vsock_load::Result;

use crate::bounds::Bounds;
use crate::front_end::{FrontEnd, event, request};
use crate::ring::{BUFFERS, MEMORY, Ring, config, memory};
use crate::stage::{Attack, HOST, Stage};
use crate::stuck::StuckPage;

/// How long a device that gives nothing back is held up before it is let go.
const HELD: Duration = Duration::from_secs(2);

/// Calls that the device may make while its eventfd is filled.
const ROOM: u64 = 2;

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "call-full", play: call_full },
    Attack { name: "call-full-always", play: call_full_always },
    Attack { name: "call-pipe", play: call_pipe },
    Attack { name: "call-socket", play: call_socket },
    Attack { name: "call-epoll", play: call_epoll },
    Attack { name: "kick-pipe", play: kick_pipe },
    Attack { name: "kick-epoll", play: kick_epoll },
    Attack { name: "kick-never-empty", play: kick_never_empty },
    Attack { name: "call-pipe-held", play: call_pipe_held },
    Attack { name: "kick-epoll-held", play: kick_epoll_held },
    Attack { name: "call-lingers", play: call_lingers },
];

/// An attachment with one ring (tx).
struct Signalled {
    ring: Ring,
    front: FrontEnd,
    kick: Option<OwnedFd>,
}

impl Signalled {
    /// Attaches with these descriptors; `kick` is an eventfd if it is `None`.
    fn new(stage: &Stage, kick: Option<BorrowedFd<'_>>, call: BorrowedFd<'_>) -> Result<Self> {
        let (file, memory) = memory(MEMORY)?;
        let ring = Ring::new(&memory, config(1, 256));
        let own = event()?;
        let mut front = FrontEnd::connect(stage.plain_guest()?)?;
        front.negotiate()?;
        let header = RawHeader {
            src_cid: front.cid()?,
            dst_cid: HOST.into(),
            kind: 1,
            op: Op::Rst.to_wire(),
            ..RawHeader::default()
        };
        memory.write(BUFFERS, &header.encode());
        ring.fill((BUFFERS, 44), 0);
        ring.want_calls(true);
        front.give_memory(file.as_fd(), MEMORY)?;
        front.start(1, 256, kick.unwrap_or(own.as_fd()), call)?;
        // A device that refuses hangs up: that is as well, and the rest of the attack is no harm.
        let _ = front.ask(request::GET_FEATURES, &[]);
        Ok(Self { ring, front, kick: kick.is_none().then_some(own) })
    }

    /// Keeps chains in the ring, one at a time so that each makes a call.
    fn feed(&mut self) {
        if self.ring.under_way() == 0 {
            self.ring.offer(0);
            self.ring.publish();
            if let Some(kick) = &self.kick {
                // Full means that it was kicked.
                let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
            }
        } else {
            std::thread::yield_now();
        }
    }

    /// Feeds for [`HELD`] at most.
    fn feed_while_held(&mut self, bounds: &mut Bounds) {
        let begin = Instant::now();
        while begin.elapsed() < HELD && bounds.another() {
            self.feed();
        }
    }

    fn feed_until_over(&mut self, bounds: &mut Bounds) {
        Bounds::ready();
        while bounds.another() {
            self.feed();
        }
    }
}

/// A call eventfd that blocks whoever writes to it when it is full, emptied and filled between the device's poll and its
/// write; left full as soon as the device gives nothing back.
fn call_full(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let call =
        Arc::new(Blocking { call: eventfd(0, EventfdFlags::CLOEXEC)?, fills: AtomicU64::new(0) });
    let mut device = Signalled::new(stage, None, call.call.as_fd())?;
    std::thread::spawn({
        let call = Arc::clone(&call);
        move || call.free_the_filler()
    });
    Bounds::ready();
    while bounds.another() {
        device.feed();
        for _ in 0..32 {
            call.empty()?;
            call.fill()?;
        }
        let full_at = Instant::now();
        while device.ring.under_way() != 0 && full_at.elapsed() < HELD && bounds.another() {
            std::thread::yield_now();
        }
    }
    call.empty()
}

/// An eventfd that blocks.
struct Blocking {
    call: OwnedFd,
    /// Writes begun and ended; odd while one is under way.
    fills: AtomicU64,
}

impl Blocking {
    fn empty(&self) -> Result<()> {
        if is_ready(&self.call, PollFlags::IN) {
            rustix::io::read(&self.call, &mut [0; 8])?;
        }
        Ok(())
    }

    /// Fills it up, with room for what the device may add meanwhile; the last of it one by one.
    fn fill(&self) -> Result<()> {
        self.add(u64::MAX - 1 - ROOM)?;
        for _ in 0..ROOM {
            if is_ready(&self.call, PollFlags::OUT) {
                self.add(1)?;
            }
        }
        Ok(())
    }

    fn add(&self, count: u64) -> Result<()> {
        self.fills.fetch_add(1, Ordering::SeqCst);
        let written = rustix::io::write(&self.call, &count.to_ne_bytes());
        self.fills.fetch_add(1, Ordering::SeqCst);
        written?;
        Ok(())
    }

    /// Empties it when a write of ours has been under way for long: the device was quicker.
    fn free_the_filler(&self) {
        let mut before = 0;
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let fills = self.fills.load(Ordering::SeqCst);
            if fills == before && fills % 2 == 1 {
                // Nothing to read means that the write is over.
                let _ = self.empty();
            }
            before = fills;
        }
    }
}

fn is_ready(fd: &OwnedFd, how: PollFlags) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(fd, how)];
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

/// A call eventfd that is full and stays so.
fn call_full_always(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let call = eventfd(0, EventfdFlags::CLOEXEC)?;
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes())?;
    Signalled::new(stage, None, call.as_fd())?.feed_until_over(bounds);
    let _ = rustix::io::read(&call, &mut [0; 8]);
    Ok(())
}

/// A pipe that nobody reads.
fn call_pipe(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (_reader, writer) = pipe()?;
    Signalled::new(stage, None, writer.as_fd())?.feed_until_over(bounds);
    Ok(())
}

/// A socket that nobody reads.
fn call_socket(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair()?;
    Signalled::new(stage, None, ours.as_fd())?.feed_until_over(bounds);
    Ok(())
}

/// A descriptor that cannot be written.
fn call_epoll(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    Signalled::new(stage, None, set.as_fd())?.feed_until_over(bounds);
    Ok(())
}

/// A pipe that is full of bytes: readable at every look.
fn kick_pipe(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (reader, writer) = pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    let call = event()?;
    let mut device = Signalled::new(stage, Some(reader.as_fd()), call.as_fd())?;
    Bounds::ready();
    while bounds.another() {
        // Full is what it is to be.
        let _ = rustix::io::write(&writer, &[1; 4096]);
        device.feed();
    }
    Ok(())
}

/// An epoll set over many descriptors that are ready: each look at it goes through them.
fn kick_epoll(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut ready = Vec::new();
    for index in 0..512 {
        let fd = eventfd(1, EventfdFlags::CLOEXEC)?;
        epoll::add(&set, &fd, epoll::EventData::new_u64(index), epoll::EventFlags::IN)?;
        ready.push(fd);
    }
    let call = event()?;
    Signalled::new(stage, Some(set.as_fd()), call.as_fd())?.feed_until_over(bounds);
    Ok(())
}

/// A kick in semaphore mode with the highest value: readable at every look.
fn kick_never_empty(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
    let kick = eventfd(0, flags)?;
    rustix::io::write(&kick, &(u64::MAX - 1).to_ne_bytes())?;
    let call = event()?;
    Signalled::new(stage, Some(kick.as_fd()), call.as_fd())?.feed_until_over(bounds);
    Ok(())
}

/// A TCP connection with unsent data and SO_LINGER as call, and a hang-up: whoever closes it last waits.
fn call_lingers(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    Bounds::ready();
    while bounds.another() {
        let (lingering, _peer) = crate::passing::lingering(HELD)?;
        // While the last one is being closed nobody answers.
        let Ok(device) = Signalled::new(stage, None, lingering.as_fd()) else { continue };
        drop(lingering);
        drop(device.front);
    }
    Ok(())
}

/// A pipe that a thread of ours writes to from a page that does not come: it sleeps with the pipe's lock.
fn call_pipe_held(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (page, faults) = StuckPage::new()?;
    drop((page, faults)); // whether it can be done at all
    Bounds::ready();
    while bounds.another() {
        let (reader, writer) = pipe()?;
        let mut device = Signalled::new(stage, None, writer.as_fd())?;
        let (page, faults) = StuckPage::new()?;
        let holder = std::thread::spawn(move || page.write_to(&writer));
        device.feed_while_held(bounds);
        drop((faults, reader));
        // Its write may have failed, now that nobody reads.
        let _ = holder.join();
    }
    Ok(())
}

/// An epoll set on which a thread of ours waits, its event to be written into such a page: it sleeps with the set's lock.
fn kick_epoll_held(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (page, faults) = StuckPage::new()?;
    drop((page, faults));
    Bounds::ready();
    while bounds.another() {
        let set = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let (ready, call) = (eventfd(1, EventfdFlags::CLOEXEC)?, event()?);
        epoll::add(&*set, &ready, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let (mut page, faults) = StuckPage::new()?;
        let holder = std::thread::spawn({
            let set = Arc::clone(&set);
            move || page.wait_for(&*set)
        });
        let mut device = Signalled::new(stage, Some(set.as_fd()), call.as_fd())?;
        device.feed_while_held(bounds);
        drop(faults);
        let _ = holder.join();
    }
    Ok(())
}
