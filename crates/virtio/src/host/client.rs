//! A program on the endpoint socket: reads its requests, writes its replies.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};
use vsock_core::SocketType;

use super::wire::{BadRequest, MAX_DATAGRAM, MAX_EXTRA, MESSAGE_LEN, Reply, Request};
use crate::vhost_user::PeerCredentials;
use crate::worker::Bound;

/// A program between requests.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) fd: OwnedFd,
    pub(crate) kind: SocketType,
    pub(crate) peer: PeerCredentials,
    pub(crate) bound: Option<Bound>,
}

/// What the socket holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Not a whole request yet; an event will tell.
    Nothing,
    /// The program has left.
    Gone,
    /// A request, taken out of the socket unless it is a held one, and the bytes that belong to it.
    Request(Request, Vec<u8>),
    /// Not a request; the operation it named.
    Bad(u8, BadRequest),
}

impl Client {
    pub(crate) fn new(
        fd: OwnedFd,
        kind: SocketType,
        peer: PeerCredentials,
        bound: Option<Bound>,
    ) -> Self {
        Self { fd, kind, peer, bound }
    }

    /// Looks at what the program has written.
    pub(crate) fn hear(&self) -> io::Result<Heard> {
        let mut room = [0; MESSAGE_LEN + MAX_EXTRA];
        let mut large = Vec::new();
        let bytes = if self.kind == SocketType::Datagram {
            large.resize(MESSAGE_LEN + MAX_DATAGRAM, 0);
            large.as_mut_slice()
        } else {
            room.as_mut_slice()
        };
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::TRUNC;
        let len = match recv(&self.fd, &mut *bytes, self.flags(flags)) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(Heard::Gone),
            Ok((_, len)) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::Nothing),
            Err(error) => return Err(error.into()),
        };
        let is_message = self.kind != SocketType::Stream;
        let Some(head) = bytes.first_chunk::<MESSAGE_LEN>().filter(|_| len >= MESSAGE_LEN) else {
            return Ok(if is_message {
                Heard::Bad(bytes[1], BadRequest::Length)
            } else {
                Heard::Nothing
            });
        };
        let request = match Request::parse(head) {
            Ok(request) => request,
            Err(bad) => return Ok(Heard::Bad(bytes[1], bad)),
        };
        let whole = MESSAGE_LEN + request.extra();
        if (is_message && len != whole) || len < whole || whole > bytes.len() {
            return Ok(Heard::Bad(bytes[1], BadRequest::Length));
        }
        let extra = bytes[MESSAGE_LEN..whole].to_vec();
        let is_held = matches!(request, Request::Connect { held: Some(_), .. });
        if !is_held {
            recv(&self.fd, &mut bytes[..whole], RecvFlags::DONTWAIT)?;
        }
        Ok(Heard::Request(request, extra))
    }

    /// The real length of a message is asked for; a stream has none (and there the flag would discard bytes).
    fn flags(&self, flags: RecvFlags) -> RecvFlags {
        match self.kind {
            SocketType::Stream => flags - RecvFlags::TRUNC,
            SocketType::SeqPacket | SocketType::Datagram => flags,
        }
    }

    /// Writes a reply.
    pub(crate) fn reply(&self, reply: &Reply) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = send(&self.fd, &reply.encode(), flags)?;
        if sent == MESSAGE_LEN { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Writes a reply that carries a descriptor.
    pub(crate) fn reply_with(&self, reply: &Reply, fd: impl AsFd) -> io::Result<()> {
        let fds = [fd.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.fd, &[IoSlice::new(&reply.encode())], &mut control, flags)?;
        if sent == MESSAGE_LEN { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}
