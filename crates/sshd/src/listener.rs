//! The listening socket, and who may connect to it: on vsock the host (CID 2) alone.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, VsockAddr};
use rustix::net::SocketFlags;

use crate::arguments::Place;
use crate::descriptor::Descriptor;

/// VMADDR_CID_HOST of vsock(7).
const CID_HOST: u32 = 2;
/// VMADDR_CID_ANY.
const CID_ANY: u32 = u32::MAX;
/// Connections that wait to be accepted.
const WAITING: i32 = 16;

/// A listening socket.
pub(crate) struct Listener {
    socket: Descriptor,
    is_vsock: bool,
}

impl Listener {
    /// Binds and listens. Needs a runtime.
    pub(crate) fn bind(place: &Place) -> io::Result<Listener> {
        let (socket, is_vsock) = match place {
            Place::Vsock(port) => (bind_vsock(*port)?, true),
            Place::Unix(path) => (bind_unix(path)?, false),
        };
        Ok(Listener { socket: Descriptor::new(socket)?, is_vsock })
    }

    /// The next connection of the host; others are closed.
    pub(crate) async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(socket) if self.is_of_host(&socket) => return Ok(socket),
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(rustix::io::Errno::AGAIN) => self.socket.readable().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_of_host(&self, socket: &OwnedFd) -> bool {
        // A peer that is gone already has no name.
        !self.is_vsock
            || socket::getpeername::<VsockAddr>(socket.as_raw_fd())
                .is_ok_and(|address| address.cid() == CID_HOST)
    }
}

fn bind_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket =
        socket::socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::bind(socket.as_raw_fd(), &VsockAddr::new(CID_ANY, port))?;
    socket::listen(&socket, Backlog::new(WAITING)?)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    // Of a server that has ended.
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    Ok(std::os::unix::net::UnixListener::bind(path)?.into())
}
