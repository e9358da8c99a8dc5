//! The Unix sockets at which a node listens.
//!
//! Who may enter their directories is not all that keeps other users out, and the umask is somebody else's choice: each
//! socket is for its user alone until it is given to others.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType as UnixType};
use vsock_core::SocketType;

use crate::host::directory::{Access, Directory};

/// Connections that may wait at a socket of ours.
const BACKLOG: i32 = 1024;

/// A listening Unix socket of the type that carries `kind`, for those whom `access` names. `prepare` is called before anybody
/// can connect.
pub(super) fn listen(
    path: &Path,
    kind: SocketType,
    access: Access,
    prepare: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> io::Result<UnixListener> {
    let unix = match kind {
        SocketType::Stream => UnixType::STREAM,
        SocketType::SeqPacket | SocketType::Datagram => UnixType::SEQPACKET,
    };
    let directory = Directory::of(path)?;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, unix, SocketFlags::CLOEXEC, None)?;
    // Before the socket has a name, which gets this mode: nobody comes in between.
    fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    prepare(&fd)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    let name = path.file_name().unwrap_or(OsStr::new("."));
    let granted = directory.grant(name, access);
    let listening = granted.and_then(|()| Ok(rustix::net::listen(&fd, BACKLOG)?));
    listening.inspect_err(|_| unlink(&[path.to_owned()]))?;
    Ok(fd.into())
}

/// Removes sockets of ours.
pub(super) fn unlink(paths: &[PathBuf]) {
    for path in paths {
        // Somebody may have cleaned up before us.
        let _ = std::fs::remove_file(path);
    }
}
