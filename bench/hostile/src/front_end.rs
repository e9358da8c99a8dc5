//! A front end that says what an attack makes it say: vhost-user without a library that keeps its rules.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vsock_load::Result;

use crate::ring::{BASE, config};

/// Numbers of the requests, as in the vhost-user specification.
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const ADD_MEM_REG: u32 = 37;
}

/// VERSION_1, indirect descriptors and the vhost-user bit 30.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 30;

/// Longer than an answer takes, if the device is well.
const DEADLINE: Duration = Duration::from_secs(5);

/// The front end's end of the socket.
pub(crate) struct FrontEnd {
    pub(crate) socket: UnixStream,
}

impl FrontEnd {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { socket })
    }

    /// Sends a message; one that asks for an acknowledgement is acknowledged.
    pub(crate) fn say(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let header = [request, 1, u32::try_from(body.len())?].map(u32::to_ne_bytes).concat();
        let mut space = vec![MaybeUninit::uninit(); 1024];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err("too many descriptors".into());
        }
        let pieces = [IoSlice::new(&header), IoSlice::new(body)];
        sendmsg(&self.socket, &pieces, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The body of the next answer.
    pub(crate) fn answer(&mut self) -> Result<Vec<u8>> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header)?;
        let [.., a, b, c, d] = header;
        let mut body = vec![0; u32::from_ne_bytes([a, b, c, d]).min(4096) as usize];
        self.socket.read_exact(&mut body)?;
        Ok(body)
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&mut self, request: u32, body: &[u8]) -> Result<Vec<u8>> {
        self.say(request, body, &[])?;
        self.answer()
    }

    /// The usual beginning, without protocol features.
    pub(crate) fn negotiate(&mut self) -> Result<()> {
        self.ask(request::GET_FEATURES, &[])?;
        self.ask(request::GET_PROTOCOL_FEATURES, &[])?;
        self.say(request::SET_PROTOCOL_FEATURES, &words(&[0]), &[])?;
        self.say(request::SET_OWNER, &[], &[])?;
        self.say(request::SET_FEATURES, &words(&[FEATURES]), &[])
    }

    /// The CID in the configuration space.
    pub(crate) fn cid(&mut self) -> Result<u64> {
        let answer = self.ask(request::GET_CONFIG, &config_space())?;
        let cid = answer.get(12..20).and_then(|bytes| bytes.first_chunk().copied());
        Ok(cid.map(u64::from_le_bytes).ok_or("no configuration space")?)
    }

    /// One region.
    pub(crate) fn give_memory(&self, file: BorrowedFd<'_>, len: u64) -> Result<()> {
        let body = [pair(1, 0), words(&[BASE, len, BASE, 0])].concat();
        self.say(request::SET_MEM_TABLE, &body, &[file])
    }

    /// A ring where [`config`] says, with its descriptors; enabled.
    pub(crate) fn start(
        &self,
        index: u32,
        size: u16,
        kick: BorrowedFd<'_>,
        call: BorrowedFd<'_>,
    ) -> Result<()> {
        let ring = config(index.into(), size);
        self.say(request::SET_VRING_NUM, &pair(index, size.into()), &[])?;
        self.say(request::SET_VRING_BASE, &pair(index, 0), &[])?;
        let addresses = words(&[ring.desc, ring.used, ring.avail, 0]);
        self.say(request::SET_VRING_ADDR, &[pair(index, 0), addresses].concat(), &[])?;
        self.say(request::SET_VRING_CALL, &words(&[index.into()]), &[call])?;
        self.say(request::SET_VRING_KICK, &words(&[index.into()]), &[kick])?;
        self.say(request::SET_VRING_ENABLE, &pair(index, 1), &[])
    }
}

/// A body of 64-bit numbers.
pub(crate) fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// The body of GET_CONFIG for the whole configuration space: offset, size, flags, and room for it.
pub(crate) fn config_space() -> Vec<u8> {
    [pair(0, 8), vec![0; 4 + 8]].concat()
}

/// A body of two 32-bit numbers.
pub(crate) fn pair(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// An eventfd that nobody waits on.
pub(crate) fn event() -> Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// A whole device: memory, three rings with eventfds.
pub(crate) fn set_up(
    path: &Path,
    file: &std::fs::File,
    len: u64,
) -> Result<(FrontEnd, Vec<OwnedFd>)> {
    let mut front = FrontEnd::connect(path)?;
    front.negotiate()?;
    front.give_memory(file.as_fd(), len)?;
    let mut events = Vec::new();
    for index in 0..3 {
        let (kick, call) = (event()?, event()?);
        front.start(index, 256, kick.as_fd(), call.as_fd())?;
        events.extend([kick, call]);
    }
    // An answer comes when all before it was carried out.
    front.ask(request::GET_FEATURES, &[])?;
    Ok((front, events))
}
