//! What the socket calls do to a [`Socket`]: the state machine, with errors in the order in which `af_vsock.c` of Linux
//! checks.
//!
//! A call is a type. It is made of the socket as it is and the call's arguments, and is either the errno to return at once
//! or what to do: which request to send, what to do to the descriptor, and what the socket is afterwards (`next`). The
//! caller does the I/O and keeps `next`. A connect under way has been looked at before ([`Outcome`]), so `CONNECTING`
//! means that there is no outcome yet.

use crate::options::{Options, Setting};
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
/// EINVAL: it has had an address, or is more than a new socket.
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
    /// Whether the node replies. It does not to a listener: its reply could not be told from the ACCEPTs before it.
    pub is_answered: bool,
    /// The listener.
    pub next: Socket,
}

impl Listen {
    /// `listen(socket, backlog)`. A negative backlog is a large one, as in the kernel.
    ///
    /// # Errors
    /// EINVAL: it has no address, or is a connection.
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

/// A LISTEN for a listener with these options, and behind it what the connections that come from now on inherit.
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

/// `connect`, as far as the state decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// A new attempt begins, of this socket.
    Begin(Socket),
    /// Wait for the attempt under way.
    Wait,
    /// Return this error of an earlier attempt, once: keep the socket, which has forgotten it.
    Report(Errno, Socket),
}

impl Connect {
    /// `connect(socket)`.
    ///
    /// # Errors
    /// EISCONN; EINVAL of a listener and after a shutdown; EALREADY if an attempt is under way and the socket does not block.
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

/// Where a connect leads: checked after the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub address: Address,
    /// It has VMADDR_FLAG_TO_HOST: the way leads through the machine's own host, which has to pass it on.
    pub to_host: bool,
}

impl Destination {
    /// The socket that is to connect there; `local_cid` asks for the node's CID.
    ///
    /// # Errors
    /// ENODEV: the machine is itself the host. EOPNOTSUPP: SO_ZEROCOPY is set. What `local_cid` gives.
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

/// An attempt to connect: send the request with what is behind it, keep `next` before that, and the socket as it was if
/// it cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// CONNECT, held.
    pub request: Request,
    /// The connecting socket. A prompt attempt has not begun before the node says so.
    pub next: Socket,
}

impl Attempt {
    /// The attempt of a socket with these options.
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
            timeout_ms: options.connect_timeout_ms(tick),
            buffer: options.connect_buffer(),
            report: Report::Held { prompt: is_nonblocking },
            extra: u32::try_from(HELD_EXTRA).unwrap_or(0),
        };
        Self { request, next: socket.with_peer_cid(to.cid).in_state(State::Connecting) }
    }
}

/// What the node says at once of a prompt attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It is under way: give the socket this address, and keep it.
    Begun(Address, Socket),
    /// It is over: the errno for the program. The socket goes on as after [`after_failure`].
    Failed(Errno),
}

impl Beginning {
    /// What the reply to a prompt CONNECT says.
    #[must_use]
    pub fn new(socket: Socket, reply: &Reply) -> Self {
        match reply.result() {
            Err(Errno::INPROGRESS) => Self::Begun(reply.ours, socket.with(Flags::BEGUN)),
            Err(error) => Self::Failed(error),
            Ok(_) => Self::Failed(Errno::PROTO),
        }
    }
}

/// What can be read first of a socket whose connect is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A reply that ends the connect ([`Reply::ends_connect_of`]).
    Refusal(Reply),
    /// ECONNRESET: the other end was closed with our request unread in it.
    Closed,
    /// Nothing, or something else.
    Other,
}

/// What has become of a connect under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Pending,
    /// It is a connection.
    Connected,
    /// It has failed; the node's reply, which is still in the socket, says what the socket is bound to.
    Failed(Errno, Option<Reply>),
}

impl Outcome {
    /// The outcome, if what we sent was unread *before* this was seen: the node takes a request out after its refusal.
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

/// A blocking connect that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It goes on waiting.
    GoOn,
    /// It returns this, and the socket is kept if it has changed.
    Return(Result<(), Errno>, Socket),
}

impl Wait {
    /// What a connect does that finds the socket so.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        match socket.state {
            State::Connecting => Self::GoOn,
            State::Connected | State::ShutDown => Self::Return(Ok(()), socket),
            State::Fresh | State::Bound | State::Listening | State::Device => {
                let (error, next) = take_error(socket);
                // Without one, somebody else has been told why.
                let error = if error == Errno(0) { Errno::CONNRESET } else { error };
                Self::Return(Err(error), next)
            }
        }
    }
}

/// SO_ERROR: the errno of a failed connect, 0 if there is none, and the socket that has forgotten it.
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
/// EINVAL: it does not listen.
pub fn accept(listener: Socket) -> Result<(), Errno> {
    if listener.state == State::Listening { Ok(()) } else { Err(Errno::INVAL) }
}

/// The connection that an ACCEPT has brought.
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
    /// EINVAL, before anything is looked at.
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
    /// This gives a connect up, whose changes to the descriptor are undone.
    pub ends_connect: bool,
    /// The node has to be told that the program receives no more: a full descriptor does not show it.
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

/// The socket whose node owes an answer that may come at any later time: its descriptor is of no use any more.
#[must_use]
pub fn after_silence(socket: Socket) -> Socket {
    socket.in_state(State::ShutDown)
}

/// `getsockname`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnName {
    /// This is it.
    Known(Address),
    /// The node chose a port for the connect and knows it.
    Ask,
}

impl OwnName {
    /// The address of a socket that was given this name, if any.
    #[must_use]
    pub fn new(socket: Socket, named: Option<Address>) -> Self {
        match named {
            Some(ours) => Self::Known(Address { cid: own_cid(socket, ours.cid), ..ours }),
            None if socket.has_stream() => Self::Ask,
            None => Self::Known(Address::ANY),
        }
    }
}

/// A connection that was made here and leads back here has become one of CID 1, whatever it was bound to.
fn own_cid(socket: Socket, cid: u32) -> u32 {
    let is_made_here = socket.has_stream() && socket.flags.has(Flags::ATTACHED);
    let theirs = socket.peer_cid();
    let is_loopback = is_made_here && (theirs == CID_LOCAL || theirs == cid);
    if is_loopback && cid != ANY { CID_LOCAL } else { cid }
}

/// `getpeername`, before the address is read.
///
/// # Errors
/// ENOTCONN: not connected, or shut down.
pub fn peer_name(socket: Socket) -> Result<(), Errno> {
    if socket.state == State::Connected { Ok(()) } else { Err(Errno::NOTCONN) }
}

/// SIOCINQ and SIOCOUTQ, before the descriptor answers.
///
/// # Errors
/// EOPNOTSUPP: it is no connection.
pub fn queue_len(socket: Socket) -> Result<(), Errno> {
    if socket.has_stream() { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// IOCTL_VM_SOCKETS_GET_LOCAL_CID, before the node answers.
///
/// # Errors
/// ENOTTY: it is a socket, and not /dev/vsock.
pub fn local_cid(socket: Socket) -> Result<(), Errno> {
    if socket.state == State::Device { Ok(()) } else { Err(Errno::NOTTY) }
}

/// `setsockopt` of level AF_VSOCK: keep the options, and tell the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetOption {
    /// The options from now on.
    pub options: Options,
    /// What the node has to know.
    pub tell: Tell,
}

/// What the node has to know of changed options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Nothing.
    Nothing,
    /// What the next connections of a listener inherit: [`listen_message`], which is not answered.
    Listener,
    /// The new receive buffer of a connection.
    Connection(u64),
}

impl SetOption {
    /// A setting of a socket with these options.
    ///
    /// # Errors
    /// ERANGE: a timeout that is no time.
    pub fn new(
        socket: Socket,
        before: Options,
        setting: Setting,
        tick: u64,
    ) -> Result<Self, Errno> {
        let set = before.set(setting, tick)?;
        let is_resized = set.size != before.size;
        let options = if socket.has_stream() && is_resized { set.of_connection() } else { set };
        let tell = if socket.state == State::Listening {
            Tell::Listener
        } else if socket.has_stream() && options.size != before.size {
            Tell::Connection(options.size.max(1))
        } else {
            Tell::Nothing
        };
        Ok(Self { options, tell })
    }
}

/// SO_ZEROCOPY: the socket with it or without.
///
/// # Errors
/// EINVAL: neither 0 nor 1. EOPNOTSUPP: a connection has none.
pub fn set_zerocopy(socket: Socket, value: i32) -> Result<Socket, Errno> {
    match value {
        0 | 1 if socket.has_stream() => Err(Errno::OPNOTSUPP),
        0 | 1 => Ok(socket.set(Flags::ZEROCOPY, value == 1)),
        _ => Err(Errno::INVAL),
    }
}

/// SO_RCVLOWAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetLowWater {
    /// Keep the socket, and set the descriptor's own option.
    Descriptor(Socket),
    /// Keep the socket, and leave the descriptor's own option, which holds the send buffer while a connect is under way.
    Flag(Socket),
}

impl SetLowWater {
    /// SO_RCVLOWAT of this number of bytes; `size` reads SO_VM_SOCKETS_BUFFER_SIZE.
    ///
    /// # Errors
    /// EINVAL: negative, or more than the buffer.
    pub fn new(socket: Socket, bytes: i32, size: impl FnOnce() -> u64) -> Result<Self, Errno> {
        if !socket.keeps_messages() {
            let bytes = u64::try_from(bytes).map_err(|_| Errno::INVAL)?;
            if bytes > size() {
                return Err(Errno::INVAL);
            }
        }
        let is_low = bytes == 0 || bytes == 1;
        let next = socket.set(Flags::LOW_WATER, !is_low);
        let is_held = socket.state == State::Connecting && is_low;
        Ok(if is_held { Self::Flag(next) } else { Self::Descriptor(next) })
    }
}
