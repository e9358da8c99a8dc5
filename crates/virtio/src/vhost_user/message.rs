//! Messages on the front end's socket: whole ones in, replies out, never waiting.
//!
//! A message is a 12-byte header (request, flags, size of the body), a body of at most 4 KiB and at most 32 file
//! descriptors. Numbers are in native byte order. [`Inbox`] reads header and body each with exact lengths, so that a
//! read never runs into the next message and takes its fds; what is there of a message stays in the inbox until the
//! rest arrives. What a body means, and whether it is valid, is told by the types of the `vhost` crate.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{
    MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserHeaderFlag, VhostUserMsgValidator,
};
use vm_memory::ByteValued;
use vsock_core::saved::{Unfit, check};

use super::Detach;

/// Bytes of a message's header.
const HEADER: usize = 12;
/// The only version there is, in the lowest two bits of the flags.
const VERSION: u32 = 1;

/// One request of a front end, complete.
pub(super) struct Message {
    /// The request's number; may be one we do not know.
    pub(super) request: u32,
    /// Whether the sender waits for an acknowledgement (if it negotiated that).
    pub(super) needs_reply: bool,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    /// The body as `T`, if it has exactly that size and `T` holds it valid.
    pub(super) fn body<T: ByteValued + VhostUserMsgValidator + Default>(
        &self,
    ) -> Result<T, Detach> {
        read_body(&self.body)
            .ok_or_else(|| self.malformed("the body is invalid or of a wrong size"))
    }

    /// The body as one `T` followed by more bytes.
    pub(super) fn body_and_rest<T: ByteValued + VhostUserMsgValidator + Default>(
        &self,
    ) -> Result<(T, &[u8]), Detach> {
        let split = self.body.split_at_checked(size_of::<T>());
        let (first, rest) = split.ok_or_else(|| self.malformed("the body is too short"))?;
        let first = read_body(first).ok_or_else(|| self.malformed("the body is invalid"))?;
        Ok((first, rest))
    }

    /// Fails unless body and fds are absent.
    pub(super) fn expect_empty(&self) -> Result<(), Detach> {
        self.expect_no_fds()?;
        if self.body.is_empty() { Ok(()) } else { Err(self.malformed("it has a body")) }
    }

    /// Fails if there are fds.
    pub(super) fn expect_no_fds(&self) -> Result<(), Detach> {
        if self.fds.is_empty() { Ok(()) } else { Err(self.wrong_fds("it carries fds")) }
    }

    /// Takes exactly `count` fds out of the message.
    pub(super) fn take_fds(&mut self, count: usize) -> Result<Vec<OwnedFd>, Detach> {
        if self.fds.len() == count {
            return Ok(std::mem::take(&mut self.fds));
        }
        Err(self.wrong_fds("it carries the wrong number of fds"))
    }

    /// Takes the one fd of the message.
    pub(super) fn take_fd(&mut self) -> Result<OwnedFd, Detach> {
        self.take_fds(1)?.pop().ok_or_else(|| self.wrong_fds("it carries no fd"))
    }

    /// The reason to detach for a message that breaks the specification.
    pub(super) fn malformed(&self, fault: &'static str) -> Detach {
        Detach::Malformed { request: self.request, fault }
    }

    /// The reason to detach for missing or surplus fds.
    pub(super) fn wrong_fds(&self, fault: &'static str) -> Detach {
        Detach::WrongFds { request: self.request, fault }
    }
}

/// Copies `bytes` into a `T`, if they are as many as it has and make a valid one.
pub(super) fn read_body<T: ByteValued + VhostUserMsgValidator + Default>(
    bytes: &[u8],
) -> Option<T> {
    let mut body = T::default();
    if bytes.len() != size_of::<T>() {
        return None;
    }
    body.as_mut_slice().copy_from_slice(bytes);
    body.is_valid().then_some(body)
}

/// What is there of the next message.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Inbox {
    /// Reads on without waiting: a message when one is complete, `None` when more bytes must come first.
    pub(super) fn receive(&mut self, socket: impl AsFd) -> Result<Option<Message>, Detach> {
        loop {
            let wanted = self.wanted()?;
            if wanted == 0 {
                return Ok(Some(self.take()));
            }
            if !self.read(socket.as_fd(), wanted)? {
                return Ok(None);
            }
        }
    }

    /// What is there of a message: bytes and descriptors.
    pub(super) fn parts(&self) -> (&[u8], &[OwnedFd]) {
        (&self.bytes, &self.fds)
    }

    /// What was there of a message.
    pub(super) fn restore(bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Result<Self, Unfit> {
        check(fds.len() <= MAX_ATTACHED_FD_ENTRIES, Unfit::TooMany)?;
        let inbox = Self { bytes, fds };
        let whole = match inbox.bytes.first_chunk::<HEADER>() {
            Some(header) => {
                HEADER
                    + usize::try_from(split_header(header).2)
                        .unwrap_or(usize::MAX)
                        .min(MAX_MSG_SIZE)
            }
            None => HEADER,
        };
        check(inbox.bytes.len() <= whole, Unfit::TooMany)?;
        Ok(inbox)
    }

    /// Bytes missing until the header, then until the message is complete.
    fn wanted(&self) -> Result<usize, Detach> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(HEADER - self.bytes.len());
        };
        let (request, flags, size) = split_header(header);
        let malformed = |fault| Err(Detach::Malformed { request, fault });
        if flags & VhostUserHeaderFlag::VERSION.bits() != VERSION {
            return malformed("unknown protocol version");
        }
        if flags & (VhostUserHeaderFlag::REPLY | VhostUserHeaderFlag::RESERVED_BITS).bits() != 0 {
            return malformed("reply or reserved flags are set");
        }
        match usize::try_from(size) {
            Ok(size) if size <= MAX_MSG_SIZE => Ok(HEADER + size - self.bytes.len()),
            Ok(_) | Err(_) => malformed("the body is too long"),
        }
    }

    /// One read of at most `wanted` bytes; `false` when nothing is there.
    fn read(&mut self, socket: impl AsFd, wanted: usize) -> Result<bool, Detach> {
        let have = self.bytes.len();
        self.bytes.resize(have + wanted, 0);
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut self.bytes[have..])];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let result = recvmsg(socket, &mut pieces, &mut control, flags);
        let count = result.as_ref().map_or(0, |message| message.bytes);
        self.bytes.truncate(have + count);
        let message = match result {
            Ok(message) => message,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(Detach::Socket(error.kind())),
        };
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                self.fds.extend(fds);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_ATTACHED_FD_ENTRIES {
            let fault = "more fds than a message may carry, or than this process may open";
            return Err(Detach::WrongFds { request: self.request(), fault });
        }
        match (message.bytes, have) {
            (0, 0) => Err(Detach::Disconnected),
            (0, _) => Err(Detach::Truncated),
            _ => Ok(true),
        }
    }

    /// The request's number, or 0 while it is not known.
    fn request(&self) -> u32 {
        self.bytes.first_chunk().copied().map_or(0, u32::from_ne_bytes)
    }

    fn take(&mut self) -> Message {
        let mut body = std::mem::take(&mut self.bytes);
        let header: [u8; HEADER] = body.first_chunk().copied().unwrap_or_default();
        let (request, flags, _) = split_header(&header);
        body.drain(..HEADER);
        let needs_reply = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        Message { request, needs_reply, body, fds: std::mem::take(&mut self.fds) }
    }
}

fn split_header(header: &[u8; HEADER]) -> (u32, u32, u32) {
    let number = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    (number(0), number(4), number(8))
}

/// Sends the reply to `request`; a peer that leaves no room for it is not waited for.
pub(super) fn send_reply(socket: impl AsFd, request: u32, body: &[u8]) -> Result<(), Detach> {
    let sent = send(socket, request, VERSION | VhostUserHeaderFlag::REPLY.bits(), body);
    sent.map_err(|error| {
        let is_full = error.kind() == std::io::ErrorKind::WouldBlock;
        if is_full { Detach::NotReading } else { error.into() }
    })
}

/// Sends a request of our own for which no reply is asked.
pub(super) fn send_request(socket: impl AsFd, request: u32) -> std::io::Result<()> {
    send(socket, request, VERSION, &[])
}

/// Sends one message whole, or fails.
fn send(socket: impl AsFd, request: u32, flags: u32, body: &[u8]) -> std::io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    let size = u32::try_from(body.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    for number in [request, flags, size] {
        message.extend_from_slice(&number.to_ne_bytes());
    }
    message.extend_from_slice(body);
    let options = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut control = SendAncillaryBuffer::default();
    let sent = sendmsg(socket, &[IoSlice::new(&message)], &mut control, options)?;
    // Half a message is never repaired: the peer would read the rest of it as a header.
    if sent == message.len() { Ok(()) } else { Err(std::io::ErrorKind::WouldBlock.into()) }
}
