//! The I/O shell of vsock.
