//! Hybrid sockets of guests: `CONNECT <port>` from programs, and `<path>_<port>` for the guest's connections.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType as UnixType};
use vsock_core::{FlowKey, Refusal, SecondaryMap};

use super::acceptors::{Acceptors, Speaks};
use crate::context::Context;
use crate::flows::stream::finish;
use crate::links::{Entry, LinkId};
use crate::reactor::{Owner, SourceId};
use crate::sys::PeerCredentials;

/// A program on a hybrid socket that has not been connected yet.
#[derive(Debug)]
pub(super) struct HybridClient {
    pub(super) fd: OwnedFd,
    pub(super) link: LinkId,
    pub(super) peer: PeerCredentials,
}

/// The hybrid sockets of all guests, and programs on them.
#[derive(Default)]
pub(super) struct Hybrids {
    sockets: SecondaryMap<Entry, (PathBuf, SourceId)>,
    clients: SecondaryMap<Owner, HybridClient>,
}

impl Hybrids {
    /// Gives a guest another hybrid socket, or none. Programs that have come by the old one stay.
    pub(super) fn set(
        &mut self,
        cx: &mut Context,
        acceptors: &mut Acceptors,
        link: LinkId,
        socket: Option<(PathBuf, UnixListener)>,
    ) -> std::io::Result<()> {
        let before = match socket {
            Some((path, listener)) => {
                let id = acceptors.add(cx, listener, Speaks::Hybrid(link))?;
                self.sockets.insert(link, (path, id))
            }
            None => self.sockets.remove(link),
        };
        if let Some((_, id)) = before {
            acceptors.remove(cx, id);
        }
        Ok(())
    }

    pub(super) fn path(&self, link: LinkId) -> Option<&Path> {
        self.sockets.get(link).map(|(path, _)| path.as_path())
    }

    pub(super) fn add(&mut self, id: SourceId, client: HybridClient) {
        self.clients.insert(id, client);
    }

    pub(super) fn get(&self, id: SourceId) -> Option<&HybridClient> {
        self.clients.get(id)
    }

    /// A program is connected, or gone.
    pub(super) fn remove(&mut self, id: SourceId) -> Option<HybridClient> {
        self.clients.remove(id)
    }

    /// Ends a program's connection: with something unread in it, a plain close would read as a reset.
    pub(super) fn drop_client(&mut self, cx: &mut Context, id: SourceId) {
        if let Some(client) = self.clients.remove(id) {
            finish(&client.fd);
            cx.sources.remove(id);
        }
    }

    /// A guest is gone, and with it all that waits for it.
    pub(super) fn forget(&mut self, cx: &mut Context, acceptors: &mut Acceptors, link: LinkId) {
        // Fails only for a new socket.
        let _ = self.set(cx, acceptors, link, None);
        let waiting: Vec<SourceId> =
            self.clients.iter().filter(|(_, it)| it.link == link).map(|(id, _)| id).collect();
        for id in waiting {
            self.clients.remove(id);
            cx.sources.remove(id);
        }
    }

    /// The Unix socket `<path>_<port>` of a guest that connects to us, if a program listens there.
    ///
    /// A program whose backlog is full counts as a refusal: waiting for it would stall every guest.
    ///
    /// # Errors
    /// There is no such program, or no descriptor for it.
    pub(super) fn connect(&self, link: LinkId, key: FlowKey) -> Result<OwnedFd, Refusal> {
        let path = self.path(link).ok_or(Refusal::NoListener)?;
        let mut path = path.to_owned().into_os_string();
        path.push(format!("_{}", key.ours.port.0));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, UnixType::STREAM, flags, None)
            .map_err(|_| Refusal::OutOfDescriptors)?;
        SocketAddrUnix::new(path.as_bytes())
            .and_then(|address| rustix::net::connect(&fd, &address))
            .map_err(|_| Refusal::NoHybridSocket)?;
        Ok(fd)
    }
}
