//! What a socket is, kept in the socket itself: the *note*.
//!
//! A note has to live as long as the socket, be seen through every copy of its descriptor (dup, fork, exec, SCM_RIGHTS),
//! be writable by whoever holds one, also after the process gave up its privileges, and cost the kernel nothing but the
//! socket. So it is put into what the kernel keeps for each socket, gives back, and makes no use of on Unix sockets:
//!
//! ```text
//!   SO_MAX_PACING_RATE   64 bits, written and read whole: 63..54 the mark, 53..51 the state, 50..40 the flags,
//!                        39..32 `code`, 31..0 `number` (`Note`)
//!   SO_INCOMING_CPU      32 bits: the other side's port
//!   its abstract name    given once: our address (`name`)
//!   times of its inode   the options of level AF_VSOCK, where they are not the defaults (`vm_options`)
//! ```
//!
//! What else is to be known of a connection the node knows (`node`). A socket without the mark is none of ours. The
//! layout is part of the client protocol: `docs/reference/client-protocol.md`.

use vsock_client::Address;

use crate::sys::{Answer, Errno, Fd};

const MARK: u64 = 0x2b5;
const MARK_AT: u32 = 54;
const STATE_AT: u32 = 51;
const FLAGS_AT: u32 = 40;
const CODE_AT: u32 = 32;

/// Where a socket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Fresh,
    Bound,
    Listening,
    /// A connect is under way (`settle`).
    Connecting,
    Connected,
    ShutDown,
    /// Not a socket to the program, but what it got for opening /dev/vsock.
    Device,
}

impl State {
    const ALL: [Self; 7] = [
        Self::Fresh,
        Self::Bound,
        Self::Listening,
        Self::Connecting,
        Self::Connected,
        Self::ShutDown,
        Self::Device,
    ];
}

/// What is yes or no about a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u16);

impl Flags {
    /// Connected to the switch.
    pub(crate) const ATTACHED: Self = Self(1);
    /// The connect under way has begun: nothing but its outcome is to come.
    pub(crate) const BEGUN: Self = Self(2);
    /// The descriptor is the connection, and not the way to the switch.
    pub(crate) const STREAM: Self = Self(4);
    /// SOCK_SEQPACKET.
    pub(crate) const MESSAGES: Self = Self(8);
    /// The program has ended receiving.
    pub(crate) const NO_RECEIVING: Self = Self(16);
    /// SO_ZEROCOPY was asked for, which no connection here has.
    pub(crate) const ZEROCOPY: Self = Self(32);
    /// SO_RCVLOWAT is more than one byte.
    pub(crate) const LOW_WATER: Self = Self(64);
    /// The program has ended sending.
    pub(crate) const NO_SENDING: Self = Self(128);
    /// The peer's address has VMADDR_FLAG_TO_HOST.
    pub(crate) const TO_HOST: Self = Self(256);
    /// There are options that are not the defaults.
    pub(crate) const OPTIONS: Self = Self(512);
    /// How the connection ended has been asked, and told if it was no good end.
    pub(crate) const END_TOLD: Self = Self(1024);
    const ALL: u16 = 2047;

    /// Whether all of `flags` are set.
    pub(crate) fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and `flags`.
    pub(crate) fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These but for `flags`.
    pub(crate) fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }
}

/// What each call has to know of one of our sockets, beside what its descriptor says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) state: State,
    pub(crate) flags: Flags,
    /// Of a socket with a stream: messages of up to 2 to the power of this many bytes have been seen to fit the other
    /// side's buffer. Of any other: how a connect ended that nobody has asked about yet (SO_ERROR).
    code: u8,
    /// The other side's CID; of a listener its backlog.
    number: u32,
}

impl Note {
    /// A new socket's.
    pub(crate) const FRESH: Self =
        Self { state: State::Fresh, flags: Flags(0), code: 0, number: 0 };

    /// A new socket's that keeps messages.
    pub(crate) const FRESH_MESSAGES: Self = Self { flags: Flags::MESSAGES, ..Self::FRESH };

    /// The note in another state.
    pub(crate) fn in_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// The note with these flags too.
    pub(crate) fn with(self, flags: Flags) -> Self {
        Self { flags: self.flags.with(flags), ..self }
    }

    /// The note without these flags.
    pub(crate) fn without(self, flags: Flags) -> Self {
        Self { flags: self.flags.without(flags), ..self }
    }

    /// Whether the descriptor is the connection.
    pub(crate) fn has_stream(&self) -> bool {
        self.flags.has(Flags::STREAM)
    }

    /// Whether this keeps messages (SOCK_SEQPACKET).
    pub(crate) fn keeps_messages(&self) -> bool {
        self.flags.has(Flags::MESSAGES)
    }

    /// Whether a connect is under way whose outcome may be looked for.
    pub(crate) fn has_begun(&self) -> bool {
        self.state == State::Connecting && self.flags.has(Flags::BEGUN)
    }

    /// How a connect ended that nobody has asked about yet; 0: well, or not at all.
    pub(crate) fn error(&self) -> i32 {
        if self.has_stream() { 0 } else { self.code.into() }
    }

    /// The note with a connect that ended so.
    pub(crate) fn with_error(self, Errno(error): Errno) -> Self {
        Self { code: u8::try_from(error).unwrap_or(u8::MAX), ..self }
    }

    /// Whether a message of this length is known to fit the other side's buffer.
    pub(crate) fn is_known_to_fit(&self, len: u64) -> bool {
        self.code > 0 && len <= 1 << self.code.min(63)
    }

    /// The note with the other side's receive buffer, as far as it can be kept.
    pub(crate) fn with_peer_buffer(self, buffer: u32) -> Self {
        Self {
            code: buffer.checked_ilog2().and_then(|log| u8::try_from(log).ok()).unwrap_or(0),
            ..self
        }
    }

    /// A listener's backlog.
    pub(crate) fn backlog(&self) -> u32 {
        self.number
    }

    /// The note with a listener's backlog.
    pub(crate) fn with_backlog(self, number: u32) -> Self {
        Self { number, ..self }
    }

    /// The note of a socket that leads, or shall lead, to the other side's address; its port is written at once.
    pub(crate) fn with_theirs(self, fd: Fd, theirs: Address) -> Answer<Self> {
        fd.set_option(libc::SO_INCOMING_CPU, &theirs.port)?;
        Ok(Self { number: theirs.cid, ..self })
    }

    /// The other side's address.
    pub(crate) fn theirs(&self, fd: Fd) -> Answer<Address> {
        let port = fd.option(libc::SOL_SOCKET, libc::SO_INCOMING_CPU)?;
        Ok(Address { cid: self.number, port })
    }

    /// The note of a socket, if it is one of ours.
    pub(crate) fn of(fd: Fd) -> Option<Self> {
        let word: u64 = fd.option(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE).ok()?;
        Self::decode(word)
    }

    /// Writes the note to its socket.
    pub(crate) fn put(&self, fd: Fd) -> Answer<()> {
        fd.set_option(libc::SO_MAX_PACING_RATE, &self.encode())
    }

    fn encode(&self) -> u64 {
        let state = State::ALL.iter().position(|&state| state == self.state).unwrap_or(0);
        MARK << MARK_AT
            | u64::try_from(state).unwrap_or(0) << STATE_AT
            | u64::from(self.flags.0) << FLAGS_AT
            | u64::from(self.code) << CODE_AT
            | u64::from(self.number)
    }

    fn decode(word: u64) -> Option<Self> {
        let [_, _, _, code, number @ ..] = word.to_be_bytes();
        let state = usize::try_from(word >> STATE_AT & 7).ok()?;
        let flags = u16::try_from(word >> FLAGS_AT & u64::from(Flags::ALL)).ok()?;
        (word >> MARK_AT == MARK).then_some(())?;
        Some(Self {
            state: *State::ALL.get(state)?,
            flags: Flags(flags),
            code,
            number: u32::from_be_bytes(number),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> Fd {
        Fd::unix_socket(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn every_note_put_is_read_back_whole() {
        let fd = socket();
        for state in State::ALL {
            for flag in 0..11 {
                for (code, number) in [(0, 0), (255, u32::MAX), (104, 3), (1, 1 << 31)] {
                    let note = Note { state, flags: Flags(1 << flag), code, number };
                    note.put(fd).unwrap();
                    assert_eq!(Note::of(fd), Some(note));
                }
            }
        }
        fd.close();
    }

    #[test]
    fn note_is_seen_through_a_copy_of_the_descriptor_and_written_through_it() {
        let fd = socket();
        Note::FRESH.put(fd).unwrap();
        // SAFETY: dup of a descriptor of ours.
        let copy = Fd(unsafe { libc::dup(fd.0) });
        let note = Note { state: State::Bound, ..Note::FRESH };
        note.put(copy).unwrap();
        assert_eq!(Note::of(fd), Some(note));
        copy.close();
        fd.close();
    }

    #[test]
    fn socket_without_a_note_is_none_of_ours() {
        let fd = socket();
        assert_eq!(Note::of(fd), None);
        for word in [
            0,
            u64::MAX,
            1_000_000,
            !0 >> 1,
            (MARK ^ 1) << MARK_AT,
            MARK << MARK_AT | 7 << STATE_AT,
        ] {
            fd.set_option(libc::SO_MAX_PACING_RATE, &word).unwrap();
            assert_eq!(Note::of(fd), None, "{word:x}");
        }
        fd.close();
        assert_eq!(Note::of(Fd(-1)), None);
    }

    #[test]
    fn address_of_the_other_side_is_read_back() {
        let fd = socket();
        let theirs = Address { cid: 0xffff_fffe, port: 0xffff_fffd };
        let note = Note::FRESH.with_theirs(fd, theirs).unwrap();
        note.put(fd).unwrap();
        assert_eq!(Note::of(fd).unwrap().theirs(fd), Ok(theirs));
        fd.close();
    }

    #[test]
    fn message_fits_if_it_is_no_longer_than_the_power_of_two_in_the_buffer() {
        let note = Note { flags: Flags::STREAM, ..Note::FRESH };
        assert!(!note.is_known_to_fit(1));
        let note = note.with_peer_buffer(262_143);
        assert!(note.is_known_to_fit(131_072) && !note.is_known_to_fit(131_073));
        assert!(!note.with_peer_buffer(0).is_known_to_fit(1));
        assert_eq!(note.error(), 0);
    }

    #[test]
    fn flags_are_set_and_taken_away_one_by_one() {
        let both = Flags::BEGUN.with(Flags::STREAM);
        assert!(both.has(Flags::BEGUN) && both.has(Flags::STREAM) && !both.has(Flags::MESSAGES));
        assert_eq!(both.without(Flags::BEGUN), Flags::STREAM);
    }
}
