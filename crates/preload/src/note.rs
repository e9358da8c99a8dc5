//! What a socket is, kept in the socket itself: the *note*.
//!
//! A note has to live as long as the socket, be seen through every copy of its descriptor (dup, fork, exec, SCM_RIGHTS),
//! be writable by whoever holds one, also after the process gave up its privileges, and change as a whole. A Unix
//! socket has one such place: its classic packet filter, which the kernel keeps and gives back (SO_GET_FILTER). Ours begins
//! with "accept everything", so the instructions behind it are never run; they hold the note, 32 bits each.
//! Filters do not run on Unix stream sockets at all, and cost one instruction per message on the others.
//!
//! A socket without a filter, or with one that does not begin with our mark, is none of ours.

use crate::address::{ANY, Address};
use crate::sys::{Answer, Fd};
use crate::wire::INHERITED;

const SO_GET_FILTER: core::ffi::c_int = libc::SO_GET_FILTER;
const MARK: u32 = 0x5653_4b31; // "VSK1"
const WORDS: usize = 20;
const LEN: usize = WORDS + 3; // "accept" before and after, and the mark

const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const LOAD: u16 = 0x00; // BPF_LD | BPF_IMM | BPF_W

/// The kernel's default of SO_VM_SOCKETS_BUFFER_SIZE and _MAX_SIZE.
pub(crate) const BUFFER: u64 = 262_144;
const BUFFER_MIN: u64 = 128;
const CONNECT_TIMEOUT_US: u64 = 2_000_000;

/// Where a socket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Fresh,
    Bound,
    Listening,
    /// A connect is under way: its verdict will come as bytes on the socket.
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
pub(crate) struct Flags(u32);

impl Flags {
    /// Connected to the switch.
    pub(crate) const ATTACHED: Self = Self(1);
    /// The connect under way is held: the descriptor becomes writable with the verdict.
    pub(crate) const HELD: Self = Self(2);
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
    /// The node has said that the connect under way has begun.
    pub(crate) const BEGUN: Self = Self(512);
    const ALL: u32 = 1023;

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

/// All that is known of one of our sockets, beside what its descriptor says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) state: State,
    pub(crate) flags: Flags,
    pub(crate) ours: Address,
    pub(crate) theirs: Address,
    /// SO_VM_SOCKETS_CONNECT_TIMEOUT in ticks of the kernel; 0: the default.
    pub(crate) connect_ticks: u64,
    /// SO_VM_SOCKETS_BUFFER_SIZE.
    pub(crate) buffer: u64,
    pub(crate) buffer_min: u64,
    pub(crate) buffer_max: u64,
    /// SO_SNDBUF as it was before a held connect made it small.
    pub(crate) send_buffer: u32,
    /// How a connect ended that nobody has asked about yet (SO_ERROR).
    pub(crate) error: u32,
    /// The connection's number in the switch; 0: none.
    pub(crate) flow: u64,
    /// The other side's receive buffer when it was last heard of.
    pub(crate) peer_buffer: u32,
    /// Of a listener.
    pub(crate) backlog: u32,
}

impl Note {
    /// A new socket's.
    pub(crate) const FRESH: Self = Self {
        state: State::Fresh,
        flags: Flags(0),
        ours: Address { cid: ANY, port: ANY },
        theirs: Address { cid: ANY, port: ANY },
        connect_ticks: 0,
        buffer: BUFFER,
        buffer_min: BUFFER_MIN,
        buffer_max: BUFFER,
        send_buffer: 0,
        error: 0,
        flow: 0,
        peer_buffer: 0,
        backlog: 0,
    };

    /// Whether the descriptor is the connection.
    pub(crate) fn has_stream(&self) -> bool {
        self.flags.has(Flags::STREAM)
    }

    /// Whether this keeps messages (SOCK_SEQPACKET).
    pub(crate) fn keeps_messages(&self) -> bool {
        self.flags.has(Flags::MESSAGES)
    }

    /// The connect timeout in microseconds, for a tick of `tick` microseconds.
    pub(crate) fn connect_timeout_us(&self, tick: u64) -> u64 {
        match self.connect_ticks {
            0 => CONNECT_TIMEOUT_US,
            ticks => ticks.saturating_mul(tick),
        }
    }

    /// The receive buffer as a request says it; 0 is the node's own default.
    pub(crate) fn buffer_to_announce(&self) -> u64 {
        if self.buffer == BUFFER { 0 } else { self.buffer.clamp(1, u32::MAX.into()) }
    }

    /// What accepted sockets inherit of a listener: its sizes, and the connect timeout in microseconds.
    pub(crate) fn inherited(&self, tick: u64) -> [u8; INHERITED] {
        let mut bytes = [0; INHERITED];
        let numbers =
            [self.buffer, self.buffer_min, self.buffer_max, self.connect_timeout_us(tick)];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The note with what its listener left for it; for a `tick` of so many microseconds.
    pub(crate) fn with_inherited(self, bytes: &[u8; INHERITED], tick: u64) -> Self {
        let mut numbers = [0; 4];
        for (number, place) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = u64::from_le_bytes(place.try_into().unwrap_or_default());
        }
        let [buffer, buffer_min, buffer_max, timeout] = numbers;
        Self { buffer, buffer_min, buffer_max, connect_ticks: timeout / tick, ..self }
    }

    /// The note of a socket, if it is one of ours.
    pub(crate) fn of(fd: Fd) -> Option<Self> {
        let mut filter = [instruction(0, 0); LEN];
        let found = fd.counted_option(SO_GET_FILTER, &mut filter).ok()?;
        if found != LEN || filter[1].k != MARK {
            return None;
        }
        let mut words = [0; WORDS];
        for (word, line) in words.iter_mut().zip(&filter[2..]) {
            *word = line.k;
        }
        Self::decode(&words)
    }

    /// Writes the note to its socket.
    pub(crate) fn put(&self, fd: Fd) -> Answer<()> {
        let mut filter = [instruction(RETURN, u32::MAX); LEN];
        filter[1] = instruction(LOAD, MARK);
        for (line, word) in filter[2..].iter_mut().zip(self.encode()) {
            *line = instruction(LOAD, word);
        }
        let len = u16::try_from(LEN).unwrap_or(0);
        let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
        fd.set_option(libc::SO_ATTACH_FILTER, &program)
    }

    fn encode(&self) -> [u32; WORDS] {
        let state = State::ALL.iter().position(|&state| state == self.state).unwrap_or(0);
        [
            u32::try_from(state).unwrap_or(0),
            self.flags.0,
            self.ours.cid,
            self.ours.port,
            self.theirs.cid,
            self.theirs.port,
            low(self.connect_ticks),
            high(self.connect_ticks),
            low(self.buffer),
            high(self.buffer),
            low(self.buffer_min),
            high(self.buffer_min),
            low(self.buffer_max),
            high(self.buffer_max),
            self.send_buffer,
            self.error,
            low(self.flow),
            high(self.flow),
            self.peer_buffer,
            self.backlog,
        ]
    }

    fn decode(words: &[u32; WORDS]) -> Option<Self> {
        let state = *State::ALL.get(usize::try_from(words[0]).ok()?)?;
        Some(Self {
            state,
            flags: Flags(words[1] & Flags::ALL),
            ours: Address { cid: words[2], port: words[3] },
            theirs: Address { cid: words[4], port: words[5] },
            connect_ticks: wide(words[6], words[7]),
            buffer: wide(words[8], words[9]),
            buffer_min: wide(words[10], words[11]),
            buffer_max: wide(words[12], words[13]),
            send_buffer: words[14],
            error: words[15],
            flow: wide(words[16], words[17]),
            peer_buffer: words[18],
            backlog: words[19],
        })
    }
}

fn instruction(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_note() -> Note {
        Note {
            state: State::Connecting,
            flags: Flags::ATTACHED.with(Flags::HELD).with(Flags::LOW_WATER),
            ours: Address { cid: 2, port: 1024 },
            theirs: Address { cid: 3, port: 0xffff_fffe },
            connect_ticks: 5_000_000_000,
            buffer: 1 << 40,
            buffer_min: 3,
            buffer_max: u64::MAX,
            send_buffer: 212_992,
            error: 104,
            flow: u64::MAX - 1,
            peer_buffer: 4096,
            backlog: 7,
        }
    }

    fn socket() -> Fd {
        Fd::unix_socket(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn note_put_is_read_back_whole() {
        let fd = socket();
        some_note().put(fd).unwrap();
        assert_eq!(Note::of(fd), Some(some_note()));
        Note::FRESH.put(fd).unwrap();
        assert_eq!(Note::of(fd), Some(Note::FRESH));
        fd.close();
    }

    #[test]
    fn note_is_seen_through_a_copy_of_the_descriptor() {
        let fd = socket();
        some_note().put(fd).unwrap();
        // SAFETY: dup of a descriptor of ours.
        let copy = Fd(unsafe { libc::dup(fd.0) });
        fd.close();
        assert_eq!(Note::of(copy), Some(some_note()));
        copy.close();
    }

    #[test]
    fn socket_without_a_note_is_none_of_ours() {
        let fd = socket();
        assert_eq!(Note::of(fd), None);
        let accept_all = [instruction(RETURN, u32::MAX); LEN];
        let program = libc::sock_fprog {
            len: u16::try_from(LEN).unwrap(),
            filter: accept_all.as_ptr().cast_mut(),
        };
        fd.set_option(libc::SO_ATTACH_FILTER, &program).unwrap();
        assert_eq!(Note::of(fd), None);
        fd.close();
        assert_eq!(Note::of(Fd(-1)), None);
    }

    #[test]
    fn flags_are_set_and_taken_away_one_by_one() {
        let both = Flags::HELD.with(Flags::STREAM);
        assert!(both.has(Flags::HELD) && both.has(Flags::STREAM) && !both.has(Flags::MESSAGES));
        assert_eq!(both.without(Flags::HELD), Flags::STREAM);
    }

    #[test]
    fn inherited_options_are_those_of_the_listener() {
        let note = Note { connect_ticks: 250, ..some_note() };
        let child = Note::FRESH.with_inherited(&note.inherited(4000), 4000);
        assert_eq!((child.buffer, child.buffer_min), (note.buffer, note.buffer_min));
        assert_eq!((child.buffer_max, child.connect_ticks), (note.buffer_max, 250));
    }

    #[test]
    fn every_state_is_read_back() {
        let fd = socket();
        for state in State::ALL {
            Note { state, ..Note::FRESH }.put(fd).unwrap();
            assert_eq!(Note::of(fd).map(|note| note.state), Some(state));
        }
        fd.close();
    }
}
