//! The state machine: what each socket call does to a [`Socket`]. Errors come in the order in which `af_vsock.c` of Linux
//! checks.
//!
//! A call is a type or a function. It takes the socket and the call's arguments, and returns either the errno for the
//! program or what to do: the request to send, what to do to the descriptor, and the socket afterwards (`next`). The
//! caller does the I/O and keeps `next`.
//!
//! ```
//! use vsock_client::calls::{Direction, Shutdown};
//! use vsock_client::{Errno, Flags, Socket, State};
//!
//! let connection = Socket::STREAM.in_state(State::Connected).with(Flags::STREAM);
//! let shutdown = Shutdown::new(connection, Direction::Receiving)?;
//! assert!(shutdown.tells_node && shutdown.next.state == State::ShutDown);
//! assert_eq!(Shutdown::new(Socket::STREAM, Direction::Receiving), Err(Errno::NOTCONN));
//! # Ok::<(), Errno>(())
//! ```
//!
//! Before any call, the caller looks whether a connect under way has ended ([`Outcome`]). So the state
//! [`State::Connecting`] means here that there is no outcome yet.

use crate::options::Options;
use crate::socket::{Flags, Socket, State};
use crate::wire::{HELD_EXTRA, INHERITED_LEN, MESSAGE_LEN, Reply, Report, Request};
use crate::{ANY, Address, CID_HOST, CID_LOCAL, Errno};

const SOCK_STREAM: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const SOCK_SEQPACKET: i32 = 5;
/// SOCK_PACKET: larger numbers are no socket types.
const MAX_SOCK_TYPE: i32 = 10;
/// The protocol number that AF_VSOCK takes beside 0.
const PF_VSOCK: i32 = 40;
const SHUT_RD: i32 = 0;
const SHUT_WR: i32 = 1;
const SHUT_RDWR: i32 = 2;

/// The longest backlog: net.core.somaxconn.
const SOMAXCONN: u32 = 4096;

/// `socket(AF_VSOCK, kind, protocol)`: the new socket. `kind` has no flags.
///
/// # Errors
/// EINVAL, EPROTONOSUPPORT, ESOCKTNOSUPPORT; ENODEV for datagrams, as in a kernel without VMCI.
pub fn create(kind: i32, protocol: i32) -> Result<Socket, Errno> {
    if kind > MAX_SOCK_TYPE {
        return Err(Errno::INVAL);
    }
    if protocol != 0 && protocol != PF_VSOCK {
        return Err(Errno::PROTONOSUPPORT);
    }
    match kind {
        SOCK_STREAM => Ok(Socket::STREAM),
        SOCK_SEQPACKET => Ok(Socket::SEQPACKET),
        SOCK_DGRAM => Err(Errno::NODEV),
        _ => Err(Errno::SOCKTNOSUPPORT),
    }
}

/// `bind`: the request to send.
///
/// # Errors
/// EINVAL: the socket is not new.
pub fn bind(socket: Socket, to: Address) -> Result<Request, Errno> {
    if socket.state == State::Fresh { Ok(Request::Bind(to)) } else { Err(Errno::INVAL) }
}

/// The socket whose BIND the node has carried out.
#[must_use]
pub fn bound(socket: Socket) -> Socket {
    socket.in_state(State::Bound)
}

/// `listen`: send [`listen_message`] of `next`, and keep `next` if nothing goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Whether the node replies. It sends no reply to a listener, which could not tell it from an ACCEPT.
    pub is_answered: bool,
    /// The listener.
    pub next: Socket,
}

impl Listen {
    /// `listen(socket, backlog)`. A negative backlog counts as the largest, as in the kernel.
    ///
    /// # Errors
    /// EINVAL: the socket has no address, or connects, or is a connection.
    pub fn new(socket: Socket, backlog: i32) -> Result<Self, Errno> {
        let is_answered = match socket.state {
            State::Bound => true,
            State::Listening => false,
            State::Fresh
            | State::Connecting
            | State::Connected
            | State::ShutDown
            | State::Device => return Err(Errno::INVAL),
        };
        let backlog = u32::try_from(backlog).unwrap_or(u32::MAX).min(SOMAXCONN);
        Ok(Self { is_answered, next: socket.with_backlog(backlog).in_state(State::Listening) })
    }
}

/// The LISTEN of a listener with these options, and behind it what the next accepted sockets inherit.
#[must_use]
pub fn listen_message(
    listener: Socket,
    options: &Options,
    tick: u64,
) -> [u8; MESSAGE_LEN + INHERITED_LEN] {
    let request = Request::Listen {
        backlog: listener.backlog(),
        buffer: options.listen_buffer(),
        extra: u32::try_from(INHERITED_LEN).unwrap_or(0),
    };
    let mut message = [0; MESSAGE_LEN + INHERITED_LEN];
    message[..MESSAGE_LEN].copy_from_slice(&request.encode());
    message[MESSAGE_LEN..].copy_from_slice(&options.to_inherited(tick));
    message
}

/// `connect`: what the socket's state decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Begin an attempt with this socket.
    Begin(Socket),
    /// Wait for the attempt under way.
    Wait,
    /// Return the error of an earlier attempt, and keep the socket without it.
    Report(Errno, Socket),
}

impl Connect {
    /// `connect(socket)`.
    ///
    /// # Errors
    /// EISCONN; EINVAL for a listener and after a shutdown; EALREADY if an attempt is under way and the socket does not block.
    pub fn new(socket: Socket, is_nonblocking: bool) -> Result<Self, Errno> {
        match socket.state {
            State::Connected => Err(Errno::ISCONN),
            State::Listening | State::ShutDown | State::Device => Err(Errno::INVAL),
            State::Connecting if is_nonblocking => Err(Errno::ALREADY),
            State::Connecting => Ok(Self::Wait),
            State::Fresh | State::Bound => {
                let forgetful = socket.with_error(Errno(0));
                Ok(match socket.error() {
                    // After a timeout the next connect is a new attempt, whether or not anybody has asked.
                    Errno(0) | Errno::TIMEDOUT => Self::Begin(forgetful),
                    error => Self::Report(error, forgetful),
                })
            }
        }
    }
}

/// The destination of a connect, which is checked after the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub address: Address,
    /// The address has VMADDR_FLAG_TO_HOST: the machine's own host is asked to pass the connection on.
    pub to_host: bool,
}

impl Destination {
    /// The socket that connects there; `local_cid` asks the node for its CID.
    ///
    /// # Errors
    /// ENODEV: TO_HOST on the host itself. EOPNOTSUPP: SO_ZEROCOPY is set. Any error of `local_cid`.
    pub fn of(
        self,
        socket: Socket,
        local_cid: impl FnOnce() -> Result<u32, Errno>,
    ) -> Result<Socket, Errno> {
        if self.to_host && self.address.cid > CID_HOST && local_cid()? == CID_HOST {
            return Err(Errno::NODEV);
        }
        if socket.flags.has(Flags::ZEROCOPY) {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(socket.set(Flags::TO_HOST, self.to_host))
    }
}

/// An attempt to connect: keep `next`, then send the request with the cookie and padding behind it. If that fails, keep the
/// socket from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldConnect {
    /// A held CONNECT.
    pub request: Request,
    /// The connecting socket. [`Flags::BEGUN`] is still missing: it is set once the request is sent or, if the request
    /// is prompt, once the node has replied ([`Beginning`]).
    pub next: Socket,
}

impl HeldConnect {
    /// The attempt of a socket with these options, prompt if the socket does not block.
    #[must_use]
    pub fn new(
        socket: Socket,
        to: Address,
        options: &Options,
        tick: u64,
        is_nonblocking: bool,
    ) -> Self {
        let request = Request::Connect {
            to,
            is_named: false,
            timeout_ms: options.connect_timeout_ms(tick),
            buffer: options.connect_buffer(),
            report: Report::Held { prompt: is_nonblocking },
            extra: u32::try_from(HELD_EXTRA).unwrap_or(0),
        };
        Self { request, next: socket.with_peer_cid(to.cid).in_state(State::Connecting) }
    }
}

/// The node's immediate reply to a prompt CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// The attempt is under way: give the socket this address, and keep it.
    Begun(Address, Socket),
    /// The attempt has failed: return the errno. The socket is that of [`after_failure`].
    Failed(Errno),
}

impl Beginning {
    /// Reads the reply.
    #[must_use]
    pub fn new(socket: Socket, reply: &Reply) -> Self {
        match reply.result() {
            Err(Errno::INPROGRESS) => Self::Begun(reply.ours, socket.with(Flags::BEGUN)),
            Err(error) => Self::Failed(error),
            Ok(_) => Self::Failed(Errno::PROTO),
        }
    }
}

/// What a `recv` with MSG_PEEK finds on a socket whose connect is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A reply that ends the connect ([`Reply::ends_connect_of`]).
    Refusal(Reply),
    /// ECONNRESET: the node has closed its end with our request unread in it.
    Closed,
    /// Nothing, or anything else.
    Other,
}

/// The outcome of a connect under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is none yet.
    Pending,
    /// The socket is a connection.
    Connected,
    /// The connect has failed. The node's reply, which is still in the socket, has the address that the socket is bound to.
    Failed(Errno, Option<Reply>),
}

impl Outcome {
    /// `is_unread`: the node had not read all that we sent. That must be asked *before* `seen`: the node writes a refusal and
    /// then reads the request.
    #[must_use]
    pub fn new(is_unread: bool, seen: Seen) -> Self {
        match seen {
            Seen::Refusal(reply) => Self::Failed(Errno(reply.errno.into()), Some(reply)),
            Seen::Closed => Self::Failed(Errno::NODEV, None),
            Seen::Other if is_unread => Self::Pending,
            Seen::Other => Self::Connected,
        }
    }
}

/// The socket whose connect has succeeded.
#[must_use]
pub fn after_success(socket: Socket) -> Socket {
    // What was the errno of an attempt means something else of a connection.
    let socket = socket.with_error(Errno(0)).in_state(State::Connected);
    socket.with(Flags::STREAM).without(Flags::BEGUN)
}

/// The socket whose connect has failed: it keeps the port that the attempt had.
#[must_use]
pub fn after_failure(socket: Socket, has_address: bool) -> Socket {
    let state = if has_address { State::Bound } else { State::Fresh };
    socket.in_state(state).without(Flags::BEGUN)
}

/// A blocking connect that waits for the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Wait until the descriptor is writable.
    GoOn,
    /// Pause, then look again: another thread or process has yet to send the request, and until then the descriptor is
    /// writable. If the deadline of the connect passes before that, the other has ended, and so has the attempt:
    /// [`after_silence`].
    Pause,
    /// Return this, and keep the socket.
    Return(Result<(), Errno>, Socket),
}

impl Wait {
    /// What to do about this socket.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        match socket.state {
            State::Connecting if socket.awaits_outcome() => Self::GoOn,
            State::Connecting => Self::Pause,
            State::Connected | State::ShutDown => Self::Return(Ok(()), socket),
            State::Fresh | State::Bound | State::Listening | State::Device => {
                let (error, next) = take_error(socket);
                // Another thread or process has taken the error.
                let error = if error == Errno(0) { Errno::CONNRESET } else { error };
                Self::Return(Err(error), next)
            }
        }
    }
}

/// SO_ERROR: the errno of a failed connect or 0, and the socket without it.
#[must_use]
pub fn take_error(socket: Socket) -> (Errno, Socket) {
    match socket.error() {
        Errno(0) => (Errno(0), socket),
        error => (error, socket.with_error(Errno(0))),
    }
}

/// `accept`, before a connection is taken.
///
/// # Errors
/// EINVAL: the socket does not listen.
pub fn accept(listener: Socket) -> Result<(), Errno> {
    if listener.state == State::Listening { Ok(()) } else { Err(Errno::INVAL) }
}

/// The accepted socket of an ACCEPT.
#[must_use]
pub fn accepted(listener: Socket, reply: &Reply) -> Socket {
    let new = if listener.keeps_messages() { Socket::SEQPACKET } else { Socket::STREAM };
    let connection = new.in_state(State::Connected).with(Flags::STREAM);
    connection.with_peer_cid(reply.theirs.cid).with_peer_buffer(reply.peer_buffer)
}

/// One direction of a connection, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// SHUT_RD.
    Receiving,
    /// SHUT_WR.
    Sending,
    /// SHUT_RDWR.
    Both,
}

impl Direction {
    /// The direction of this number.
    ///
    /// # Errors
    /// EINVAL. The kernel checks this before the state.
    pub fn new(how: i32) -> Result<Self, Errno> {
        match how {
            SHUT_RD => Ok(Self::Receiving),
            SHUT_WR => Ok(Self::Sending),
            SHUT_RDWR => Ok(Self::Both),
            _ => Err(Errno::INVAL),
        }
    }

    /// Its number.
    #[must_use]
    pub fn how(self) -> i32 {
        match self {
            Self::Receiving => SHUT_RD,
            Self::Sending => SHUT_WR,
            Self::Both => SHUT_RDWR,
        }
    }

    fn flags(self) -> Flags {
        match self {
            Self::Receiving => Flags::NO_RECEIVING,
            Self::Sending => Flags::NO_SENDING,
            Self::Both => Flags::NO_RECEIVING.with(Flags::NO_SENDING),
        }
    }
}

/// `shutdown`: shut the descriptor down, and keep `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How to shut the descriptor down.
    pub descriptor: Direction,
    /// A connect is given up: undo its changes to the descriptor.
    pub ends_connect: bool,
    /// Tell the node that the program receives no more (FLOW): a full descriptor does not show it.
    pub tells_node: bool,
    /// The socket afterwards.
    pub next: Socket,
}

impl Shutdown {
    /// `shutdown(socket, direction)`.
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn new(socket: Socket, direction: Direction) -> Result<Self, Errno> {
        let ends_connect = socket.state == State::Connecting;
        if !ends_connect && !socket.has_stream() {
            return Err(Errno::NOTCONN);
        }
        Ok(Self {
            descriptor: if ends_connect { Direction::Both } else { direction },
            ends_connect,
            tells_node: !ends_connect && direction == Direction::Receiving,
            next: socket.with(direction.flags()).in_state(State::ShutDown),
        })
    }
}

/// The socket whose node has not answered in time, or has not been asked. The answer may still come, so the descriptor cannot
/// be used again.
#[must_use]
pub fn after_silence(socket: Socket) -> Socket {
    socket.in_state(State::ShutDown)
}

/// `getsockname`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnName {
    /// The address.
    Known(Address),
    /// Ask the node (FLOW): it chose a port for the connect.
    Ask,
}

impl OwnName {
    /// The address of a socket whose Unix socket has this name, if it has one.
    #[must_use]
    pub fn new(socket: Socket, named: Option<Address>) -> Self {
        match named {
            Some(ours) => Self::Known(Address { cid: own_cid(socket, ours.cid), ..ours }),
            None if socket.has_stream() => Self::Ask,
            None => Self::Known(Address::ANY),
        }
    }
}

/// A connection from this machine to itself has CID 1, whatever CID the socket was bound to.
fn own_cid(socket: Socket, cid: u32) -> u32 {
    let is_made_here = socket.has_stream() && socket.flags.has(Flags::ATTACHED);
    let theirs = socket.peer_cid();
    let is_loopback = is_made_here && (theirs == CID_LOCAL || theirs == cid);
    if is_loopback && cid != ANY { CID_LOCAL } else { cid }
}

/// `getpeername`, before the address is read.
///
/// # Errors
/// ENOTCONN: the socket is not connected, or shut down.
pub fn peer_name(socket: Socket) -> Result<(), Errno> {
    if socket.state == State::Connected { Ok(()) } else { Err(Errno::NOTCONN) }
}

/// SIOCINQ and SIOCOUTQ, before the descriptor answers.
///
/// # Errors
/// EOPNOTSUPP: the socket is not a connection.
pub fn queue_len(socket: Socket) -> Result<(), Errno> {
    if socket.has_stream() { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// IOCTL_VM_SOCKETS_GET_LOCAL_CID, before the node answers.
///
/// # Errors
/// ENOTTY: this is a socket and not /dev/vsock.
pub fn local_cid(socket: Socket) -> Result<(), Errno> {
    if socket.state == State::Device { Ok(()) } else { Err(Errno::NOTTY) }
}
