//! The end of a record (MSG_EOR, flag EOR on the wire) on a Unix socket that keeps messages.
//!
//! AF_UNIX drops MSG_EOR. So a message that ends a record is accompanied by a descriptor (SCM_RIGHTS), in both directions,
//! and every other message is not. That there is one is all that is to be known of it. A program that cares for no records
//! sees plain messages.
//!
//! The kernel counts descriptors in flight for a user, who may have as many as a process may have open. So no more than one mark is
//! unread in a program's socket (`stream/delivery.rs`), for which there is a descriptor of ours anyway.
//! docs/decisions/0018-one-mark-in-flight.md.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::host::socket::ProgramSocket;

/// The descriptor that accompanies: one that gives its receiver nothing.
fn mark() -> io::Result<BorrowedFd<'static>> {
    static MARK: OnceLock<File> = OnceLock::new();
    if let Some(mark) = MARK.get() {
        return Ok(mark.as_fd());
    }
    let made = File::open("/dev/null")?;
    Ok(MARK.get_or_init(|| made).as_fd())
}

/// Opens the descriptor that accompanies, which the worker could not.
///
/// # Errors
/// There is no `/dev/null`.
pub(crate) fn prepare() -> io::Result<()> {
    mark().map(drop)
}

/// Sends a message that ends a record.
pub(crate) fn send_record(fd: impl AsFd, message: &[u8]) -> io::Result<usize> {
    let fds = [mark()?];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(fd, &[IoSlice::new(message)], &mut control, flags)?)
}

/// Receives a message: its real length, which may be more than there was room for, and whether it ends a record.
pub(crate) fn receive(socket: &ProgramSocket, scratch: &mut [u8]) -> io::Result<(usize, bool)> {
    Ok(socket.receive(scratch, RecvFlags::TRUNC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, send, socketpair};

    use crate::host::socket::Sockets;

    #[test]
    fn record_is_told_from_a_message_and_costs_no_descriptor() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let theirs = Sockets::alone().adopt(theirs);
        send_record(&ours, b"record").unwrap();
        send(&ours, b"message", SendFlags::empty()).unwrap();
        send_record(&ours, b"long record").unwrap();
        let mut scratch = [0; 8];
        assert_eq!(receive(&theirs, &mut scratch).unwrap(), (6, true));
        assert_eq!(receive(&theirs, &mut scratch).unwrap(), (7, false));
        assert_eq!(receive(&theirs, &mut scratch).unwrap(), (11, true));
        assert_eq!(&scratch, b"long rec");
    }
}
