//! `vsock._native`: the seam between Python and the data plane.
use pyo3::prelude::*;

/// The native part of `vsock`; see `_native.pyi` for what it offers.
#[pymodule]
mod _native {}
