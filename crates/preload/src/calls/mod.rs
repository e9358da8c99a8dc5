//! What the socket calls do to one of our sockets, whose note the caller has read.
//!
//! Order of checks and errno values are those of the kernel's AF_VSOCK.

pub(crate) mod accept;
pub(crate) mod data;
pub(crate) mod options;

use core::ffi::c_int;

use crate::address::{ANY, Address};
use crate::node;
use crate::note::{Flags, Note, State};
use crate::settle::{await_beginning, await_verdict, begin_hold, end_hold, settle, take_error};
use crate::suspects;
use crate::sys::{Answer, Errno, Fd, tick_us};
use crate::wire::{HELD, INHERITED, MESSAGE, PADDING, Request, op};

const INVALID: Errno = Errno(libc::EINVAL);
const NOT_CONNECTED: Errno = Errno(libc::ENOTCONN);

/// The longest backlog: net.core.somaxconn.
const LONGEST_BACKLOG: u32 = 4096;
/// VMADDR_CID_HOST.
const HOST: u32 = 2;
/// Send buffer asked for on sockets that keep messages.
const LONGEST_MESSAGE: c_int = 1 << 24;
/// SOCK_PACKET: larger types are no types at all.
const LARGEST_KIND: c_int = 10;
/// Number of the protocol that AF_VSOCK takes beside 0.
const PROTOCOL: c_int = 40;

/// `socket(AF_VSOCK, kind, protocol)`.
pub(crate) fn socket(kind: c_int, protocol: c_int) -> Answer<Fd> {
    let flags = kind & !0xf;
    let kind = kind & 0xf;
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 || kind > LARGEST_KIND {
        return Err(INVALID);
    }
    if protocol != 0 && protocol != PROTOCOL {
        return Err(Errno(libc::EPROTONOSUPPORT));
    }
    match kind {
        libc::SOCK_STREAM => make(kind | flags, &Note::FRESH),
        libc::SOCK_SEQPACKET => {
            let fd = make(kind | flags, &Note { flags: Flags::MESSAGES, ..Note::FRESH })?;
            // A message must fit the send buffer as a whole; what the kernel does not allow it cuts.
            fd.set_option(libc::SO_SNDBUF, &LONGEST_MESSAGE)?;
            Ok(fd)
        }
        libc::SOCK_DGRAM => Err(Errno(libc::ENODEV)), // as without VMCI
        _ => Err(Errno(libc::ESOCKTNOSUPPORT)),
    }
}

/// What a program gets for opening /dev/vsock: something to ask for the local CID.
pub(crate) fn open_device(open_flags: c_int) -> Answer<Fd> {
    // Both flags have the same values for open and for socket.
    let flags = open_flags & (libc::O_CLOEXEC | libc::O_NONBLOCK);
    make(libc::SOCK_STREAM | flags, &Note { state: State::Device, ..Note::FRESH })
}

fn make(kind: c_int, note: &Note) -> Answer<Fd> {
    let fd = Fd::unix_socket(kind)?;
    if let Err(error) = note.put(fd) {
        fd.close();
        return Err(error);
    }
    suspects::add(fd);
    Ok(fd)
}

/// `bind`.
pub(crate) fn bind(fd: Fd, note: Note, address: Address) -> Answer<()> {
    let mut note = settle(fd, note)?;
    if note.ours.port != ANY || note.state != State::Fresh {
        return Err(INVALID);
    }
    // Without a switch no CID is local.
    node::attach(fd, &mut note).map_err(|_| Errno(libc::EADDRNOTAVAIL))?;
    let request = Request { cid: address.cid, port: address.port, ..Request::new(op::BIND) };
    let answer = node::ask(fd, &request);
    if let Ok(reply) = answer {
        note.ours = reply.ours;
        note.state = State::Bound;
    }
    suspects::add(fd);
    note.put(fd)?;
    answer.map(|_| ())
}

/// `listen`.
pub(crate) fn listen(fd: Fd, note: Note, backlog: c_int) -> Answer<()> {
    let mut note = settle(fd, note)?;
    note.backlog = u32::try_from(backlog).unwrap_or(u32::MAX).min(LONGEST_BACKLOG);
    match note.state {
        State::Listening => {
            listen_again(fd, &note)?;
            note.put(fd)
        }
        State::Bound => {
            node::ask_message(fd, op::LISTEN, &listen_message(&note))?;
            note.state = State::Listening;
            note.put(fd)
        }
        State::Fresh | State::Connecting | State::Connected | State::ShutDown | State::Device => {
            Err(INVALID)
        }
    }
}

/// Tells the node of a listener's new backlog or buffer. No reply is due: it could not be told from the ACCEPTs that
/// wait before it.
fn listen_again(fd: Fd, note: &Note) -> Answer<()> {
    node::send(fd, &listen_message(note))
}

/// A LISTEN, and behind it what the connections that come from now on inherit.
fn listen_message(note: &Note) -> [u8; MESSAGE + INHERITED] {
    let buffer = note.buffer.clamp(1, u32::MAX.into());
    let extra = u32::try_from(INHERITED).unwrap_or(0);
    let request = Request { value: note.backlog, buffer, extra, ..Request::new(op::LISTEN) };
    let mut message = [0; MESSAGE + INHERITED];
    message[..MESSAGE].copy_from_slice(&request.encode());
    message[MESSAGE..].copy_from_slice(&note.inherited(tick_us()));
    message
}

/// `connect`.
pub(crate) fn connect(fd: Fd, note: Note, address: Answer<Address>, to_host: bool) -> Answer<()> {
    let mut note = settle(fd, note)?;
    let is_nonblocking = fd.is_nonblocking();
    match note.state {
        State::Connected => return Err(Errno(libc::EISCONN)),
        State::Listening | State::ShutDown | State::Device => return Err(INVALID),
        State::Connecting if is_nonblocking => return Err(Errno(libc::EALREADY)),
        State::Connecting => {}
        State::Fresh | State::Bound => {
            if note.error == libc::ETIMEDOUT.unsigned_abs() {
                note.error = 0; // a new attempt begins, whether the last one was asked about
            }
            take_error(fd, note)?;
            let address = address?;
            note.flags = note.flags.without(Flags::TO_HOST);
            if to_host {
                // The way through the machine's own host: a guest has one, the host of a switch has not.
                if address.cid > HOST && node::local_cid()? == HOST {
                    return Err(Errno(libc::ENODEV));
                }
                note.flags = note.flags.with(Flags::TO_HOST);
            }
            if note.flags.has(Flags::ZEROCOPY) {
                return Err(Errno(libc::EOPNOTSUPP));
            }
            note = request_connect(fd, note, address, is_nonblocking)?;
            if is_nonblocking {
                take_error(fd, await_beginning(fd, note)?)?;
                return Err(Errno(libc::EINPROGRESS));
            }
        }
    }
    await_verdict(fd, note)
}

fn request_connect(fd: Fd, mut note: Note, to: Address, is_nonblocking: bool) -> Answer<Note> {
    node::attach(fd, &mut note)?;
    let before = note;
    let request = Request {
        cid: to.cid,
        port: to.port,
        value: u32::try_from(note.connect_timeout_us(tick_us()).div_ceil(1000)).unwrap_or(u32::MAX),
        buffer: note.buffer_to_announce(),
        ..Request::new(op::CONNECT)
    };
    note.theirs = to;
    note.state = State::Connecting;
    if is_nonblocking {
        begin_hold(fd, &mut note)?;
    }
    // First the note, then the request: who sees the verdict must also see that one is due.
    note.put(fd)?;
    suspects::add(fd);
    let sent = if is_nonblocking {
        let extra = u32::try_from(PADDING).unwrap_or(0);
        node::send_held(fd, &Request { flags: HELD, extra, ..request })
    } else {
        node::send(fd, &request.encode())
    };
    if let Err(error) = sent {
        end_hold(fd, &mut note)?;
        before.put(fd)?;
        return Err(error);
    }
    Ok(note)
}

/// `getsockname`.
pub(crate) fn our_address(fd: Fd, note: Note) -> Answer<Address> {
    settle(fd, note).map(|note| note.ours)
}

/// `getpeername`: the address, and whether it is reached through the host.
pub(crate) fn their_address(fd: Fd, note: Note) -> Answer<(Address, bool)> {
    let note = settle(fd, note)?;
    if note.state != State::Connected {
        return Err(NOT_CONNECTED);
    }
    Ok((note.theirs, note.flags.has(Flags::TO_HOST)))
}

/// `shutdown`.
pub(crate) fn shut_down(fd: Fd, note: Note, how: c_int) -> Answer<()> {
    if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
        return Err(INVALID);
    }
    let mut note = settle(fd, note)?;
    if note.state == State::Connecting {
        fd.shut_down(libc::SHUT_RDWR)?; // gives the attempt up
        end_hold(fd, &mut note)?;
    } else if note.has_stream() {
        fd.shut_down(how)?;
        if how == libc::SHUT_RD && note.flow != 0 {
            // A connection that has ended meanwhile wants to hear nothing.
            let _ = node::stop_receiving(note.flow);
        }
    } else {
        return Err(NOT_CONNECTED);
    }
    if how != libc::SHUT_RD {
        note.flags = note.flags.with(Flags::NO_SENDING);
    }
    if how != libc::SHUT_WR {
        note.flags = note.flags.with(Flags::NO_RECEIVING);
        suspects::add(fd);
    }
    Note { state: State::ShutDown, ..note }.put(fd)
}
