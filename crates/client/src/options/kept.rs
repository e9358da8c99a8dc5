//! The options of level AF_VSOCK that a socket keeps, with the rules of `vsock_connectible_setsockopt` in Linux.
//!
//! Sizes have 64 bits, and the connect timeout is counted in ticks of the kernel, whose length the caller passes. A socket
//! keeps them in the times of its inode ([`Options::to_times`]); accepted sockets inherit them as the bytes behind a LISTEN
//! ([`Options::to_inherited`]).

use crate::Errno;
use crate::wire::INHERITED_LEN;

/// How many numbers of 64 bits accepted sockets inherit.
pub(crate) const INHERITED: usize = 4;
/// The default of SO_VM_SOCKETS_BUFFER_SIZE and of its maximum.
const DEFAULT_SIZE: u64 = 262_144;
const DEFAULT_MIN: u64 = 128;
const DEFAULT_TIMEOUT_US: u64 = 2_000_000;
/// The largest number that fits into the nanoseconds of an inode's time.
const MAX_IN_NANOSECONDS: u64 = (1 << 29) - 1;
/// The largest buffer of a connection.
const MAX_CONNECTION_BUFFER: u64 = u32::MAX as u64;
const SECOND_US: u64 = 1_000_000;

/// SO_VM_SOCKETS_BUFFER_SIZE, _MIN_SIZE, _MAX_SIZE and _CONNECT_TIMEOUT of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The receive buffer in bytes.
    pub size: u64,
    /// The size that a smaller one is raised to.
    pub min: u64,
    /// The size that a larger one is cut to.
    pub max: u64,
    /// The connect timeout in ticks of the kernel; 0: the default.
    pub connect_ticks: u64,
}

/// A time of an inode: seconds and nanoseconds.
pub type InodeTime = (i64, u32);

/// What `setsockopt` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// SO_VM_SOCKETS_BUFFER_SIZE.
    Size(u64),
    /// SO_VM_SOCKETS_BUFFER_MIN_SIZE.
    Min(u64),
    /// SO_VM_SOCKETS_BUFFER_MAX_SIZE.
    Max(u64),
    /// SO_VM_SOCKETS_CONNECT_TIMEOUT: seconds and microseconds of a `struct timeval`.
    ConnectTimeout([i64; 2]),
}

impl Options {
    /// The options of a new socket.
    pub const DEFAULT: Self =
        Self { size: DEFAULT_SIZE, min: DEFAULT_MIN, max: DEFAULT_SIZE, connect_ticks: 0 };

    /// `setsockopt`, for a tick of `tick` microseconds.
    ///
    /// # Errors
    /// ERANGE: a negative timeout, or one that is too long.
    pub fn set(self, setting: Setting, tick: u64) -> Result<Self, Errno> {
        let changed = match setting {
            Setting::Size(size) => Self { size, ..self },
            Setting::Min(min) => Self { min, ..self },
            Setting::Max(max) => Self { max, ..self },
            Setting::ConnectTimeout(timeval) => {
                Self { connect_ticks: ticks(timeval, tick)?, ..self }
            }
        };
        // In this order the maximum wins over a minimum above it.
        Ok(Self { size: changed.size.max(changed.min).min(changed.max), ..changed })
    }

    /// The connect timeout in microseconds.
    #[must_use]
    pub fn connect_timeout_us(&self, tick: u64) -> u64 {
        let per_second = per_second(tick);
        match self.connect_ticks {
            0 => DEFAULT_TIMEOUT_US,
            // A second has a whole number of ticks, a tick not always a whole number of microseconds.
            ticks => (ticks / per_second)
                .saturating_mul(SECOND_US)
                .saturating_add(ticks % per_second * tick),
        }
    }

    /// The connect timeout as `getsockopt` gives it: seconds and microseconds.
    #[must_use]
    pub fn connect_timeval(&self, tick: u64) -> [i64; 2] {
        let microseconds = self.connect_timeout_us(tick);
        [microseconds / SECOND_US, microseconds % SECOND_US]
            .map(|part| i64::try_from(part).unwrap_or(i64::MAX))
    }

    /// The connect timeout as a CONNECT gives it, in milliseconds.
    #[must_use]
    pub fn connect_timeout_ms(&self, tick: u64) -> u32 {
        u32::try_from(self.connect_timeout_us(tick).div_ceil(1000)).unwrap_or(u32::MAX)
    }

    /// The receive buffer as a CONNECT gives it; 0 is the node's own default.
    #[must_use]
    pub fn connect_buffer(&self) -> u64 {
        if self.size == DEFAULT_SIZE { 0 } else { self.listen_buffer() }
    }

    /// The receive buffer as a LISTEN gives it.
    #[must_use]
    pub fn listen_buffer(&self) -> u64 {
        self.size.clamp(1, MAX_CONNECTION_BUFFER)
    }

    /// The options of a connection: its buffer has at most 32 bits.
    #[must_use]
    pub fn of_connection(self) -> Self {
        Self { size: self.size.min(MAX_CONNECTION_BUFFER), ..self }
    }

    /// Access and modification time of the inode that keep them.
    ///
    /// Seconds of the access time are the size, its nanoseconds the minimum; seconds of the modification time are the
    /// maximum, its nanoseconds the timeout in ticks. A minimum and a timeout above 2^29 - 1 are cut to that.
    #[must_use]
    pub fn to_times(&self) -> [InodeTime; 2] {
        let nanoseconds = |value: u64| u32::try_from(value.min(MAX_IN_NANOSECONDS)).unwrap_or(0);
        [
            (self.size.cast_signed(), nanoseconds(self.min)),
            (self.max.cast_signed(), nanoseconds(self.connect_ticks)),
        ]
    }

    /// Reads what [`Self::to_times`] gave.
    #[must_use]
    pub fn from_times([(size, min), (max, connect_ticks)]: [InodeTime; 2]) -> Self {
        Self {
            size: size.cast_unsigned(),
            min: min.into(),
            max: max.cast_unsigned(),
            connect_ticks: connect_ticks.into(),
        }
    }

    /// The bytes behind a LISTEN and behind each ACCEPT, which accepted sockets inherit: the three sizes, and the connect
    /// timeout in microseconds.
    #[must_use]
    pub fn to_inherited(&self, tick: u64) -> [u8; INHERITED_LEN] {
        let mut bytes = [0; INHERITED_LEN];
        let numbers: [u64; INHERITED] =
            [self.size, self.min, self.max, self.connect_timeout_us(tick)];
        for (place, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
        bytes
    }

    /// Reads the bytes behind an ACCEPT.
    #[must_use]
    pub fn from_inherited(bytes: &[u8; INHERITED_LEN], tick: u64) -> Self {
        let mut numbers = [0; INHERITED];
        for (number, place) in numbers.iter_mut().zip(bytes.as_chunks().0) {
            *number = u64::from_le_bytes(*place);
        }
        let [size, min, max, timeout] = numbers;
        let ticks = (timeout / SECOND_US).saturating_mul(per_second(tick));
        let ticks = ticks.saturating_add(timeout % SECOND_US / tick);
        Self { size, min, max, connect_ticks: unless_default(ticks, tick) }
    }
}

/// How many ticks a second has.
fn per_second(tick: u64) -> u64 {
    SECOND_US / tick.clamp(1, SECOND_US)
}

/// A timeout in ticks; 0 if it is the default.
fn unless_default(ticks: u64, tick: u64) -> u64 {
    if ticks == DEFAULT_TIMEOUT_US / SECOND_US * per_second(tick) { 0 } else { ticks }
}

/// A `struct timeval` in ticks, rounded up; 0 is the default.
fn ticks([seconds, microseconds]: [i64; 2], tick: u64) -> Result<u64, Errno> {
    let per_second = per_second(tick);
    let longest = i64::MAX / i64::try_from(per_second).unwrap_or(1) - 1;
    if !(0..longest).contains(&seconds) || microseconds >= 1_000_000 {
        return Err(Errno::RANGE);
    }
    // As in the kernel, negative microseconds pass the check as a huge number.
    let rest = microseconds.cast_unsigned().wrapping_add(tick - 1) / tick;
    Ok(unless_default(seconds.unsigned_abs() * per_second + rest, tick))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 4000;

    #[test]
    fn connect_timeout_is_rounded_up_to_ticks() {
        let table = [
            ([1, 1], Ok(251)),
            ([5, 0], Ok(1250)),
            ([0, 0], Ok(0)),
            ([2, 0], Ok(0)),
            ([1, 999_999], Ok(0)),
            ([2, 1], Ok(501)),
            ([5, -1], Ok(1250)),
            ([-1, 0], Err(Errno::RANGE)),
            ([0, 1_000_000], Err(Errno::RANGE)),
            ([i64::MAX / 250, 0], Err(Errno::RANGE)),
        ];
        for (timeval, expected) in table {
            let set = Options::DEFAULT.set(Setting::ConnectTimeout(timeval), TICK);
            assert_eq!(set.map(|options| options.connect_ticks), expected, "{timeval:?}");
        }
    }

    #[test]
    fn maximum_wins_over_a_minimum_above_it() {
        let options = Options::DEFAULT.set(Setting::Max(64), TICK).unwrap();
        assert_eq!((options.size, options.min), (64, 128));
        let options = options.set(Setting::Min(1000), TICK).unwrap();
        assert_eq!(options.size, 64);
        let options = options.set(Setting::Max(1 << 40), TICK).unwrap();
        assert_eq!(options.size, 1000, "raised to the minimum when the maximum allows it");
    }

    #[test]
    fn new_sockets_wait_two_seconds_whatever_the_tick_is() {
        for tick in [1000, 3333, 4000, 10_000] {
            assert_eq!(Options::DEFAULT.connect_timeval(tick), [2, 0]);
            assert_eq!(Options::DEFAULT.connect_timeout_ms(tick), 2000);
        }
    }

    #[test]
    fn whole_seconds_stay_whole_whatever_the_tick_is() {
        for tick in [1000, 3333, 4000, 10_000] {
            let set = Options::DEFAULT.set(Setting::ConnectTimeout([100_005, 0]), tick).unwrap();
            assert_eq!(set.connect_timeval(tick), [100_005, 0]);
            assert_eq!(Options::from_inherited(&set.to_inherited(tick), tick), set);
        }
    }

    #[test]
    fn timeout_too_long_for_a_request_is_the_longest() {
        let options = Options { connect_ticks: u64::MAX, ..Options::DEFAULT };
        assert_eq!(options.connect_timeout_ms(TICK), u32::MAX);
    }

    #[test]
    fn buffer_in_a_request_is_neither_zero_nor_above_32_bits() {
        let of = |size| Options { size, ..Options::DEFAULT };
        for (size, connect, listen) in
            [(0, 1, 1), (262_144, 0, 262_144), (5, 5, 5), (1 << 40, 0xffff_ffff, 0xffff_ffff)]
        {
            assert_eq!((of(size).connect_buffer(), of(size).listen_buffer()), (connect, listen));
        }
        assert_eq!(of(1 << 40).of_connection().size, 0xffff_ffff);
    }

    #[test]
    fn times_keep_all_but_what_does_not_fit_into_nanoseconds() {
        let options = Options { size: u64::MAX, min: 3, max: 1 << 63, connect_ticks: 250 };
        assert_eq!(Options::from_times(options.to_times()), options);
        let large = Options { min: u64::MAX, connect_ticks: u64::MAX, ..options };
        let kept = Options::from_times(large.to_times());
        let most = MAX_IN_NANOSECONDS;
        assert_eq!(kept, Options { min: most, connect_ticks: most, ..options });
    }

    #[test]
    fn inherited_options_are_those_of_the_listener() {
        let options = Options { size: 1 << 20, min: 3, max: 1 << 21, connect_ticks: 250 };
        for options in [options, Options::DEFAULT] {
            assert_eq!(Options::from_inherited(&options.to_inherited(TICK), TICK), options);
        }
    }
}
