//! How many bytes may go over a link in a second, each way.
//!
//! Each direction has a token bucket, as in tc-tbf(8). What went over the link is read from its counters, so a packet
//! costs nothing here. A turn ends when the bucket is empty; its last packet may be longer than what was left, and the
//! link owes the difference. What is over the rate is not lost: packets of the guest stay in its ring, bytes of programs in
//! their sockets, packets of other guests in the store, which their flows' credit bounds. Only a datagram to the guest is
//! dropped, as where its ring is full. Control packets carry no bytes, and are sent in any case; those of the guest are
//! in its ring behind its bytes.

use std::time::Duration;

use vsock_core::Instant;

use super::transceiver::Traffic;

/// What a link that was quiet may move at once: this much time's worth.
const BURST: Duration = Duration::from_millis(100);

/// A link that has used up its bytes waits until it has this much time's worth: few wake-ups, and short gaps.
const REFILL: Duration = Duration::from_millis(5);

const SECOND: i128 = 1_000_000_000;

/// One direction.
#[derive(Debug, Default)]
struct Bucket {
    /// Bytes in a second; 0: as many as there are.
    rate: u64,
    /// What may go over the link now, in bytes times [`SECOND`]. Negative: what it owes.
    level: i128,
    filled_at: Instant,
    /// Bytes that had gone over the link by then.
    counted: u64,
}

impl Bucket {
    /// Of a link over which so many bytes went before.
    fn full(rate: u64, counted: u64) -> Self {
        let empty = Self { rate, counted, ..Self::default() };
        Self { level: empty.worth(BURST), ..empty }
    }

    /// Follows the clock and the link's counter.
    fn look(&mut self, now: Instant, bytes: u64) {
        let filled = self.worth(now.since(self.filled_at));
        let moved = bytes.saturating_sub(self.counted);
        (self.filled_at, self.counted) = (now, bytes);
        self.level = (self.level + filled).min(self.worth(BURST)) - i128::from(moved) * SECOND;
    }

    fn worth(&self, time: Duration) -> i128 {
        // Both are far below 2^64.
        i128::from(self.rate) * i128::try_from(time.as_nanos()).unwrap_or(i128::from(u64::MAX))
    }

    /// Whole bytes that may go now.
    fn bytes(&self) -> usize {
        if self.rate == 0 {
            return usize::MAX;
        }
        usize::try_from(self.level.max(0) / SECOND).unwrap_or(usize::MAX)
    }

    /// When an empty one lets something through again.
    fn opens_at(&self) -> Option<Instant> {
        if self.bytes() > 0 {
            return None;
        }
        let missing = self.worth(REFILL).max(SECOND) - self.level;
        let nanoseconds = (missing / i128::from(self.rate)).saturating_add(1);
        Some(
            self.filled_at
                .after(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))),
        )
    }
}

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Rate {
    incoming: Bucket,
    outgoing: Bucket,
}

impl Rate {
    /// So many bytes in a second each way from now on; 0: as many as there are.
    pub(super) fn set(&mut self, rate: u64, traffic: Traffic) {
        if rate != self.incoming.rate {
            self.incoming = Bucket::full(rate, traffic.bytes_in);
            self.outgoing = Bucket::full(rate, traffic.bytes_out);
        }
    }

    /// Bytes from the other side that may be taken now.
    #[inline]
    pub(super) fn incoming(&mut self, now: Instant, traffic: Traffic) -> usize {
        self.look(now, traffic);
        self.incoming.bytes()
    }

    /// Bytes that may be sent now.
    #[inline]
    pub(super) fn outgoing(&mut self, now: Instant, traffic: Traffic) -> usize {
        self.look(now, traffic);
        self.outgoing.bytes()
    }

    /// Whether what the last look allowed to send has gone by now. What time has added since, the link's next turn finds,
    /// which comes at [`opens_at`](Self::opens_at) if not before.
    pub(super) fn is_spent(&self, traffic: Traffic) -> bool {
        let Bucket { rate, level, counted, .. } = self.outgoing;
        let moved = i128::from(traffic.bytes_out.saturating_sub(counted));
        rate != 0 && level - moved * SECOND < SECOND
    }

    /// When a direction that is shut opens.
    pub(super) fn opens_at(&mut self, now: Instant, traffic: Traffic) -> Option<Instant> {
        self.look(now, traffic);
        self.incoming.opens_at().into_iter().chain(self.outgoing.opens_at()).min()
    }

    #[inline]
    fn look(&mut self, now: Instant, traffic: Traffic) {
        if self.incoming.rate != 0 {
            self.incoming.look(now, traffic.bytes_in);
            self.outgoing.look(now, traffic.bytes_out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1_000_000;
    const START: Instant = Instant(1_000_000_000);

    fn limited() -> Rate {
        let mut rate = Rate::default();
        rate.set(RATE, Traffic::default());
        rate
    }

    fn taken(bytes_in: u64) -> Traffic {
        Traffic { bytes_in, ..Traffic::default() }
    }

    #[test]
    fn link_without_a_rate_is_never_shut() {
        let mut rate = Rate::default();
        rate.set(0, Traffic::default());
        assert_eq!(rate.incoming(START, taken(u64::MAX)), usize::MAX);
        assert_eq!(rate.opens_at(START, taken(u64::MAX)), None);
    }

    #[test]
    fn quiet_link_has_a_burst_and_no_more() {
        let mut rate = limited();
        for time in [Duration::ZERO, BURST, Duration::from_secs(1000)] {
            assert_eq!(rate.incoming(START.after(time), taken(0)), 100_000);
        }
    }

    #[test]
    fn directions_are_apart() {
        let mut rate = limited();
        assert_eq!(rate.incoming(START, taken(100_000)), 0);
        assert_eq!(rate.outgoing(START, taken(100_000)), 100_000);
    }

    #[test]
    fn what_went_out_since_the_last_look_counts() {
        let mut rate = limited();
        let sent = |bytes_out| Traffic { bytes_out, ..Traffic::default() };
        assert_eq!(rate.outgoing(START, sent(0)), 100_000);
        assert!(!rate.is_spent(sent(99_999)));
        assert!(rate.is_spent(sent(100_000)));
    }

    #[test]
    fn what_is_owed_is_waited_for() {
        let mut rate = limited();
        assert_eq!(rate.incoming(START, taken(0)), 100_000);
        // 50 ms are owed, and 5 ms make a refill.
        let opens = rate.opens_at(START, taken(150_000)).unwrap();
        assert_eq!(opens.since(START).as_millis(), 55);
        assert_eq!(rate.incoming(START.after(Duration::from_millis(50)), taken(150_000)), 0);
        assert_eq!(rate.incoming(opens, taken(150_000)), 5000);
    }

    #[test]
    fn settings_that_stay_give_no_new_burst() {
        let mut rate = limited();
        assert_eq!(rate.incoming(START, taken(100_000)), 0);
        rate.set(RATE, taken(100_000));
        assert_eq!(rate.incoming(START, taken(100_000)), 0);
        rate.set(2 * RATE, taken(100_000));
        assert_eq!(rate.incoming(START, taken(100_000)), 200_000);
    }

    #[test]
    fn rate_holds_over_time_whatever_the_packets_and_the_turns() {
        let mut rate = limited();
        let (mut now, mut moved, mut seed) = (START, 0u64, 1u64);
        let end = START.after(Duration::from_secs(10));
        while now < end {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let allowed = rate.incoming(now, taken(moved));
            let mut left = allowed;
            while left > 0 {
                let packet = 1 + (seed >> 33) as usize % 65_536;
                moved += packet as u64;
                left = left.saturating_sub(packet);
            }
            now = match rate.opens_at(now, taken(moved)) {
                Some(opens) => opens.after(Duration::from_nanos(seed >> 45)),
                None => now.after(Duration::from_micros(seed >> 56)),
            };
        }
        let ratio = moved as f64 / (10 * RATE) as f64;
        assert!((0.97..1.03).contains(&ratio), "{ratio}");
    }
}
