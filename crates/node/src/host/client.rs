//! A program on one of the node's Unix sockets: reads its requests, writes its replies.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use vsock_core::SocketType;

use super::program::Bound;
use super::socket::{ProgramSocket, peek};
use super::wire::{BadRequest, MAX_DATAGRAM, MAX_EXTRA, MESSAGE_LEN, Reply, Report, Request};
use vsock_virtio::sys::PeerCredentials;

/// A program between requests.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) fd: ProgramSocket,
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
        fd: ProgramSocket,
        kind: SocketType,
        peer: PeerCredentials,
        bound: Option<Bound>,
    ) -> Self {
        Self { fd, kind, peer, bound }
    }

    /// Whether the request may come now: of a program that does not listen, nor is connected. (What it should not ask for
    /// another reason is told by an errno.)
    pub(crate) fn may_ask(&self, request: &Request) -> bool {
        match request {
            Request::Bind(_) | Request::Connect { .. } | Request::Listen { .. } => true,
            Request::LocalCid | Request::Resolve { .. } | Request::Flow { .. } => {
                self.bound.is_none()
            }
            Request::Send { .. } => self.kind == SocketType::Datagram,
            Request::Accepted => false,
        }
    }

    /// Looks at what the program has written. Of a datagram the kernel tells the length, and it is read when that is known.
    pub(crate) fn hear(&self) -> io::Result<Heard> {
        let mut bytes = [0; MESSAGE_LEN + MAX_EXTRA];
        let is_message = self.kind != SocketType::Stream;
        // A stream has no length (and the flag would discard bytes).
        let flags = if is_message { RecvFlags::TRUNC } else { RecvFlags::empty() };
        let (len, has_descriptor) = match peek(&self.fd, flags, &mut bytes) {
            // An empty message reads as the end does.
            Ok((0, _)) if is_message && polled(&self.fd, PollFlags::RDHUP).is_empty() => {
                return Ok(Heard::Bad(0, BadRequest::Length));
            }
            Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(Heard::Gone),
            Ok(seen) => seen,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::Nothing),
            Err(error) => return Err(error.into()),
        };
        let Some(head) = bytes.first_chunk::<MESSAGE_LEN>().filter(|_| len >= MESSAGE_LEN) else {
            // The rest of a piece with a descriptor would never be seen.
            return Ok(if is_message || has_descriptor {
                Heard::Bad(if len > 1 { bytes[1] } else { 0 }, BadRequest::Length)
            } else {
                Heard::Nothing
            });
        };
        let request = match Request::decode(head) {
            Ok(request) => request,
            Err(bad) => return Ok(Heard::Bad(bytes[1], bad)),
        };
        let whole = MESSAGE_LEN + request.extra();
        let most = if self.kind == SocketType::Datagram { MAX_DATAGRAM } else { MAX_EXTRA };
        if (is_message && len != whole) || len < whole || request.extra() > most {
            return Ok(Heard::Bad(bytes[1], BadRequest::Length));
        }
        if matches!(request, Request::Connect { report: Report::Held { .. }, .. }) {
            let extra = bytes.get(MESSAGE_LEN..whole);
            return Ok(extra.map_or(Heard::Bad(bytes[1], BadRequest::Length), |extra| {
                Heard::Request(request, extra.to_vec())
            }));
        }
        let mut message = vec![0; whole];
        self.fd.receive(&mut message, RecvFlags::empty())?;
        message.drain(..MESSAGE_LEN);
        Ok(Heard::Request(request, message))
    }

    /// Writes a reply.
    pub(crate) fn reply(&self, reply: &Reply) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = send(&self.fd, &reply.encode(), flags)?;
        if sent == MESSAGE_LEN { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Writes a reply that carries a descriptor, and `extra` behind it.
    pub(crate) fn reply_with(&self, reply: &Reply, extra: &[u8], fd: impl AsFd) -> io::Result<()> {
        let fds = [fd.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let head = reply.encode();
        let parts = [IoSlice::new(&head), IoSlice::new(extra)];
        let sent = sendmsg(&self.fd, &parts, &mut control, flags)?;
        if sent == MESSAGE_LEN + extra.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

/// Whether the program has closed its socket.
pub(crate) fn has_hung_up(fd: impl AsFd) -> bool {
    polled(&fd, PollFlags::empty()).contains(PollFlags::HUP)
}

/// Which of `events` are there now, or that the program has closed its socket.
fn polled(fd: &impl AsFd, events: PollFlags) -> PollFlags {
    let mut polled = [PollFd::new(fd, events)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).map_or(PollFlags::empty(), |_| polled[0].revents())
}
