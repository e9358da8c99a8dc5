//! The verdict of a connect under way: taken off the socket by whichever call comes first.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::address::ANY;
use crate::node::{self, ANSWER_MS};
use crate::note::{Flags, Note, State};
use crate::sys::{Answer, Errno, Fd, give_way, now_ms, tick_us};
use crate::wire::{Reply, op};

/// Another thread has closed the descriptor, or put something else in its place.
const CLOSED: Errno = Errno(libc::EBADF);

/// How often a wait for what is owed at once looks whether the descriptor is still there: a poll keeps the socket that
/// it began with, and is not told.
const LOOK_MS: u64 = 100;

/// Brings a socket's note up to date: if a connect is under way and there is word of it, takes that.
pub(crate) fn settle(fd: Fd, note: Note) -> Answer<Note> {
    if note.state != State::Connecting {
        return Ok(note);
    }
    // Of two threads that come here only one may read the 32 bytes: what follows them is data.
    let _turn = Turn::take();
    let Some(mut note) = Note::of(fd) else { return Err(CLOSED) };
    if note.state != State::Connecting {
        return Ok(note);
    }
    match node::hear(fd, op::CONNECT) {
        Ok(None) => return Ok(note),
        Ok(Some((reply, error))) => {
            // As in the kernel, the CID of a client that did not bind to one stays the wildcard.
            if note.ours.cid != ANY {
                note.ours.cid = reply.ours.cid;
            }
            note.ours.port = reply.ours.port;
            match error {
                None => begin_stream(&mut note, &reply),
                Some(Errno(libc::EINPROGRESS)) => {
                    note.flags = note.flags.with(Flags::BEGUN);
                    note.put(fd)?;
                    return Ok(note);
                }
                Some(error) => end_attempt(&mut note, error),
            }
        }
        Err(error) => end_attempt(&mut note, error),
    }
    end_hold(fd, &mut note)?;
    note.put(fd)?;
    Ok(note)
}

fn begin_stream(note: &mut Note, reply: &Reply) {
    (note.flow, note.peer_buffer) = (reply.flow, reply.peer_buffer);
    note.state = State::Connected;
    note.flags = note.flags.with(Flags::STREAM);
    note.buffer = note.buffer.min(u32::MAX.into()); // a transport has no larger ones
}

fn end_attempt(note: &mut Note, error: Errno) {
    note.state = if note.ours.port == ANY { State::Fresh } else { State::Bound };
    note.error = error.0.unsigned_abs();
}

/// Waits until the node says that a held connect has begun, or why it has not: it does so at once.
pub(crate) fn await_beginning(fd: Fd, mut note: Note) -> Answer<Note> {
    let deadline = now_ms() + ANSWER_MS;
    while note.state == State::Connecting && !note.flags.has(Flags::BEGUN) {
        let left = deadline.saturating_sub(now_ms());
        if left == 0 {
            return Err(Errno(libc::ENODEV));
        }
        match fd.poll(libc::POLLIN, left.min(LOOK_MS)) {
            Ok(_) | Err(Errno(libc::EINTR)) => note = settle(fd, note)?,
            Err(error) => return Err(error),
        }
    }
    Ok(note)
}

/// Waits for the verdict of a connect under way, and gives it. A signal ends the wait with EINTR.
pub(crate) fn await_verdict(fd: Fd, mut note: Note) -> Answer<()> {
    let deadline = now_ms() + note.connect_timeout_us(tick_us()) / 1000 + ANSWER_MS;
    loop {
        note = settle(fd, note)?;
        match note.state {
            State::Connected | State::ShutDown => return Ok(()),
            State::Connecting => {}
            State::Fresh | State::Bound | State::Listening | State::Device => break,
        }
        let left = deadline.saturating_sub(now_ms());
        if left == 0 {
            return Err(Errno(libc::ETIMEDOUT));
        }
        fd.poll(libc::POLLIN, left)?;
    }
    take_error(fd, note)
}

/// The error of a failed connect, which is told only once.
pub(crate) fn take_error(fd: Fd, mut note: Note) -> Answer<()> {
    let error = Errno(note.error.cast_signed());
    if error.0 == 0 {
        return Ok(());
    }
    note.error = 0;
    note.put(fd)?;
    Err(error)
}

/// Makes the send buffer as small as it gets: then 2048 bytes in it are enough for "not writable".
pub(crate) fn begin_hold(fd: Fd, note: &mut Note) -> Answer<()> {
    note.send_buffer = fd.option::<u32>(libc::SOL_SOCKET, libc::SO_SNDBUF)?;
    note.flags = note.flags.with(Flags::HELD).without(Flags::BEGUN);
    fd.set_option(libc::SO_SNDBUF, &1u32)
}

/// Gives the socket its send buffer back.
pub(crate) fn end_hold(fd: Fd, note: &mut Note) -> Answer<()> {
    if !note.flags.has(Flags::HELD) {
        return Ok(());
    }
    note.flags = note.flags.without(Flags::HELD);
    fd.set_option(libc::SO_SNDBUF, &(note.send_buffer / 2)) // the kernel doubles what it is told
}

/// One thread at a time; but nobody waits for ever, as a fork may have copied a turn that nobody ends.
struct Turn;

static IS_TAKEN: AtomicBool = AtomicBool::new(false);
const TRIES: u32 = 1000;

impl Turn {
    fn take() -> Self {
        let mut tries = 0;
        while IS_TAKEN.swap(true, Ordering::Acquire) && tries < TRIES {
            give_way();
            tries += 1;
        }
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IS_TAKEN.store(false, Ordering::Release);
    }
}
