//! Hybrid sockets of a guest: `CONNECT <port>` from programs, and `<path>_<port>` for the guest's connections.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType as UnixType};
use vsock_core::{Address, FlowKey, SocketType};

use super::Worker;
use super::programs::{PROGRAMS_PER_TURN, accept};
use super::source::{Flow, Greeting, HybridClient, LinkId, Phase, Source};
use crate::host::hybrid::{Progress, advance};
use crate::host::stream::finish;
use crate::reactor::{Readiness, Token};
use crate::vhost_user::PeerCredentials;

impl Worker {
    /// Gives a guest another hybrid socket, or none. Who has come by the old one stays.
    pub(crate) fn set_hybrid(
        &mut self,
        link: LinkId,
        hybrid: Option<(PathBuf, UnixListener)>,
    ) -> io::Result<()> {
        let (path, door) = match hybrid {
            Some((path, door)) => {
                door.set_nonblocking(true)?;
                (Some(path), Some(self.watch(Source::HybridDoor(door, link))?))
            }
            None => (None, None),
        };
        let Some(slot) = self.links.get_mut(link) else { return Ok(()) };
        slot.options.hybrid = path;
        if let Some(old) = std::mem::replace(&mut slot.hybrid_door, door) {
            self.end_source(old);
        }
        Ok(())
    }

    /// Takes all programs that wait at a hybrid socket.
    pub(crate) fn accept_hybrid(&mut self, token: Token) {
        for _ in 0..PROGRAMS_PER_TURN {
            let Some(Source::HybridDoor(door, link)) = self.sources.get(token) else { return };
            let link = *link;
            let Some(fd) = accept(door).unwrap_or_else(|error| self.shut_door(token, error)) else {
                return;
            };
            let Ok(peer) = PeerCredentials::of(fd.as_fd()) else { continue };
            match self.watch(Source::HybridClient(HybridClient { fd, link, peer })) {
                Ok(client) => self.read_line(client, false),
                Err(error) => self.journal.write("failed", u32::MAX, format!("epoll: {error}")),
            }
        }
        self.try_again(token);
    }

    /// A program has written more of its line, or left.
    pub(crate) fn hear_hybrid(&mut self, ready: Readiness) {
        self.read_line(ready.token, ready.read_closed);
    }

    fn read_line(&mut self, token: Token, ended: bool) {
        let Some(Source::HybridClient(client)) = self.sources.get(token) else { return };
        let link = client.link;
        let guest = self.links.get(link).and_then(super::LinkSlot::guest);
        match advance(&client.fd, ended) {
            Ok(Progress::Waiting) => {}
            Ok(Progress::Connect(port)) => {
                let Some(cid) = guest else { return self.let_go(token) };
                let to = Address { cid, port };
                if let Err(errno) = self.connect_hybrid(token, link, to) {
                    self.note_denied(token, to, errno);
                    self.let_go(token);
                }
            }
            Ok(Progress::Bad) => {
                let text =
                    format!("hybrid line of pid {}: not CONNECT and a port", client.peer.pid);
                self.journal.write("bad-request", guest.map_or(u32::MAX, |cid| cid.0), text);
                self.bad_requests += 1;
                self.let_go(token);
            }
            Ok(Progress::Gone) | Err(_) => self.let_go(token),
        }
    }

    /// Ends a program's connection: with something unread in it, a plain close would read as a reset.
    fn let_go(&mut self, token: Token) {
        if let Some(Source::HybridClient(client)) = self.sources.get(token) {
            finish(&client.fd);
        }
        self.end_source(token);
    }

    fn connect_hybrid(&mut self, token: Token, link: LinkId, to: Address) -> Result<(), Errno> {
        let bound = self.bind_ephemeral()?;
        let started = self.start_connection(link, bound, to, SocketType::Stream, None);
        let (connection, key) = started.inspect_err(|_| self.ports.release(bound.id))?;
        let Some(entry) = self.sources.get_mut(token) else { return Err(Errno::INVAL) };
        let Source::HybridClient(client) = std::mem::replace(entry, Source::Ended) else {
            return Err(Errno::INVAL);
        };
        let flow = self.new_flow(link, connection, key, SocketType::Stream, client.fd, client.peer);
        let phase = Phase::Connecting(Greeting::Hybrid);
        self.begin_flow(token, Flow { phase, binding: Some(bound), ..flow });
        Ok(())
    }

    /// The Unix socket `<path>_<port>` of a guest that connects to us, if a program listens there.
    ///
    /// A program whose backlog is full counts as a refusal: waiting for it would stall every guest.
    pub(crate) fn offer_to_hybrid(
        &self,
        link: LinkId,
        key: FlowKey,
        kind: SocketType,
    ) -> Option<OwnedFd> {
        if kind != SocketType::Stream {
            return None;
        }
        let mut path = self.links.get(link)?.options.hybrid.clone()?.into_os_string();
        path.push(format!("_{}", key.ours.port.0));
        let address = SocketAddrUnix::new(path.as_bytes()).ok()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd =
            rustix::net::socket_with(AddressFamily::UNIX, UnixType::STREAM, flags, None).ok()?;
        rustix::net::connect(&fd, &address).ok()?;
        Some(fd)
    }
}
