//! The control thread of a guest as plain data: stopped between two messages, saved, and begun again elsewhere.
//!
//! Its front end sees nothing of that: what it has sent meanwhile waits in its socket.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use vsock_core::saved::{Unfit, check};

use super::super::accept::{Probe, Probes};
use super::super::control::{BackendControl, Shared};
use super::super::handler::{Handler, SavedHandler, is_unix_stream};
use super::super::message::Inbox;
use super::super::{Attachment, Detach};
use super::{Attached, BackendHandle, BackendOptions, Guest, start};
use crate::saved::{Fds, SavedFd, SavedFds};
use crate::starter::Starter;
use crate::sys::PeerCredentials;
use vsock_guest_memory::GuestMemory;

/// A control thread that does not run.
pub struct Paused {
    guest: Box<Guest>,
    /// Where the front end listens for requests of ours.
    channel: Option<OwnedFd>,
}

/// A control thread as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedBackend {
    /// What the device offers.
    pub options: BackendOptions,
    /// The CID in the configuration space.
    pub cid: u32,
    /// The guest's socket.
    pub listener: SavedFd,
    /// The front end that is attached.
    pub front_end: Option<SavedFrontEnd>,
    /// Connections that have not said anything yet, the oldest first, and who made them.
    pub probes: Vec<(SavedFd, PeerCredentials)>,
    /// The attachment is to be ended for this reason, which the data plane has found.
    pub detach: Option<Detach>,
}

/// A front end as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFrontEnd {
    /// Its connection.
    pub socket: SavedFd,
    /// What has come of its next message.
    pub bytes: Vec<u8>,
    /// The descriptors that came with that.
    pub fds: Vec<SavedFd>,
    /// What it has told the device.
    pub device: SavedHandler,
    /// Where it listens for requests of ours.
    pub channel: Option<SavedFd>,
}

impl Paused {
    pub(super) fn new(guest: Box<Guest>) -> Self {
        let channel = guest.shared.take_channel();
        Self { guest, channel }
    }

    /// As plain data.
    #[must_use]
    pub fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedBackend {
        let Guest { listener, shared, handler, attached, probes, .. } = &*self.guest;
        let listener = fds.add(listener);
        let front_end = attached.as_ref().and_then(|Attached { socket, inbox }| {
            let device = handler.save(fds)?;
            let (bytes, its_fds) = inbox.parts();
            Some(SavedFrontEnd {
                socket: fds.add(socket),
                bytes: bytes.to_vec(),
                fds: its_fds.iter().map(|fd| fds.add(fd)).collect(),
                device,
                channel: self.channel.as_ref().map(|fd| fds.add(fd)),
            })
        });
        SavedBackend {
            options: handler.options(),
            cid: shared.cid(),
            listener,
            front_end,
            probes: probes.iter().map(|it| (fds.add(&it.socket), it.peer)).collect(),
            detach: self.ordered_detach(),
        }
    }

    /// A control thread that goes on where another was, once it is told to [`resume`](Self::resume). A front end whose
    /// memory cannot be mapped again is sent away then.
    ///
    /// # Errors
    /// The saved state cannot be.
    pub fn restore(
        saved: SavedBackend,
        attachment: Box<dyn Attachment>,
        fds: &mut Fds,
    ) -> Result<Self, Unfit> {
        let SavedBackend { options, cid, listener, front_end, probes, detach } = saved;
        let listener = UnixListener::from(fds.take(listener)?);
        listener.set_nonblocking(true).map_err(|_| Unfit::Descriptor)?;
        let shared = Arc::new(Shared::new(cid).map_err(|_| Unfit::Descriptor)?);
        let control = BackendControl::new(Arc::clone(&shared));
        let probe =
            |(socket, peer)| Ok(Probe { socket: UnixStream::from(fds.take(socket)?), peer });
        let probes = Probes::restore(probes.into_iter().map(probe).collect::<Result<_, Unfit>>()?)?;
        let mut channel = None;
        let (handler, attached) = if let Some(front_end) = front_end {
            let SavedFrontEnd { socket, bytes, fds: its_fds, device, channel: its_channel } =
                front_end;
            let socket = UnixStream::from(fds.take(socket)?);
            let its_fds =
                its_fds.into_iter().map(|fd| fds.take(fd)).collect::<Result<_, Unfit>>()?;
            let inbox = Inbox::restore(bytes, its_fds)?;
            channel = its_channel.map(|fd| fds.take(fd)).transpose()?;
            check(channel.as_ref().is_none_or(is_unix_stream), Unfit::Descriptor)?;
            let shared = Arc::clone(&shared);
            let (handler, fault) = Handler::restore(device, options, shared, attachment, fds)?;
            if let Some(reason) = detach.or(fault) {
                control.detach(reason);
            }
            (handler, Some(Attached { socket, inbox }))
        } else {
            (Handler::new(options, Arc::clone(&shared), attachment), None)
        };
        let guest = Guest { listener, shared, handler, attached, probes, is_listening: true };
        Ok(Self { guest: Box::new(guest), channel })
    }

    /// A sender of orders to the thread, which carries them out when it runs.
    #[must_use]
    pub fn control(&self) -> BackendControl {
        BackendControl::new(Arc::clone(&self.guest.shared))
    }

    /// The memory of the front end, if it has shared any that can be mapped.
    #[must_use]
    pub fn memory(&self) -> Option<&Arc<GuestMemory>> {
        self.guest.handler.memory()
    }

    /// The end of the attachment that has been ordered and waits for the thread to run.
    #[must_use]
    pub fn ordered_detach(&self) -> Option<Detach> {
        self.guest.shared.ordered_detach()
    }

    /// Whether the front end takes this ring for running.
    #[must_use]
    pub fn runs(&self, queue: usize) -> bool {
        self.guest.handler.runs(queue)
    }

    /// Serves the front end again, in a thread that `starter` starts.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn resume(self, starter: &Starter) -> std::io::Result<BackendHandle> {
        let Self { guest, channel } = self;
        guest.shared.set_channel(channel);
        start(guest, starter)
    }
}
