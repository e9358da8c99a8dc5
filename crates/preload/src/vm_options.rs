//! The options of level AF_VSOCK that a program has set, kept as the times of the socket's inode.
//!
//! Most sockets have the defaults, and then nothing is kept. The inode belongs to the socket's creator: where the switch
//! runs as another user, options of an accepted connection cannot be changed (EPERM).
//!
//! ```text
//!   seconds of the access time            the buffer's size
//!   nanoseconds of the access time        its minimum, up to 2^29 - 1
//!   seconds of the modification time      its maximum
//!   nanoseconds of the modification time  the connect timeout in ticks, up to 2^29 - 1
//! ```

use crate::note::{Flags, Note};
use crate::sys::{Answer, Fd};
use vsock_client::wire::INHERITED_LEN as INHERITED;

/// The kernel's default of SO_VM_SOCKETS_BUFFER_SIZE and _MAX_SIZE.
const SIZE: u64 = 262_144;
const MIN: u64 = 128;
const CONNECT_TIMEOUT_US: u64 = 2_000_000;
/// What fits into nanoseconds.
const NARROW: u64 = (1 << 29) - 1;

/// SO_VM_SOCKETS_BUFFER_SIZE, _MIN_SIZE, _MAX_SIZE and _CONNECT_TIMEOUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmOptions {
    pub(crate) size: u64,
    pub(crate) min: u64,
    pub(crate) max: u64,
    /// The connect timeout in ticks of the kernel; 0: the default.
    pub(crate) connect_ticks: u64,
}

impl VmOptions {
    pub(crate) const DEFAULT: Self = Self { size: SIZE, min: MIN, max: SIZE, connect_ticks: 0 };

    /// Those of a socket.
    pub(crate) fn of(fd: Fd, note: &Note) -> Self {
        if !note.flags.has(Flags::OPTIONS) {
            return Self::DEFAULT;
        }
        let Ok([access, modification]) = fd.times() else { return Self::DEFAULT };
        Self {
            size: access.0.cast_unsigned(),
            min: access.1.into(),
            max: modification.0.cast_unsigned(),
            connect_ticks: modification.1.into(),
        }
    }

    /// Keeps them in the socket, and gives its note that says so.
    pub(crate) fn put(&self, fd: Fd, note: Note) -> Answer<Note> {
        if *self == Self::DEFAULT {
            return Ok(note.without(Flags::OPTIONS));
        }
        let narrow = |value: u64| u32::try_from(value.min(NARROW)).unwrap_or(0);
        let access = (self.size.cast_signed(), narrow(self.min));
        let modification = (self.max.cast_signed(), narrow(self.connect_ticks));
        fd.set_times([access, modification])?;
        Ok(note.with(Flags::OPTIONS))
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
        if self.size == SIZE { 0 } else { self.size.clamp(1, u32::MAX.into()) }
    }

    /// The size that a connection can have: a transport has no larger ones.
    pub(crate) fn limited(self) -> Self {
        Self { size: self.size.min(u32::MAX.into()), ..self }
    }

    /// What accepted sockets inherit of a listener: its sizes, and the connect timeout in microseconds.
    pub(crate) fn inherited(&self, tick: u64) -> [u8; INHERITED] {
        let mut bytes = [0; INHERITED];
        let numbers = [self.size, self.min, self.max, self.connect_timeout_us(tick)];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// What a listener left for a connection, for a `tick` of so many microseconds.
    pub(crate) fn from_inherited(bytes: &[u8; INHERITED], tick: u64) -> Self {
        let mut numbers = [0; 4];
        for (number, place) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = u64::from_le_bytes(place.try_into().unwrap_or_default());
        }
        let [size, min, max, timeout] = numbers;
        let connect_ticks = if timeout == CONNECT_TIMEOUT_US { 0 } else { timeout / tick };
        Self { size, min, max, connect_ticks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_put_are_read_back() {
        let fd = Fd::unix_socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC).unwrap();
        let table = [
            VmOptions { size: 1 << 33, min: 3, max: 1 << 40, connect_ticks: 250 },
            VmOptions { size: 0, min: 0, max: u64::MAX, connect_ticks: NARROW },
            VmOptions { size: u64::MAX, min: NARROW, max: 0, connect_ticks: 1 },
            VmOptions::DEFAULT,
        ];
        for options in table {
            let note = options.put(fd, Note::FRESH).unwrap();
            assert_eq!(VmOptions::of(fd, &note), options);
            assert_eq!(note.flags.has(Flags::OPTIONS), options != VmOptions::DEFAULT);
        }
        fd.close();
    }

    #[test]
    fn minimum_and_timeout_are_cut_to_what_can_be_kept() {
        let fd = Fd::unix_socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC).unwrap();
        let options = VmOptions { min: u64::MAX, connect_ticks: u64::MAX, ..VmOptions::DEFAULT };
        let kept = VmOptions::of(fd, &options.put(fd, Note::FRESH).unwrap());
        assert_eq!((kept.min, kept.connect_ticks), (NARROW, NARROW));
        fd.close();
    }

    #[test]
    fn inherited_options_are_those_of_the_listener() {
        let options = VmOptions { size: 1 << 20, min: 3, max: 1 << 21, connect_ticks: 250 };
        assert_eq!(VmOptions::from_inherited(&options.inherited(4000), 4000), options);
        let default = VmOptions::DEFAULT;
        assert_eq!(VmOptions::from_inherited(&default.inherited(4000), 4000), default);
    }
}
