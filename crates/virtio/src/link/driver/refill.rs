//! How many of a userspace guest's receive buffers are on offer at a time.
//!
//! A queue is first in, first out: every buffer on offer has its turn, whoever was used last. So all of them together are
//! the memory that packets go through, and when that is more than a processor's cache holds, every packet is fetched
//! from memory and written back. Large packets need few buffers, as a flow has no more under way than its credit. Small
//! ones need many, so that the device does not wait for us, but fill little of each. So as many are offered as hold a
//! fixed number of bytes with packets of the size that comes. The other way no more than that is under way at once.

/// Bytes that packets go through, each way: what a processor's own cache holds, or a little more.
pub(super) const HOT: u32 = 2 << 20;

/// Buffers on offer even if packets fill them.
const LEAST: u16 = 32;

/// One packet counts for so much of the average, as a divisor.
const WEIGHT: u32 = 8;

/// What is known of the packets that come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refill {
    count: u16,
    /// Payload of a packet, smoothed.
    average: u32,
}

impl Refill {
    /// `count` buffers with room for `payload` bytes each, about which nothing is known but that.
    pub(super) fn new(count: u16, payload: u32) -> Self {
        Self { count, average: payload }
    }

    /// A packet with so many bytes of payload came.
    pub(super) fn note(&mut self, payload: u32) {
        self.average = self.average - self.average / WEIGHT + payload / WEIGHT;
    }

    /// How many buffers to have on offer.
    pub(super) fn wanted(&self) -> u16 {
        let hold = u16::try_from(HOT / self.average.max(1)).unwrap_or(u16::MAX);
        hold.max(LEAST).min(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(packets: u32, payload: u32) -> u16 {
        let mut refill = Refill::new(256, 65536);
        for _ in 0..packets {
            refill.note(payload);
        }
        refill.wanted()
    }

    #[test]
    fn few_large_buffers_are_offered_before_anything_came() {
        assert_eq!(Refill::new(256, 65536).wanted(), LEAST);
        assert_eq!(Refill::new(256, 4096).wanted(), 256);
    }

    #[test]
    fn small_packets_bring_all_buffers_and_large_ones_few() {
        assert_eq!(after(100, 64), 256);
        assert!((120..=128).contains(&after(100, 16384)));
        assert_eq!(after(100, 65536), LEAST);
    }

    #[test]
    fn a_few_control_packets_among_data_change_little() {
        let mut refill = Refill::new(256, 65536);
        for _ in 0..2 {
            refill.note(0);
        }
        assert!(refill.wanted() < 2 * LEAST);
    }

    #[test]
    fn all_buffers_are_offered_where_there_are_few() {
        assert_eq!(Refill::new(4, 65536).wanted(), 4);
    }
}
