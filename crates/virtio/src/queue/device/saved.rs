//! A device's side of a queue as plain data.
//!
//! Chains that were popped and not given back are saved as not popped: a successor pops them again. Used entries that the
//! driver cannot see yet are in the ring already, so two indexes are all that there is to say.

use std::sync::Arc;

use vsock_core::saved::{Unfit, check};

use super::{Areas, DeviceQueue};
use crate::queue::QueueConfig;
use vsock_guest_memory::GuestMemory;

/// A [`DeviceQueue`] as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedQueue {
    /// Where it is; `base` is the index at which a successor goes on, in both rings.
    pub config: QueueConfig,
    /// Up to where used entries are visible to the driver.
    pub published: u16,
}

impl DeviceQueue {
    /// As plain data.
    #[must_use]
    pub fn save(&self) -> SavedQueue {
        let config = QueueConfig { base: self.next_avail(), ..self.config };
        SavedQueue { config, published: self.published }
    }

    /// A queue that goes on where another was: not at the index in memory, which the guest can write, too.
    ///
    /// # Errors
    /// It does not lie in this memory, or its indexes cannot be.
    pub fn restore(memory: Arc<GuestMemory>, saved: &SavedQueue) -> Result<Self, Unfit> {
        let SavedQueue { config, published } = *saved;
        let areas = Areas::resolve(memory, &config).map_err(|_| Unfit::Queue)?;
        check(config.base.wrapping_sub(published) <= config.size, Unfit::Queue)?;
        Ok(Self { published, ..Self::at(areas, config, config.base) })
    }
}
