//! `getsockopt` and `setsockopt`: [`TABLE`] has every option that AF_VSOCK treats in another way than a Unix socket does,
//! with its rule.
//!
//! A new option is a line of the table. A new rule is a variant of [`Rule`], whose `get` and `set` are below; one that needs
//! another kind of I/O is a variant of [`Get`] or [`Set`] too, which the caller carries out.
//!
//! ```
//! use vsock_client::options::{Get, SocketOption, Value};
//! use vsock_client::{Errno, Options, Socket};
//!
//! let size = SocketOption::find(40, 0)?.unwrap();
//! let value = size.get(Socket::STREAM, || Options::DEFAULT, 4000)?;
//! assert_eq!(value, Get::Value(Value::Number(262_144)));
//! assert_eq!(SocketOption::find(40, 3).err(), Some(Errno::NOPROTOOPT));
//! # Ok::<(), Errno>(())
//! ```

mod kept;

use crate::Errno;
use crate::calls::take_error;
use crate::socket::{Flags, Socket, State};

pub(crate) use kept::INHERITED;
pub use kept::{InodeTime, Options, Setting};

const SOL_SOCKET: i32 = 1;
const AF_VSOCK: i32 = 40;

/// An option that AF_VSOCK treats in another way than a Unix socket does.
#[derive(Debug)]
pub struct SocketOption {
    /// Its level.
    pub level: i32,
    /// Its number.
    pub number: i32,
    /// Its name in C.
    pub name: &'static str,
    rule: Rule,
}

/// What `getsockopt` and `setsockopt` do.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// A number of 64 bits among the socket's [`Options`].
    Size(fn(u64) -> Setting, fn(&Options) -> u64),
    /// A `struct timeval` among the socket's [`Options`].
    ConnectTimeout,
    /// EOPNOTSUPP, although Unix sockets have it.
    Refused,
    /// Always this number; it cannot be set.
    Fixed(i32),
    /// SO_ACCEPTCONN.
    IsListener,
    /// SO_ERROR.
    Error,
    /// SO_SNDBUF, which during a connect is not the descriptor's own.
    SendBuffer,
    /// SO_RCVLOWAT, which during a connect holds the size of the send buffer.
    LowWater,
    /// SO_ZEROCOPY.
    Zerocopy,
    /// Only sockets of the internet can have it on.
    InternetOnly,
}

/// All options with a rule of their own, by level and number.
///
/// Refused are: SO_PASSCRED, SO_PASSSEC, SO_PEEK_OFF and SO_PASSPIDFD, which are for Unix sockets only; SO_MAX_PACING_RATE and
/// SO_INCOMING_CPU, which hold the socket's state; and SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_LOCK_FILTER and SO_ATTACH_BPF:
/// AF_VSOCK never runs the filters, and Unix sockets of messages would.
pub const TABLE: &[SocketOption] = &[
    generic(4, "SO_ERROR", Rule::Error),
    generic(7, "SO_SNDBUF", Rule::SendBuffer),
    generic(15, "SO_REUSEPORT", Rule::InternetOnly),
    generic(16, "SO_PASSCRED", Rule::Refused),
    generic(18, "SO_RCVLOWAT", Rule::LowWater),
    generic(26, "SO_ATTACH_FILTER", Rule::Refused),
    generic(27, "SO_DETACH_FILTER", Rule::Refused),
    generic(30, "SO_ACCEPTCONN", Rule::IsListener),
    generic(34, "SO_PASSSEC", Rule::Refused),
    generic(38, "SO_PROTOCOL", Rule::Fixed(0)),
    generic(39, "SO_DOMAIN", Rule::Fixed(AF_VSOCK)),
    generic(42, "SO_PEEK_OFF", Rule::Refused),
    generic(44, "SO_LOCK_FILTER", Rule::Refused),
    generic(47, "SO_MAX_PACING_RATE", Rule::Refused),
    generic(49, "SO_INCOMING_CPU", Rule::Refused),
    generic(50, "SO_ATTACH_BPF", Rule::Refused),
    generic(60, "SO_ZEROCOPY", Rule::Zerocopy),
    generic(76, "SO_PASSPIDFD", Rule::Refused),
    own(0, "SO_VM_SOCKETS_BUFFER_SIZE", Rule::Size(Setting::Size, |options| options.size)),
    own(1, "SO_VM_SOCKETS_BUFFER_MIN_SIZE", Rule::Size(Setting::Min, |options| options.min)),
    own(2, "SO_VM_SOCKETS_BUFFER_MAX_SIZE", Rule::Size(Setting::Max, |options| options.max)),
    own(6, "SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD", Rule::ConnectTimeout),
    own(8, "SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW", Rule::ConnectTimeout), // on 64-bit machines the same structure
];

/// An option of level SOL_SOCKET.
const fn generic(number: i32, name: &'static str, rule: Rule) -> SocketOption {
    SocketOption { level: SOL_SOCKET, number, name, rule }
}

/// An option of level AF_VSOCK.
const fn own(number: i32, name: &'static str, rule: Rule) -> SocketOption {
    SocketOption { level: AF_VSOCK, number, name, rule }
}

/// `getsockopt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Get {
    /// The descriptor answers.
    Descriptor,
    /// Return this.
    Value(Value),
    /// SO_ERROR: return the errno as a number, and keep the socket.
    Error(Errno, Socket),
    /// Return the size that the send buffer will have after the connect under way.
    HeldBuffer,
}

/// `setsockopt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Set the descriptor's own option.
    Descriptor,
    /// Keep the socket.
    Socket(Socket),
    /// Keep options, and tell the node.
    Options(SetOption),
    /// SO_RCVLOWAT.
    LowWater(SetLowWater),
    /// Set the size that the send buffer will have after the connect under way.
    HeldBuffer(u32),
}

impl SocketOption {
    /// The option of a level with a number; `None` if a Unix socket does what AF_VSOCK does.
    ///
    /// # Errors
    /// ENOPROTOOPT: AF_VSOCK does not have it.
    pub fn find(level: i32, number: i32) -> Result<Option<&'static Self>, Errno> {
        let found = TABLE.iter().find(|option| (option.level, option.number) == (level, number));
        if found.is_none() && level != SOL_SOCKET { Err(Errno::NOPROTOOPT) } else { Ok(found) }
    }

    /// How many bytes of a value [`Self::set`] reads; less is EINVAL.
    #[must_use]
    pub fn value_len(&self) -> usize {
        match self.rule {
            Rule::Size(..) => size_of::<u64>(),
            Rule::ConnectTimeout => size_of::<[i64; 2]>(),
            Rule::Refused => 0,
            Rule::Fixed(_)
            | Rule::IsListener
            | Rule::Error
            | Rule::SendBuffer
            | Rule::LowWater
            | Rule::Zerocopy
            | Rule::InternetOnly => size_of::<i32>(),
        }
    }

    /// `getsockopt` of a socket; `options` reads what it keeps, and a tick has `tick` microseconds.
    ///
    /// # Errors
    /// EOPNOTSUPP.
    pub fn get(
        &self,
        socket: Socket,
        options: impl FnOnce() -> Options,
        tick: u64,
    ) -> Result<Get, Errno> {
        let is_connecting = socket.state == State::Connecting;
        let has_low_water = socket.flags.has(Flags::LOW_WATER);
        Ok(match self.rule {
            Rule::Size(_, get) => Get::Value(Value::Number(get(&options()))),
            Rule::ConnectTimeout => Get::Value(Value::Timeval(options().connect_timeval(tick))),
            Rule::Refused => return Err(Errno::OPNOTSUPP),
            Rule::Fixed(number) => Get::Value(Value::Int(number)),
            Rule::IsListener => Get::Value(Value::flag(socket.state == State::Listening)),
            Rule::Error => {
                let (error, next) = take_error(socket);
                Get::Error(error, next)
            }
            Rule::Zerocopy => Get::Value(Value::flag(socket.flags.has(Flags::ZEROCOPY))),
            Rule::SendBuffer if is_connecting => Get::HeldBuffer,
            Rule::LowWater if is_connecting && !has_low_water => Get::Value(Value::Int(1)),
            Rule::SendBuffer | Rule::LowWater | Rule::InternetOnly => Get::Descriptor,
        })
    }

    /// `setsockopt` of a socket that keeps what `options` reads, for a tick of `tick` microseconds. `value` may be longer than
    /// [`Self::value_len`].
    ///
    /// # Errors
    /// EINVAL: the value is too short, or none that the option can have. ENOPROTOOPT: it can only be read. EOPNOTSUPP.
    /// ERANGE: not a valid timeout.
    pub fn set(
        &self,
        socket: Socket,
        value: &[u8],
        options: impl FnOnce() -> Options,
        tick: u64,
    ) -> Result<Set, Errno> {
        let set_kept = |setting, options| SetOption::new(socket, options, setting, tick);
        match self.rule {
            Rule::Size(setting, _) => {
                set_kept(setting(number(value)?), options()).map(Set::Options)
            }
            Rule::ConnectTimeout => {
                set_kept(Setting::ConnectTimeout(timeval(value)?), options()).map(Set::Options)
            }
            Rule::Refused => Err(Errno::OPNOTSUPP),
            Rule::Fixed(_) | Rule::IsListener | Rule::Error => {
                int(value).and(Err(Errno::NOPROTOOPT))
            }
            Rule::SendBuffer => {
                let size = int(value)?.cast_unsigned();
                let is_connecting = socket.state == State::Connecting;
                Ok(if is_connecting { Set::HeldBuffer(size) } else { Set::Descriptor })
            }
            Rule::LowWater => {
                SetLowWater::new(socket, int(value)?, || options().size).map(Set::LowWater)
            }
            Rule::Zerocopy => set_zerocopy(socket, int(value)?).map(Set::Socket),
            Rule::InternetOnly if int(value)? != 0 => Err(Errno::OPNOTSUPP),
            Rule::InternetOnly => Ok(Set::Descriptor),
        }
    }
}

fn int(value: &[u8]) -> Result<i32, Errno> {
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::INVAL)
}

fn number(value: &[u8]) -> Result<u64, Errno> {
    value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).ok_or(Errno::INVAL)
}

fn timeval(value: &[u8]) -> Result<[i64; 2], Errno> {
    let halves = value.as_chunks().0.first_chunk::<2>().ok_or(Errno::INVAL)?;
    Ok(halves.map(i64::from_ne_bytes))
}

/// The length of the longest value.
pub const VALUE_MAX: usize = 16;

/// What `getsockopt` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// An int, which is cut to the room that the program has.
    Int(i32),
    /// A number of 64 bits.
    Number(u64),
    /// Seconds and microseconds of a `struct timeval`.
    Timeval([i64; 2]),
}

impl Value {
    fn flag(is_set: bool) -> Self {
        Self::Int(i32::from(is_set))
    }

    /// The value for a program with `room` bytes: how many of these bytes it gets.
    ///
    /// # Errors
    /// EINVAL: there is less room than the value needs.
    pub fn cut_to(self, room: usize) -> Result<([u8; VALUE_MAX], usize), Errno> {
        let mut bytes = [0; VALUE_MAX];
        let words = bytes.as_chunks_mut().0;
        let len = match self {
            Self::Int(value) => {
                bytes[..4].copy_from_slice(&value.to_ne_bytes());
                4.min(room)
            }
            Self::Number(value) => {
                words[0] = value.to_ne_bytes();
                8
            }
            Self::Timeval(halves) => {
                words.copy_from_slice(&halves.map(i64::to_ne_bytes));
                VALUE_MAX
            }
        };
        if room < len { Err(Errno::INVAL) } else { Ok((bytes, len)) }
    }
}

/// `setsockopt` of level AF_VSOCK: keep the options, and tell the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetOption {
    /// The options from now on.
    pub options: Options,
    /// What to tell the node.
    pub tell: Tell,
}

/// What to tell the node about changed options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Nothing.
    Nothing,
    /// What the next accepted sockets inherit: [`listen_message`], which is not answered.
    Listener,
    /// The new receive buffer of a connection.
    Connection(u64),
}

impl SetOption {
    /// A setting of a socket with these options.
    ///
    /// # Errors
    /// ERANGE: not a valid timeout.
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

/// SO_ZEROCOPY: the socket with the option or without.
///
/// # Errors
/// EINVAL: neither 0 nor 1. EOPNOTSUPP: the socket is a connection.
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
    /// Keep the socket, and do not touch the descriptor's own option: while a connect is under way it holds the size of
    /// the send buffer.
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
