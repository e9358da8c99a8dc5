//! The one place where errors of the data plane become Python exceptions.

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::{PyErr, Python};
use vsock_node::node::AddError;
use vsock_node::node::NodeError;
use vsock_virtio::vhost_user::FrontendError;

/// Linux errno values for errors that did not come from the kernel.
mod errno {
    pub(super) const EINVAL: i32 = 22;
    pub(super) const ENODEV: i32 = 19;
    pub(super) const EPROTO: i32 = 71;
    pub(super) const EADDRINUSE: i32 = 98;
    pub(super) const EADDRNOTAVAIL: i32 = 99;
    pub(super) const ETIMEDOUT: i32 = 110;
}

/// `OSError(errno, text)` for what the world did, `ValueError` for what the caller asked, `RuntimeError` for a node
/// that has been stopped.
pub(crate) fn to_python(error: &NodeError) -> PyErr {
    let text = error.to_string();
    let os_error = |errno: i32| PyOSError::new_err((errno, text.clone()));
    match error {
        NodeError::Stopped(_) => PyRuntimeError::new_err(text),
        NodeError::Add(AddError::BadCid(_)) => PyValueError::new_err(text),
        NodeError::Add(AddError::CidInUse(..) | AddError::NameInUse(_)) => {
            os_error(errno::EADDRINUSE)
        }
        NodeError::Add(AddError::Io(error)) => os_error(number(error)),
        NodeError::NoGuest(_) => os_error(errno::ENODEV),
        NodeError::OtherCid { .. } => os_error(errno::EADDRNOTAVAIL),
        NodeError::Join(error) => os_error(match error {
            FrontendError::Connect(error) | FrontendError::Io(error) => number(error),
            FrontendError::TimedOut => errno::ETIMEDOUT,
            FrontendError::Missing(_)
            | FrontendError::TooFewRings(_)
            | FrontendError::BadCid(_)
            | FrontendError::Protocol(_) => errno::EPROTO,
        }),
        NodeError::Io { error, path } => match path {
            // With a file name, as Python's own functions have it.
            Some(path) => {
                let reason = Python::attach(|_| strip_number(error));
                PyOSError::new_err((number(error), reason, path.display().to_string()))
            }
            None => os_error(number(error)),
        },
    }
}

fn number(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(errno::EINVAL)
}

/// Rust appends `(os error N)`, Python puts `[Errno N]` in front: once is enough.
fn strip_number(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
