//! Memory shared with a guest that may be hostile: mapped, checked, and copied from and to.
//!
//! | module | what it is |
//! | --- | --- |
//! | `memory` | [`GuestMemory`]: the table of regions, the only translation from guest addresses to pointers |
//! | `mapping` | one region: a file range mapped between guard pages |
//! | [`slice`](mod@slice) | pieces of guest memory for copies and vectored system calls |
//! | `pinned` | [`Pinned`]: fields that both sides access atomically, as rings have them |
//! | `sigbus` | survives memory that loses its backing |
//!
//! No other crate has pointers to guest memory. The API is safe: a caller with `#![forbid(unsafe_code)]` can read
//! and write wrong bytes of a guest's, but cannot touch memory that is not mapped.

mod mapping;
mod memory;
mod pinned;
mod sigbus;
pub mod slice;

pub use memory::{
    GuestMemory, MAX_REGIONS, MappedRegion, MemoryError, MemoryPolicy, OutsideMemory, Region,
    SharedRegion, sealed_memory,
};
pub use pinned::{Pinned, Shared};
