//! `connect`: begins an attempt and waits for its outcome. Any other call on a connecting socket first looks for the
//! outcome too.
//!
//! The node leaves the request unread in the socket until it knows the outcome. If there is no connection, it sends a reply
//! with the socket's cookie; then it reads the request. So two questions give the outcome: is our request still unread, and
//! is such a reply the first that can be received? A connection has no message before its data, which two threads or two
//! processes that share the socket could both take.

use vsock_client::calls::{
    Beginning, Connect, Destination, HeldConnect, Outcome, Seen, Wait, after_failure,
    after_silence, after_success,
};
use vsock_client::wire::{MESSAGE_LEN, Reply, op};
use vsock_client::{ANY, Address, Flags, Socket, State};

use crate::lock::ConnectLock;
use crate::node::{self, ANSWER_MS};
use crate::sys::{Answer, Errno, Fd, now_ms, tick_us};
use crate::{fd_hints, send_buffer, state};

/// Another thread has closed the descriptor, or put something else in its place.
const CLOSED: Errno = Errno(libc::EBADF);

/// How often a wait checks that the descriptor is still open, as poll keeps the socket with which it began and does not
/// notice a close; and how often it looks whether another process has begun.
const LOOK_MS: u64 = 100;

/// `connect`.
pub(crate) fn connect(
    fd: Fd,
    socket: Socket,
    address: Answer<Address>,
    to_host: bool,
) -> Answer<()> {
    let socket = finish_connect(fd, socket)?;
    let is_nonblocking = fd.is_nonblocking();
    match Connect::new(socket, is_nonblocking)? {
        Connect::Wait => wait(fd, socket),
        Connect::Report(error, next) => state::store(fd, &next).and(Err(error)),
        Connect::Begin(socket) => {
            let address = address?;
            let socket = Destination { address, to_host }.of(socket, node::local_cid)?;
            let socket = begin(fd, socket, address, is_nonblocking)?;
            if is_nonblocking { Err(Errno::INPROGRESS) } else { wait(fd, socket) }
        }
    }
}

/// Sends the request. Other threads that look at the socket meanwhile wait for the lock.
fn begin(fd: Fd, mut socket: Socket, to: Address, is_nonblocking: bool) -> Answer<Socket> {
    node::attach(fd, &mut socket)?;
    let options = state::options(fd, &socket);
    let attempt = HeldConnect::new(socket, to, &options, tick_us(), is_nonblocking);
    let next = attempt.next;
    fd_hints::set(fd);
    let _lock = ConnectLock::take();
    state::store_peer_port(fd, to.port)?;
    send_buffer::shrink(fd, &next)?;
    state::store(fd, &next)?;
    if let Err(error) = node::send_held(fd, attempt.request) {
        send_buffer::restore(fd, &next)?;
        state::store(fd, &socket)?;
        return Err(error);
    }
    if is_nonblocking {
        return await_beginning(fd, next).map(|()| next);
    }
    let next = next.with(Flags::BEGUN);
    state::store(fd, &next).map(|()| next)
}

/// Waits for the node's immediate reply to a prompt CONNECT. Only the thread that sent the request calls this. If no reply
/// comes in time, the descriptor cannot be used again: the reply may still come.
fn await_beginning(fd: Fd, socket: Socket) -> Answer<()> {
    let deadline = now_ms() + ANSWER_MS;
    loop {
        match node::receive_reply(fd, op::CONNECT) {
            Ok(None) => {}
            Ok(Some(reply)) => match Beginning::new(socket, &reply) {
                Beginning::Begun(ours, next) => {
                    state::give_name(fd, ours)?;
                    return state::store(fd, &next);
                }
                Beginning::Failed(error) => {
                    fail(fd, socket, Errno(0), Some(&reply))?;
                    return Err(error);
                }
            },
            Err(error) => {
                fail(fd, socket, Errno(0), None)?;
                return Err(error);
            }
        }
        let left = deadline.saturating_sub(now_ms());
        if left == 0 {
            give_up(fd, socket)?;
            return Err(Errno::NODEV);
        }
        match fd.poll(libc::POLLIN, left.min(LOOK_MS)) {
            Ok(_) | Err(Errno(libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
        state::load(fd).ok_or(CLOSED)?;
    }
}

/// Waits for the outcome of a connect under way and returns it. A signal ends the wait with EINTR.
fn wait(fd: Fd, mut socket: Socket) -> Answer<()> {
    let timeout = state::options(fd, &socket).connect_timeout_us(tick_us()) / 1000;
    let deadline = now_ms().saturating_add(timeout + ANSWER_MS);
    loop {
        socket = finish_connect(fd, socket)?;
        let left = deadline.saturating_sub(now_ms());
        match Wait::new(socket) {
            Wait::Return(result, next) => {
                if next != socket {
                    state::store(fd, &next)?;
                }
                return result;
            }
            Wait::GoOn | Wait::Pause if left == 0 => {
                abandon(fd)?;
                return Err(Errno::TIMEDOUT);
            }
            Wait::GoOn => fd.poll(libc::POLLOUT, left)?,
            Wait::Pause => Fd::pause(left.min(LOOK_MS))?,
        };
    }
}

/// Gives the socket up if its connect has not begun by now: the process that was about to begin it has ended. Whether it
/// sent the request is not known, so an answer may still come.
fn abandon(fd: Fd) -> Answer<()> {
    let _lock = ConnectLock::take();
    let socket = state::load(fd).ok_or(CLOSED)?;
    if Wait::new(socket) == Wait::Pause { give_up(fd, socket) } else { Ok(()) }
}

/// Shuts the descriptor down for good.
fn give_up(fd: Fd, socket: Socket) -> Answer<()> {
    fd.shut_down(libc::SHUT_RDWR)?;
    send_buffer::restore(fd, &socket)?;
    state::store(fd, &after_silence(socket))
}

/// Finishes a connect under way if its outcome is known, and returns the socket's state.
#[inline]
pub(crate) fn finish_connect(fd: Fd, socket: Socket) -> Answer<Socket> {
    if socket.state == State::Connecting { finish(fd) } else { Ok(socket) }
}

#[inline(never)]
fn finish(fd: Fd) -> Answer<Socket> {
    // A second thread finds the state that the first one has written.
    let _lock = ConnectLock::take();
    let Some(socket) = state::load(fd) else { return Err(CLOSED) };
    if !socket.awaits_outcome() {
        return Ok(socket);
    }
    match outcome(fd)? {
        // The unread bytes may be data that another process has sent: then the state says that there is a connection.
        Outcome::Pending => state::load(fd).ok_or(CLOSED),
        // The request is gone and there is no refusal. Another process may have taken one, after it wrote the state.
        Outcome::Connected => {
            let Some(socket) = state::load(fd) else { return Err(CLOSED) };
            if !socket.awaits_outcome() {
                return Ok(socket);
            }
            send_buffer::restore(fd, &socket)?;
            succeed(fd, after_success(socket))
        }
        Outcome::Failed(error, reply) => {
            let socket = fail(fd, socket, error, reply.as_ref())?;
            if reply.is_some() {
                take_reply(fd);
            }
            Ok(socket)
        }
    }
}

fn outcome(fd: Fd) -> Answer<Outcome> {
    // Asked first: the node may read the request a moment later.
    let is_unread = fd.unsent()? > 0;
    let mut bytes = [0; MESSAGE_LEN];
    let seen = match fd.peek(&mut bytes) {
        // The node sends a refusal before it takes the request out. That makes the descriptor readable, and a program that
        // waits for that asks now.
        Ok(MESSAGE_LEN) => match Reply::decode(&bytes, op::CONNECT) {
            Ok(reply) if reply.ends_connect_of(fd.cookie()?) => Seen::Refusal(reply),
            Ok(_) | Err(_) => Seen::Other,
        },
        // The node has closed its end with our request unread in it.
        Err(Errno(libc::ECONNRESET)) => Seen::Closed,
        Ok(_) | Err(Errno(libc::EAGAIN | libc::EINTR)) => Seen::Other,
        Err(error) => return Err(error),
    };
    Ok(Outcome::new(is_unread, seen))
}

fn take_reply(fd: Fd) {
    let mut bytes = [0; MESSAGE_LEN];
    // Another process may have been first.
    let _ = fd.receive(&mut bytes);
}

/// Keeps the state of a socket that has become a connection.
fn succeed(fd: Fd, socket: Socket) -> Answer<Socket> {
    let socket = if socket.flags.has(Flags::OPTIONS) {
        state::store_options(fd, socket, &state::options(fd, &socket).of_connection())?
    } else {
        socket
    };
    state::store(fd, &socket).map(|()| socket)
}

/// Keeps the state of a socket whose attempt has failed. `error` is for a later call to return, or 0. The socket stays bound
/// to the port of the attempt.
fn fail(fd: Fd, socket: Socket, error: Errno, reply: Option<&Reply>) -> Answer<Socket> {
    send_buffer::restore(fd, &socket)?;
    if let Some(reply) = reply.filter(|reply| reply.ours.port != ANY) {
        state::give_name(fd, reply.ours)?;
    }
    let next = after_failure(socket, state::name(fd).is_some()).with_error(error);
    state::store(fd, &next).map(|()| next)
}
