//! A node's link to itself as plain data: the packets under way. Saved between two turns, when no buffer is in use.

use vsock_core::saved::{Unfit, check};

use super::{BUFFERS, HEADER_BYTES, LoopbackLink, MAX_PAYLOAD};
use vsock_guest_memory::slice::{self, Slices};

/// A [`LoopbackLink`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedLoopback {
    /// Packets sent and not taken in, headers included, the oldest first.
    pub sent: Vec<Vec<u8>>,
}

impl LoopbackLink {
    /// As plain data.
    #[must_use]
    pub fn save(&self) -> SavedLoopback {
        let mut slices = Slices::new();
        let packet = |&(buffer, len): &(u16, u32)| {
            slices.clear();
            let mut bytes = vec![0; len as usize];
            // A buffer of ours lies in our memory.
            if self.slice(buffer, len, &mut slices).is_ok() {
                slice::copy_out(&slices, &mut bytes);
            }
            bytes
        };
        SavedLoopback { sent: self.sent.iter().map(packet).collect() }
    }

    /// Puts the packets of another link under way in this one, which is new.
    ///
    /// # Errors
    /// They are more than there is room for, or no packets.
    pub fn restore(mut self, saved: &SavedLoopback) -> Result<Self, Unfit> {
        check(saved.sent.len() <= usize::from(BUFFERS), Unfit::TooMany)?;
        let mut slices = Slices::new();
        for packet in &saved.sent {
            let len = u32::try_from(packet.len()).map_err(|_| Unfit::Queue)?;
            check((HEADER_BYTES..=HEADER_BYTES + MAX_PAYLOAD).contains(&len), Unfit::Queue)?;
            let buffer = self.free.pop().ok_or(Unfit::TooMany)?;
            slices.clear();
            self.slice(buffer, len, &mut slices).map_err(|_| Unfit::Queue)?;
            slice::copy_in(&slices, packet);
            self.sent.push_back((buffer, len));
        }
        Ok(self)
    }
}
