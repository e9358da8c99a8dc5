//! A socket: its state, on which all its holders have to agree, packed into 64 bits.
//!
//! The state has to live as long as the socket, and every process with a copy of the descriptor (dup, fork, exec,
//! SCM_RIGHTS) must be able to read and write it. So it is kept in fields that the kernel stores for every socket and does
//! not use on Unix sockets:
//!
//! ```text
//!   SO_MAX_PACING_RATE   64 bits, written and read whole: 63..54 the mark, 53..51 the state, 50..40 the flags,
//!                        39..32 `code`, 31..0 `number`: Socket::pack
//!   SO_INCOMING_CPU      32 bits: the other side's port
//!   its abstract name    given once: our address (`name`)
//!   times of its inode   the options of level AF_VSOCK, unless they are the defaults (`options`)
//! ```
//!
//! The layout is part of the client protocol: `docs/reference/client-protocol.md`. [`calls`](crate::calls) has what each
//! call does to a socket, [`transfer`](crate::transfer) what is checked before data moves.

use crate::options::Options;
use crate::{Address, Errno};

/// Bits 63..54 of a word that describes a socket of ours.
const MARK: u64 = 0x2b5;
const MARK_AT: u32 = 54;
const STATE_AT: u32 = 51;
const FLAGS_AT: u32 = 40;
const CODE_AT: u32 = 32;

/// How far a socket has come.
///
/// ```text
///   FRESH ──bind──▶ BOUND ──listen──▶ LISTENING
///     └───connect─────┴──▶ CONNECTING ──outcome──▶ CONNECTED ──shutdown──▶ SHUT_DOWN
/// ```
///
/// After a connect that failed the socket is BOUND to the port of the attempt, or FRESH if the attempt had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// New.
    Fresh = 0,
    /// It has an address.
    Bound,
    /// It takes connections.
    Listening,
    /// A connect is under way.
    Connecting,
    /// It is a connection.
    Connected,
    /// Its program has called `shutdown`.
    ShutDown,
    /// Not a socket to its program, but what it got for opening /dev/vsock.
    Device,
}

impl State {
    /// All states, each at its number.
    pub const ALL: [Self; 7] = [
        Self::Fresh,
        Self::Bound,
        Self::Listening,
        Self::Connecting,
        Self::Connected,
        Self::ShutDown,
        Self::Device,
    ];
}

/// Properties of a socket that it has or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// The descriptor is connected to the node.
    pub const ATTACHED: Self = Self(1);
    /// The connect under way has begun: only its outcome is still to come.
    pub const BEGUN: Self = Self(2);
    /// The descriptor is the connection, and not the way to the node.
    pub const STREAM: Self = Self(4);
    /// SOCK_SEQPACKET.
    pub const MESSAGES: Self = Self(8);
    /// The program has ended receiving.
    pub const NO_RECEIVING: Self = Self(16);
    /// SO_ZEROCOPY is set, which no connection here has.
    pub const ZEROCOPY: Self = Self(32);
    /// SO_RCVLOWAT is more than one byte.
    pub const LOW_WATER: Self = Self(64);
    /// The program has ended sending.
    pub const NO_SENDING: Self = Self(128);
    /// The peer's address has VMADDR_FLAG_TO_HOST.
    pub const TO_HOST: Self = Self(256);
    /// There are options that are not the defaults.
    pub const OPTIONS: Self = Self(512);
    /// The node has been asked how the connection ended, and the program told if data may be missing.
    pub const END_TOLD: Self = Self(1024);

    const ALL: u16 = 2047;

    /// Whether all of `flags` are set.
    #[must_use]
    pub fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and `flags`.
    #[must_use]
    pub fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These without `flags`.
    #[must_use]
    pub fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// These with or without `flags`.
    fn set(self, flags: Self, is_set: bool) -> Self {
        if is_set { self.with(flags) } else { self.without(flags) }
    }
}

/// The state of a socket on which all its holders have to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// How far it has come.
    pub state: State,
    /// Its flags.
    pub flags: Flags,
    /// Of a connection: messages of up to 2 to the power of this many bytes fit the other side's buffer (0: unknown).
    /// Of any other socket: the errno of a connect that nobody has asked about yet.
    code: u8,
    /// The other side's CID; of a listener its backlog.
    number: u32,
}

impl Socket {
    /// A new socket of type SOCK_STREAM.
    pub const STREAM: Self = Self { state: State::Fresh, flags: Flags(0), code: 0, number: 0 };

    /// A new socket of type SOCK_SEQPACKET.
    pub const SEQPACKET: Self = Self { flags: Flags::MESSAGES, ..Self::STREAM };

    /// What a program gets for opening /dev/vsock.
    pub const DEVICE: Self = Self { state: State::Device, ..Self::STREAM };

    /// The 64 bits to keep.
    #[must_use]
    pub fn pack(&self) -> u64 {
        MARK << MARK_AT
            | u64::from(self.state as u8) << STATE_AT
            | u64::from(self.flags.0) << FLAGS_AT
            | u64::from(self.code) << CODE_AT
            | u64::from(self.number)
    }

    /// Reads 64 bits; `None` if they do not describe a socket of ours.
    #[must_use]
    pub fn unpack(word: u64) -> Option<Self> {
        let [_, _, _, code, number @ ..] = word.to_be_bytes();
        let state = usize::try_from(word >> STATE_AT & 7).ok()?;
        let flags = u16::try_from(word >> FLAGS_AT & u64::from(Flags::ALL)).ok()?;
        (word >> MARK_AT == MARK).then_some(())?;
        let number = u32::from_be_bytes(number);
        Some(Self { state: *State::ALL.get(state)?, flags: Flags(flags), code, number })
    }

    /// Whether the descriptor is the connection.
    #[must_use]
    pub fn has_stream(&self) -> bool {
        self.flags.has(Flags::STREAM)
    }

    /// Whether this keeps messages apart (SOCK_SEQPACKET).
    #[must_use]
    pub fn keeps_messages(&self) -> bool {
        self.flags.has(Flags::MESSAGES)
    }

    /// Whether a connect has begun and its outcome is not known.
    #[must_use]
    pub fn awaits_outcome(&self) -> bool {
        self.state == State::Connecting && self.flags.has(Flags::BEGUN)
    }

    /// The errno of a failed connect that nobody has asked about yet, or 0.
    #[must_use]
    pub fn error(&self) -> Errno {
        Errno(if self.has_stream() { 0 } else { self.code.into() })
    }

    /// A listener's backlog.
    #[must_use]
    pub fn backlog(&self) -> u32 {
        self.number
    }

    /// The other side's CID.
    #[must_use]
    pub fn peer_cid(&self) -> u32 {
        self.number
    }

    /// The other side's address; the port is kept in another field of the kernel.
    #[must_use]
    pub fn peer(&self, port: u32) -> Address {
        Address { cid: self.number, port }
    }

    /// Whether a message of this length is known to fit the other side's buffer.
    #[must_use]
    pub fn is_known_to_fit(&self, len: u64) -> bool {
        self.code > 0 && len <= 1 << self.code.min(63)
    }

    /// The socket in another state.
    #[must_use]
    pub fn in_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// The socket with these flags too.
    #[must_use]
    pub fn with(self, flags: Flags) -> Self {
        Self { flags: self.flags.with(flags), ..self }
    }

    /// The socket without these flags.
    #[must_use]
    pub fn without(self, flags: Flags) -> Self {
        Self { flags: self.flags.without(flags), ..self }
    }

    /// The socket with `flags` or without.
    #[must_use]
    pub fn set(self, flags: Flags, is_set: bool) -> Self {
        Self { flags: self.flags.set(flags, is_set), ..self }
    }

    /// The socket with the errno of a connect that nobody has asked about; 0: without.
    #[must_use]
    pub fn with_error(self, Errno(error): Errno) -> Self {
        Self { code: u8::try_from(error).unwrap_or(u8::MAX), ..self }
    }

    /// The socket with the other side's receive buffer, rounded down to a power of two.
    #[must_use]
    pub fn with_peer_buffer(self, buffer: u32) -> Self {
        let power = buffer.checked_ilog2().and_then(|power| u8::try_from(power).ok());
        Self { code: power.unwrap_or(0), ..self }
    }

    /// The socket with a listener's backlog.
    #[must_use]
    pub fn with_backlog(self, number: u32) -> Self {
        Self { number, ..self }
    }

    /// The socket with the other side's CID.
    #[must_use]
    pub fn with_peer_cid(self, number: u32) -> Self {
        Self { number, ..self }
    }

    /// The socket with [`Flags::OPTIONS`] if these are not the defaults, else without.
    #[must_use]
    pub fn with_options(self, options: &Options) -> Self {
        self.set(Flags::OPTIONS, *options != Options::DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_packed_is_unpacked_whole() {
        for state in State::ALL {
            for flag in 0..11 {
                for (code, number) in [(0, 0), (255, u32::MAX), (104, 3), (1, 1 << 31)] {
                    let socket = Socket { state, flags: Flags(1 << flag), code, number };
                    assert_eq!(Socket::unpack(socket.pack()), Some(socket));
                }
            }
        }
    }

    #[test]
    fn each_field_is_where_the_specification_says() {
        let socket = Socket {
            state: State::Connected,
            flags: Flags::STREAM.with(Flags::END_TOLD),
            code: 0x12,
            number: 0x3456_789a,
        };
        let expected = 0x2b5 << 54 | 4 << 51 | (4 | 1024) << 40 | 0x12 << 32 | 0x3456_789a;
        assert_eq!(socket.pack(), expected);
    }

    #[test]
    fn word_without_the_mark_or_with_an_unknown_state_is_no_socket_of_ours() {
        for word in [
            0,
            u64::MAX,
            1_000_000,
            !0 >> 1,
            (MARK ^ 1) << MARK_AT,
            MARK << MARK_AT | 7 << STATE_AT,
        ] {
            assert_eq!(Socket::unpack(word), None, "{word:x}");
        }
    }

    #[test]
    fn message_fits_if_it_is_no_longer_than_the_power_of_two_in_the_buffer() {
        let socket = Socket::SEQPACKET.with(Flags::STREAM);
        assert!(!socket.is_known_to_fit(1));
        let socket = socket.with_peer_buffer(262_143);
        assert!(socket.is_known_to_fit(131_072) && !socket.is_known_to_fit(131_073));
        assert!(!socket.with_peer_buffer(0).is_known_to_fit(1));
        assert_eq!(socket.error(), Errno(0));
    }

    #[test]
    fn flags_are_set_and_taken_away_one_by_one() {
        let both = Flags::BEGUN.with(Flags::STREAM);
        assert!(both.has(Flags::BEGUN) && both.has(Flags::STREAM) && !both.has(Flags::MESSAGES));
        assert_eq!(both.without(Flags::BEGUN), Flags::STREAM);
        assert_eq!(Flags::STREAM.set(Flags::BEGUN, true), both);
        assert_eq!(both.set(Flags::BEGUN, false), Flags::STREAM);
    }

    #[test]
    fn socket_is_flagged_for_options_only_while_they_are_not_the_defaults() {
        let other = Options { min: 1, ..Options::DEFAULT };
        let socket = Socket::STREAM.with_options(&other);
        assert!(socket.flags.has(Flags::OPTIONS));
        assert_eq!(socket.with_options(&Options::DEFAULT), Socket::STREAM);
    }

    #[test]
    fn errno_too_large_to_be_kept_is_the_largest() {
        assert_eq!(Socket::STREAM.with_error(Errno(300)).error(), Errno(255));
    }
}
