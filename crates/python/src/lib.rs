//! `vsock._native`: the seam between Python and the data plane.
//!
//! Crossed per connection or per batch of events, never per packet. Types, errors and the GIL are converted here;
//! nothing is decided. What Python sees is documented in `src/vsock/_native.pyi`, which is checked against this module.

use pyo3::prelude::*;

mod errors;
mod node;
mod options;
mod records;

/// The native part of `vsock`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::node::Node;
    #[pymodule_export]
    use super::records::Event;
}
