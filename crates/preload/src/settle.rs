//! How a connect under way ends: seen by whoever looks, taken from nobody.
//!
//! The request stays unread in the socket until its outcome is known. Then the node takes it out, and where there is no
//! connection it has sent its reply, with the socket's cookie in it, before. So two looks tell: is our request still
//! there, and is such a reply the first that can be read? A connection has nothing in front of its data that two
//! threads, or two processes that share the socket, could both take.

use vsock_client::ANY;
use vsock_client::wire::{MESSAGE_LEN, Reply, op};

use crate::name;
use crate::node::{self, ANSWER_MS};
use crate::note::{Flags, Note, State};
use crate::sys::{Answer, Errno, Fd, now_ms, tick_us};
use crate::turn::Turn;
use crate::vm_options::VmOptions;

/// Another thread has closed the descriptor, or put something else in its place.
const CLOSED: Errno = Errno(libc::EBADF);

/// How often a wait looks whether the descriptor is still there: a poll keeps the socket that it began with, and is
/// not told.
const LOOK_MS: u64 = 100;

/// The smallest send buffer of a socket as the kernel counts it.
const LEAST_SEND_BUFFER: u32 = 4608;
/// And the usual one.
const USUAL_SEND_BUFFER: u32 = 212_992;
/// Of a socket that keeps messages: the kernel gives what its settings allow.
const MESSAGES_SEND_BUFFER: u32 = 2 << 24;

/// What became of a connect.
enum Outcome {
    Pending,
    Connected,
    /// The errno, and the reply that says what the socket is bound to, if there is one.
    Failed(Errno, Option<Reply>),
}

/// Brings a socket's note up to date: if a connect under way has ended, notes how.
pub(crate) fn settle(fd: Fd, note: Note) -> Answer<Note> {
    if note.state != State::Connecting {
        return Ok(note);
    }
    // One thread after the other: who comes second finds the note that the first has written.
    let _turn = Turn::connecting();
    let Some(note) = Note::of(fd) else { return Err(CLOSED) };
    if !note.has_begun() {
        return Ok(note);
    }
    match outcome(fd)? {
        // What is unread may be data that another process has sent: then its note says that there is a connection.
        Outcome::Pending => Note::of(fd).ok_or(CLOSED),
        // The request has gone, and no refusal is there: another process may have taken that, which has noted it before.
        Outcome::Connected => {
            let Some(note) = Note::of(fd) else { return Err(CLOSED) };
            if !note.has_begun() {
                return Ok(note);
            }
            end_hold(fd, &note)?;
            let note = begin_stream(fd, note)?;
            note.put(fd).map(|()| note)
        }
        Outcome::Failed(error, reply) => {
            end_hold(fd, &note)?;
            let note = end_attempt(fd, note, reply)?.with_error(error);
            note.put(fd)?;
            if reply.is_some() {
                take_reply(fd);
            }
            Ok(note)
        }
    }
}

fn outcome(fd: Fd) -> Answer<Outcome> {
    // Before the look at what can be read: a request that was there then may be gone a moment later.
    let is_held = fd.unsent()? > 0;
    let mut bytes = [0; MESSAGE_LEN];
    match fd.peek(&mut bytes) {
        // A refusal comes before the request is taken out, and makes the descriptor readable: who waits for that too
        // asks now.
        Ok(MESSAGE_LEN) => {
            if let Ok(reply) = Reply::decode(&bytes, op::CONNECT)
                && let Err(error) = reply.result()
                && reply.flow == fd.cookie()?
            {
                return Ok(Outcome::Failed(error, Some(reply)));
            }
        }
        // What a Unix socket says whose other end was closed with our request unread in it.
        Err(Errno(libc::ECONNRESET)) => return Ok(Outcome::Failed(Errno(libc::ENODEV), None)),
        Ok(_) | Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
        Err(error) => return Err(error),
    }
    Ok(if is_held { Outcome::Pending } else { Outcome::Connected })
}

fn take_reply(fd: Fd) {
    let mut bytes = [0; MESSAGE_LEN];
    // Another process may have been first.
    let _ = fd.receive(&mut bytes);
}

fn begin_stream(fd: Fd, note: Note) -> Answer<Note> {
    // What was the code of an error is, of a stream, something else.
    let note = note.with_error(Errno(0)).in_state(State::Connected);
    let note = note.with(Flags::STREAM).without(Flags::BEGUN);
    if note.flags.has(Flags::OPTIONS) {
        VmOptions::of(fd, &note).limited().put(fd, note)
    } else {
        Ok(note)
    }
}

/// The note after an attempt that came to nothing: the port that it had stays the socket's.
pub(crate) fn end_attempt(fd: Fd, note: Note, reply: Option<Reply>) -> Answer<Note> {
    if let Some(reply) = reply.filter(|reply| reply.ours.port != ANY) {
        name::give(fd, reply.ours)?;
    }
    let state = if name::of(fd).is_some() { State::Bound } else { State::Fresh };
    Ok(note.in_state(state).without(Flags::BEGUN))
}

/// Waits until the node says that a connect has begun, or why it has not: it does so at once. Only the thread that
/// asked for it comes here. Without an answer the descriptor is spent, as one may come at any later time.
pub(crate) fn await_beginning(fd: Fd, note: Note) -> Answer<()> {
    match hear_beginning(fd, note)? {
        Some(done) => done,
        None => {
            fd.shut_down(libc::SHUT_RDWR)?;
            end_hold(fd, &note)?;
            note.in_state(State::ShutDown).put(fd)?;
            Err(Errno(libc::ENODEV))
        }
    }
}

/// What the node said, carried out; nothing if it said nothing.
fn hear_beginning(fd: Fd, note: Note) -> Answer<Option<Answer<()>>> {
    let deadline = now_ms() + ANSWER_MS;
    loop {
        match node::hear(fd, op::CONNECT) {
            Ok(None) => {}
            Ok(Some(reply)) if reply.result() == Err(Errno::INPROGRESS) => {
                name::give(fd, reply.ours)?;
                note.with(Flags::BEGUN).put(fd)?;
                return Ok(Some(Ok(())));
            }
            Ok(Some(reply)) => {
                end_hold(fd, &note)?;
                end_attempt(fd, note, Some(reply))?.put(fd)?;
                return Ok(Some(Err(reply.result().err().unwrap_or(Errno::PROTO))));
            }
            Err(error) => {
                end_hold(fd, &note)?;
                end_attempt(fd, note, None)?.put(fd)?;
                return Ok(Some(Err(error)));
            }
        }
        let left = deadline.saturating_sub(now_ms());
        if left == 0 {
            return Ok(None);
        }
        match fd.poll(libc::POLLIN, left.min(LOOK_MS)) {
            Ok(_) | Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
        Note::of(fd).ok_or(CLOSED)?;
    }
}

/// Waits for the end of a connect under way, and gives it. A signal ends the wait with EINTR.
pub(crate) fn await_verdict(fd: Fd, mut note: Note) -> Answer<()> {
    let allowed = VmOptions::of(fd, &note).connect_timeout_us(tick_us()) / 1000 + ANSWER_MS;
    let deadline = now_ms().saturating_add(allowed);
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
        fd.poll(libc::POLLOUT, left)?;
    }
    take_error(fd, note)?;
    // Somebody else has been told why.
    Err(Errno(libc::ECONNRESET))
}

/// The error of a failed connect, which is told only once.
pub(crate) fn take_error(fd: Fd, note: Note) -> Answer<()> {
    let error = Errno(note.error());
    if error.0 == 0 {
        return Ok(());
    }
    note.with_error(Errno(0)).put(fd)?;
    Err(error)
}

/// Makes the send buffer as small as it gets: then 2048 bytes in it are enough for "not writable". What it was is put
/// where a connection keeps SO_RCVLOWAT, unless the program has set that.
pub(crate) fn begin_hold(fd: Fd, note: &Note) -> Answer<()> {
    if !note.flags.has(Flags::LOW_WATER) {
        let size = fd.option::<u32>(libc::SOL_SOCKET, libc::SO_SNDBUF)?;
        fd.set_option(libc::SO_RCVLOWAT, &size)?;
    }
    fd.set_option(libc::SO_SNDBUF, &1u32)
}

/// The send buffer that a socket has again after its connect, as the kernel counts it.
pub(crate) fn held_send_buffer(fd: Fd, note: &Note) -> Answer<u32> {
    if note.flags.has(Flags::LOW_WATER) {
        return Ok(if note.keeps_messages() { MESSAGES_SEND_BUFFER } else { USUAL_SEND_BUFFER });
    }
    fd.option::<u32>(libc::SOL_SOCKET, libc::SO_RCVLOWAT)
}

/// Changes the send buffer that a socket will have after its connect, as SO_SNDBUF would change it now.
pub(crate) fn hold_send_buffer(fd: Fd, note: &Note, size: u32) -> Answer<()> {
    if note.flags.has(Flags::LOW_WATER) {
        return Ok(());
    }
    let doubled = size.saturating_mul(2).clamp(LEAST_SEND_BUFFER, i32::MAX.cast_unsigned());
    fd.set_option(libc::SO_RCVLOWAT, &doubled)
}

/// Gives the socket its send buffer back, if nobody has yet.
pub(crate) fn end_hold(fd: Fd, note: &Note) -> Answer<()> {
    let size = held_send_buffer(fd, note)?;
    if size < LEAST_SEND_BUFFER {
        return Ok(());
    }
    fd.set_option(libc::SO_SNDBUF, &(size / 2))?; // the kernel doubles what it is told
    if note.flags.has(Flags::LOW_WATER) { Ok(()) } else { fd.set_option(libc::SO_RCVLOWAT, &1u32) }
}
