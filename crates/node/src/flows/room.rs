//! The send buffer of a Unix socket: making it larger, and how much of it the other side has left unread.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::sockopt::{
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, socket_send_buffer_size,
};
use vsock_core::SocketType;

use vsock_virtio::sys::unread;

/// Send buffer asked for on sockets that keep messages: what a flow may have under way at most.
const LONGEST_MESSAGE: usize = 16 << 20;

/// Lets a program send long messages: one must fit its send buffer as a whole, or it is EMSGSIZE. The kernel gives what its
/// settings allow (`net.core.wmem_max`, doubled), by default enough for the default receive buffer.
pub(crate) fn for_messages(fd: impl AsFd, kind: SocketType) {
    if kind != SocketType::Stream {
        // Fails for no Unix socket.
        let _ = set_socket_send_buffer_size(fd, LONGEST_MESSAGE);
    }
}

/// Makes room for a message that is longer than the buffer. False: it cannot be helped.
pub(crate) fn for_message(fd: impl AsFd, len: usize) -> bool {
    let size = || socket_send_buffer_size(&fd).unwrap_or(0);
    let before = size();
    // The kernel doubles the number, and needs a little of the buffer for itself.
    if set_socket_send_buffer_size_force(&fd, len).is_err() {
        let _ = set_socket_send_buffer_size(&fd, len);
    }
    size() > before
}

/// More than half of the buffer is unread.
pub(crate) fn is_half_taken(fd: BorrowedFd<'_>) -> bool {
    unread(fd) > socket_send_buffer_size(fd).unwrap_or(usize::MAX) / 2
}

/// Nothing is unread. The least message takes some hundred bytes; of one that is being taken out, the kernel may still count one.
pub(crate) fn is_all_read(fd: BorrowedFd<'_>) -> bool {
    unread(fd) < 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn half_taken_buffer_is_known_until_the_other_side_reads() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let size = socket_send_buffer_size(&ours).unwrap();
        ours.write_all(&vec![0; size / 4]).unwrap();
        assert!(!is_half_taken(ours.as_fd()));
        ours.write_all(&vec![0; size / 2]).unwrap();
        assert!(is_half_taken(ours.as_fd()));
        theirs.read_exact(&mut vec![0; size * 3 / 4]).unwrap();
        assert!(!is_half_taken(ours.as_fd()));
    }
}
