//! What the socket calls do to one of our sockets, whose note the caller has read.
//!
//! Order of checks and errno values are those of the kernel's AF_VSOCK.

pub(crate) mod accept;
pub(crate) mod data;
pub(crate) mod options;

use core::ffi::c_int;

use vsock_client::wire::{
    HELD_EXTRA, INHERITED_LEN as INHERITED, MESSAGE_LEN as MESSAGE, Report, Request, op,
};
use vsock_client::{ANY, Address};

use crate::note::{Flags, Note, State};
use crate::settle::{await_beginning, await_verdict, begin_hold, end_hold, settle, take_error};
use crate::sys::{Answer, Errno, Fd, tick_us};
use crate::turn::Turn;
use crate::vm_options::VmOptions;
use crate::{name, node, setup, suspects};

const INVALID: Errno = Errno(libc::EINVAL);
const NOT_CONNECTED: Errno = Errno(libc::ENOTCONN);

/// The longest backlog: net.core.somaxconn.
const LONGEST_BACKLOG: u32 = 4096;
/// VMADDR_CID_LOCAL.
const LOCAL: u32 = 1;
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
            let fd = make(kind | flags, &Note::FRESH_MESSAGES)?;
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
    make(libc::SOCK_STREAM | flags, &Note::FRESH.in_state(State::Device))
}

fn make(kind: c_int, note: &Note) -> Answer<Fd> {
    let fd = Fd::unix_socket(kind)?;
    let is_kept = note.put(fd).map(|()| Note::of(fd) == Some(*note));
    if is_kept != Ok(true) {
        fd.close();
        setup::explain(
            b"this kernel keeps no 64 bits in SO_MAX_PACING_RATE, which Linux does since 5.1",
        );
        return Err(is_kept.err().unwrap_or(Errno(libc::EAFNOSUPPORT)));
    }
    suspects::add(fd);
    Ok(fd)
}

/// `bind`.
pub(crate) fn bind(fd: Fd, note: Note, address: Address) -> Answer<()> {
    let mut note = settle(fd, note)?;
    if note.state != State::Fresh {
        return Err(INVALID);
    }
    // Without a switch no CID is local.
    node::attach(fd, &mut note).map_err(|_| Errno(libc::EADDRNOTAVAIL))?;
    let answer = node::ask(fd, Request::Bind(address));
    if let Ok(reply) = answer {
        name::give(fd, reply.ours)?;
        note.state = State::Bound;
    }
    suspects::add(fd);
    note.put(fd)?;
    answer.map(|_| ())
}

/// `listen`.
pub(crate) fn listen(fd: Fd, note: Note, backlog: c_int) -> Answer<()> {
    let note = settle(fd, note)?;
    let backlog = u32::try_from(backlog).unwrap_or(u32::MAX).min(LONGEST_BACKLOG);
    let options = VmOptions::of(fd, &note);
    match note.state {
        State::Listening => {
            listen_again(fd, backlog, &options)?;
            note.with_backlog(backlog).put(fd)
        }
        State::Bound => {
            node::ask_message(fd, op::LISTEN, &listen_message(backlog, &options))?;
            note.with_backlog(backlog).in_state(State::Listening).put(fd)
        }
        State::Fresh | State::Connecting | State::Connected | State::ShutDown | State::Device => {
            Err(INVALID)
        }
    }
}

/// Tells the node of a listener's new backlog or buffer. No reply is due: it could not be told from the ACCEPTs that
/// wait before it.
fn listen_again(fd: Fd, backlog: u32, options: &VmOptions) -> Answer<()> {
    node::send(fd, &listen_message(backlog, options))
}

/// A LISTEN, and behind it what the connections that come from now on inherit.
fn listen_message(backlog: u32, options: &VmOptions) -> [u8; MESSAGE + INHERITED] {
    let buffer = options.size.clamp(1, u32::MAX.into());
    let extra = u32::try_from(INHERITED).unwrap_or(0);
    let request = Request::Listen { backlog, buffer, extra };
    let mut message = [0; MESSAGE + INHERITED];
    message[..MESSAGE].copy_from_slice(&request.encode());
    message[MESSAGE..].copy_from_slice(&options.inherited(tick_us()));
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
            if note.error() == libc::ETIMEDOUT {
                note = note.with_error(Errno(0)); // a new attempt begins, whether the last one was asked about
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
                return Err(Errno(libc::EINPROGRESS));
            }
        }
    }
    await_verdict(fd, note)
}

/// Asks for a connection; whoever looks meanwhile waits for its turn, and sees that an outcome is due.
fn request_connect(fd: Fd, mut note: Note, to: Address, is_nonblocking: bool) -> Answer<Note> {
    node::attach(fd, &mut note)?;
    let options = VmOptions::of(fd, &note);
    let milliseconds = options.connect_timeout_us(tick_us()).div_ceil(1000);
    let request = Request::Connect {
        to,
        timeout_ms: u32::try_from(milliseconds).unwrap_or(u32::MAX),
        buffer: options.buffer_to_announce(),
        report: Report::Held { prompt: is_nonblocking },
        extra: u32::try_from(HELD_EXTRA).unwrap_or(0),
    };
    suspects::add(fd);
    let _turn = Turn::connecting();
    let before = note;
    let note = note.with_theirs(fd, to)?.in_state(State::Connecting);
    begin_hold(fd, &note)?;
    note.put(fd)?;
    if let Err(error) = node::send_held(fd, request) {
        end_hold(fd, &note)?;
        before.put(fd)?;
        return Err(error);
    }
    if is_nonblocking {
        await_beginning(fd, note)?;
        return Ok(note);
    }
    let note = note.with(Flags::BEGUN);
    note.put(fd).map(|()| note)
}

/// `getsockname`. A port that the node chose for a connect is asked for when it is wanted first.
pub(crate) fn our_address(fd: Fd, note: Note) -> Answer<Address> {
    let note = settle(fd, note)?;
    let nowhere = Address { cid: ANY, port: ANY };
    if let Some(ours) = name::of(fd) {
        // A connection that was made here and leads back here has become one of CID 1, whatever it was bound to.
        let is_made_here = note.has_stream() && note.flags.has(Flags::ATTACHED);
        let theirs = note.theirs(fd)?.cid;
        let is_loopback = is_made_here && (theirs == LOCAL || theirs == ours.cid);
        let cid = if is_loopback && ours.cid != ANY { LOCAL } else { ours.cid };
        return Ok(Address { cid, ..ours });
    }
    // As in the kernel, the CID of a client that did not bind to one stays the wildcard.
    let port = if note.has_stream() { node::our_port(fd) } else { None };
    let Some(port) = port else { return Ok(nowhere) };
    let ours = Address { port, ..nowhere };
    name::give(fd, ours).map(|()| ours)
}

/// `getpeername`: the address, and whether it is reached through the host.
pub(crate) fn their_address(fd: Fd, note: Note) -> Answer<(Address, bool)> {
    let note = settle(fd, note)?;
    if note.state != State::Connected {
        return Err(NOT_CONNECTED);
    }
    Ok((note.theirs(fd)?, note.flags.has(Flags::TO_HOST)))
}

/// `shutdown`.
pub(crate) fn shut_down(fd: Fd, note: Note, how: c_int) -> Answer<()> {
    if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
        return Err(INVALID);
    }
    let mut note = settle(fd, note)?;
    if note.state == State::Connecting {
        fd.shut_down(libc::SHUT_RDWR)?; // gives the attempt up
        end_hold(fd, &note)?;
    } else if note.has_stream() {
        fd.shut_down(how)?;
        if how == libc::SHUT_RD {
            // A connection that has ended meanwhile wants to hear nothing.
            let _ = node::stop_receiving(fd);
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
    note.in_state(State::ShutDown).put(fd)
}
