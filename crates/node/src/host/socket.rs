//! Our end of a Unix socket that a program has the other end of: receiving on it, and closing it, whatever the program sends.
//!
//! Descriptors that a program sends along must not be closed by the worker (`reaper.rs` says why). Most sockets refuse
//! them, so that none ever comes. One that cannot refuse (before Linux 6.16), or must not as descriptors mark the records
//! on it, takes them in and gives them to a reaper, and is closed by the reaper itself, as messages with more of
//! them may be unread.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, Shutdown, recvmsg,
};
use vsock_core::SocketType;

use super::places::{Place, Places};
use crate::options::NodeOptions;
use crate::reaper::Reaper;
use vsock_guest_memory::slice::{self, Slice, TransferError};
use vsock_virtio::sys::{refuse_descriptors, takes_descriptors};

/// The most descriptors that one message carries (`SCM_MAX_FD` of Linux).
const MAX_DESCRIPTORS: usize = 253;

/// How sockets of programs become ours.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    /// How many there may be.
    pub(crate) places: Places,
    reaper: Reaper,
    /// Sockets refuse descriptors, where the kernel can.
    refuse: bool,
}

impl Sockets {
    /// Sockets that are closed by this reaper, if need be.
    pub(crate) fn new(reaper: Reaper, options: NodeOptions) -> Self {
        let NodeOptions { refuse_descriptors: refuse, descriptors, .. } = options;
        Self { places: Places::within(descriptors), reaper, refuse }
    }

    /// Of a test, without a node.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self::new(crate::reactor::Sources::new().unwrap().reaper(), NodeOptions::default())
    }

    /// A socket that a program may have used already. What it refuses was decided when it was made.
    pub(crate) fn adopt(&self, fd: OwnedFd) -> ProgramSocket {
        let reaper = takes_descriptors(fd.as_fd()).then(|| self.reaper.clone());
        ProgramSocket { fd: Some(fd), reaper, place: None }
    }

    /// Descriptors can be received again, which was not so when some were to be; once.
    pub(crate) fn take_has_room(&self) -> bool {
        self.reaper.take_has_room()
    }

    /// A socket that nobody has used yet, for connections of a kind.
    pub(crate) fn prepare(&self, fd: OwnedFd, kind: SocketType) -> std::io::Result<ProgramSocket> {
        prepare(&fd, kind, self.refuse)?;
        Ok(self.adopt(fd))
    }
}

/// Lets a socket that nobody has used yet refuse descriptors, unless they mark records on it.
pub(crate) fn prepare(fd: impl AsFd, kind: SocketType, refuse: bool) -> std::io::Result<()> {
    match kind {
        SocketType::Stream | SocketType::Datagram if refuse => {
            // Where the kernel cannot, they are taken in.
            refuse_descriptors(fd.as_fd()).map(|_| ())
        }
        SocketType::Stream | SocketType::Datagram | SocketType::SeqPacket => Ok(()),
    }
}

/// Our end of a program's socket.
#[derive(Debug)]
pub(crate) struct ProgramSocket {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    /// Closes it, and descriptors that come by it; `None`: it refuses them.
    reaper: Option<Reaper>,
    /// Whose it is counted as; `None`: nobody's.
    place: Option<Place>,
}

impl ProgramSocket {
    /// The same, counted as somebody's until it is closed.
    pub(crate) fn counted(mut self, place: impl Into<Option<Place>>) -> Self {
        self.place = place.into();
        self
    }

    /// Receives without waiting: how long it was, and whether descriptors came with it. Of a message that is its real length,
    /// which may be more than there was room for, if `flags` say so.
    ///
    /// # Errors
    /// ETOOMANYREFS: it has descriptors, and too many wait to be closed already. It stays unread until there
    /// [is room](Sockets::take_has_room).
    pub(crate) fn receive(
        &self,
        bytes: &mut [u8],
        flags: RecvFlags,
    ) -> Result<(usize, bool), Errno> {
        let flags = flags | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut pieces = [IoSliceMut::new(bytes)];
        let Some(reaper) = &self.reaper else {
            let mut nothing = RecvAncillaryBuffer::default();
            let got = recvmsg(self, &mut pieces, &mut nothing, flags)?;
            return Ok((got.bytes, false));
        };
        self.check_room(reaper, pieces[0].len())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(self, &mut pieces, &mut control, flags)?;
        let mut received = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                received.extend(descriptors);
            }
        }
        // Where the process may have no more of them, the kernel has closed the rest.
        let had_descriptors = !received.is_empty() || got.flags.contains(ReturnFlags::CTRUNC);
        reaper.close_received(received);
        Ok((got.bytes, had_descriptors))
    }

    /// Receives a message into guest memory, or what is there of a stream.
    ///
    /// # Errors
    /// As [`receive`](Self::receive); or the memory is gone.
    pub(crate) fn receive_into(&self, pieces: &[Slice]) -> Result<slice::Received, TransferError> {
        let Some(reaper) = &self.reaper else { return slice::recvmsg(self.as_fd(), pieces, 0) };
        let room = self.check_room(reaper, slice::total(pieces));
        room.map_err(|error| TransferError::Io(error.into()))?;
        let mut received = Vec::new();
        let got = slice::recvmsg_with_descriptors(self.as_fd(), pieces, 0, &mut received);
        reaper.close_received(received);
        got
    }

    /// Whether the reaper takes descriptors that come with the next `len` bytes, if there are any.
    fn check_room(&self, reaper: &Reaper, len: usize) -> Result<(), Errno> {
        let has_descriptors =
            || peek(self, RecvFlags::empty(), &mut vec![0; len]).is_ok_and(|(_, has)| has);
        if reaper.is_full() && has_descriptors() {
            reaper.await_room();
            return Err(Errno::TOOMANYREFS);
        }
        Ok(())
    }

    /// Ends it so that what we wrote last can be read, and the end after it: a socket that is closed with something unread in
    /// it reads as a reset.
    pub(crate) fn finish(&self) {
        // Fails only when the program has closed it.
        let _ = rustix::net::shutdown(self, Shutdown::Both);
        let mut scratch = [0u8; 16384];
        while matches!(self.receive(&mut scratch, RecvFlags::empty()), Ok((n, _)) if n > 0) {}
    }
}

impl Drop for ProgramSocket {
    fn drop(&mut self) {
        if let (Some(fd), Some(reaper)) = (self.fd.take(), &self.reaper) {
            reaper.close(fd, self.place.take());
        }
    }
}

impl AsFd for ProgramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("only drop takes it").as_fd()
    }
}

/// What waits in a socket, and stays there: its length, and whether a descriptor is with it. Behind one, the kernel shows
/// nothing.
pub(crate) fn peek(
    fd: impl AsFd,
    flags: RecvFlags,
    bytes: &mut [u8],
) -> Result<(usize, bool), Errno> {
    let flags = flags | RecvFlags::DONTWAIT | RecvFlags::PEEK;
    let mut nothing = RecvAncillaryBuffer::default();
    let got = recvmsg(fd, &mut [IoSliceMut::new(bytes)], &mut nothing, flags)?;
    Ok((got.bytes, got.flags.contains(ReturnFlags::CTRUNC)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Sender, channel};
    use std::thread::JoinHandle;
    use std::time::Duration;

    use super::*;
    use crate::reactor::Sources;
    use crate::reaper::tests::{lingering, reaper_for};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use vsock_guest_memory::sealed_memory;
    use vsock_guest_memory::slice::Slices;

    /// Sends bytes with descriptors, of which nobody else has one then.
    fn send(to: impl AsFd, descriptors: &[OwnedFd]) -> Result<usize, Errno> {
        let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(to, &[std::io::IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL)
    }

    fn no_file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// Descriptors whose close hangs until this is over, which a test must not wait for.
    struct Hanging {
        is_over: Sender<()>,
        watch: JoinHandle<bool>,
    }

    impl Hanging {
        fn until_over(peers: Vec<TcpStream>) -> Self {
            let (is_over, over) = channel();
            let watch = std::thread::spawn(move || {
                let in_time = over.recv_timeout(Duration::from_secs(20)).is_ok();
                drop(peers);
                in_time
            });
            Self { is_over, watch }
        }

        fn over(self) {
            // Nobody hears it who has given up waiting.
            let _ = self.is_over.send(());
            assert!(self.watch.join().unwrap(), "a close was waited for");
        }
    }

    /// A socket that takes descriptors, and its program.
    fn pair(reaper: &Reaper) -> (ProgramSocket, UnixStream) {
        let (ours, program) = UnixStream::pair().unwrap();
        let options = NodeOptions { refuse_descriptors: false, ..NodeOptions::default() };
        let sockets = Sockets::new(reaper.clone(), options);
        (sockets.prepare(ours.into(), SocketType::Stream).unwrap(), program)
    }

    #[test]
    fn descriptors_whose_close_hangs_are_closed_by_others() {
        let reaper = Sources::new().unwrap().reaper();
        let (descriptors, peers): (Vec<_>, Vec<_>) = (0..4).map(|_| lingering()).unzip();
        let hanging = Hanging::until_over(peers);
        let (_file, memory) = sealed_memory("room", 0x1000, 0x1000).unwrap();
        let mut room = Slices::new();
        memory.slice(0x1000, 0x1000, &mut room).unwrap();
        let acts: [fn(ProgramSocket, &Slices); 4] = [
            |ours, _| {
                assert_eq!(ours.receive(&mut [0; 8], RecvFlags::empty()), Ok((1, true)));
            },
            |ours, room| {
                let got = ours.receive_into(room).unwrap();
                assert!(got.len == 1 && got.had_descriptors);
            },
            |ours, _| ours.finish(),
            |ours, _| drop(ours),
        ];
        for (descriptor, act) in descriptors.into_iter().zip(acts) {
            let (ours, program) = pair(&reaper);
            send(&program, &[descriptor]).unwrap();
            act(ours, &room);
        }
        hanging.over();
    }

    #[test]
    fn message_with_more_descriptors_than_may_wait_stays_unread() {
        let reaper = reaper_for(5);
        let (descriptors, peers): (Vec<_>, Vec<_>) = (0..5).map(|_| lingering()).unzip();
        let hanging = Hanging::until_over(peers);
        let (ours, mut program) = pair(&reaper);
        for descriptor in descriptors {
            send(&program, &[descriptor]).unwrap();
            assert_eq!(ours.receive(&mut [0; 8], RecvFlags::empty()), Ok((1, true)));
        }
        program.write_all(b"y").unwrap();
        assert_eq!(ours.receive(&mut [0; 8], RecvFlags::empty()), Ok((1, false)));
        program.write_all(b"y").unwrap();
        send(&program, &[no_file()]).unwrap();
        let refused = ours.receive(&mut [0; 8], RecvFlags::empty());
        assert_eq!(refused, Err(Errno::TOOMANYREFS));
        ours.finish();
        drop(ours);
        hanging.over();
        // Closed with something unread.
        assert!(program.read(&mut [0]).is_err());
    }

    #[test]
    fn socket_refuses_descriptors_unless_they_mark_records() {
        let reaper = Sources::new().unwrap().reaper();
        let (one, _) = UnixStream::pair().unwrap();
        let can_refuse = refuse_descriptors(one.as_fd()).unwrap();
        for (kind, refuse_descriptors) in [
            (SocketType::Stream, true),
            (SocketType::Datagram, true),
            (SocketType::Stream, false),
            (SocketType::SeqPacket, true),
        ] {
            let (ours, program) = UnixStream::pair().unwrap();
            let options = NodeOptions { refuse_descriptors, ..NodeOptions::default() };
            let sockets = Sockets::new(reaper.clone(), options);
            let ours = sockets.prepare(ours.into(), kind).unwrap();
            let is_refused = refuse_descriptors && can_refuse && kind != SocketType::SeqPacket;
            let sent = send(&program, &[no_file()]);
            assert_eq!(sent, if is_refused { Err(Errno::PERM) } else { Ok(1) }, "{kind:?}");
            assert_eq!(ours.reaper.is_none(), is_refused);
        }
    }
}
