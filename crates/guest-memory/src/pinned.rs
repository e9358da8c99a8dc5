//! Fields in guest memory that both sides access at the same time, resolved once: the parts of a ring.
//!
//! All access is atomic. A [`Pinned`] holds the memory that it lies in, so that it is good for as long as it lives;
//! elements are indexed modulo their number, so that no index from shared memory leads outside.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use crate::memory::GuestMemory;

/// What may lie in memory that another process writes.
///
/// # Safety
/// Every bit pattern is a value, there is no padding, and all access through a shared reference is atomic.
pub unsafe trait Shared {}

// SAFETY: any 16 bits are a value, and access is atomic.
unsafe impl Shared for AtomicU16 {}
// SAFETY: any 32 bits are a value, and access is atomic.
unsafe impl Shared for AtomicU32 {}
// SAFETY: any 64 bits are a value, and access is atomic.
unsafe impl Shared for AtomicU64 {}
// SAFETY: an array has no padding, and its elements are as required.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Elements in guest memory: a power of two of them, indexed modulo that.
pub struct Pinned<T> {
    first: NonNull<T>,
    /// The number of elements less one.
    mask: u16,
    /// Keeps the elements mapped.
    _memory: Arc<GuestMemory>,
}

// SAFETY: `first` names memory that `_memory` keeps mapped, whichever thread the value is on; all access is atomic.
unsafe impl<T: Shared> Send for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Pinned<T> {}

impl<T: Shared> Pinned<T> {
    /// Names `mask + 1` elements from `first` on.
    ///
    /// # Safety
    /// They lie in `memory`, whole and aligned; `mask + 1` is a power of two.
    pub(crate) unsafe fn new(first: NonNull<T>, mask: u16, memory: Arc<GuestMemory>) -> Self {
        Self { first, mask, _memory: memory }
    }

    /// The element at `index` modulo their number.
    #[inline]
    #[must_use]
    pub fn at(&self, index: u16) -> &T {
        // SAFETY: the masked index is below the number of elements, which are mapped and aligned (see `new`); `T` takes
        // any bits, and changes only atomically.
        unsafe { self.first.add(usize::from(index & self.mask)).as_ref() }
    }
}
