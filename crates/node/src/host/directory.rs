//! The directory that a Unix socket is in, held open: the sockets that a node connects to by name are looked up in it.
//!
//! A switch may have more rights than whoever can write to the directory: it runs as root, and the directory is a user's.
//! That user could make the switch connect to any socket of the machine by a symbolic link. So the entry itself is opened,
//! no link is followed, and only a socket of the directory's owner is connected to.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chmod, chownat, fcntl_getfl, fstat, openat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;
use vsock_core::Refusal;
use vsock_core::saved::{Unfit, check};

use super::socket::{ProgramSocket, Sockets};

/// Who may connect to a socket besides its user, as its file says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// The file's owner, if not the node's user.
    pub(crate) user: Option<u32>,
    /// The file's group, if not the node's.
    pub(crate) group: Option<u32>,
    /// The file's permission bits; 0: read and write for its owner.
    pub(crate) mode: u32,
}

/// A directory with sockets.
#[derive(Clone, Debug)]
pub(crate) struct Directory(Arc<OwnedFd>);

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Directory {
    /// The directory that the file at `path` is in, or is to be in. Links above it are followed: whoever chose the path
    /// chose them too.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(directory.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        Ok(Self(Arc::new(fd)))
    }

    /// One that a predecessor has opened.
    pub(crate) fn restore(fd: OwnedFd) -> Result<Self, Unfit> {
        // fstat could wait for the file system, and this is not a helper's thread.
        let flags = fcntl_getfl(&fd).map_err(|_| Unfit::Descriptor)?;
        check(flags.contains(OFlags::PATH | OFlags::DIRECTORY), Unfit::Descriptor)?;
        Ok(Self(Arc::new(fd)))
    }

    /// The file of this name, which is not followed if it is a link.
    fn open(&self, name: &OsStr) -> Result<(OwnedFd, Stat), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self, name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        Ok((file, stat))
    }

    /// Lets others in at a socket of ours that has just been bound under this name.
    pub(crate) fn grant(&self, name: &OsStr, access: Access) -> io::Result<()> {
        if access == Access::default() {
            return Ok(());
        }
        let (file, stat) = self.open(name)?;
        if !is_single_socket(&stat) || stat.st_uid != geteuid().as_raw() {
            return Err(io::Error::other("another file has taken the socket's name"));
        }
        let Access { user, group, mode } = access;
        chownat(&file, "", user.map(Uid::from_raw), group.map(Gid::from_raw), AtFlags::EMPTY_PATH)?;
        if mode != 0 {
            chmod(link_to(&file), Mode::from_raw_mode(mode))?;
        }
        Ok(())
    }

    /// A stream that is connected to the socket of this name. May take as long as the file system does.
    ///
    /// A program whose backlog is full counts as a refusal: waiting for it would keep others waiting.
    ///
    /// # Errors
    /// No socket is there, nobody listens at it, or it is not to be trusted; or no descriptors are left.
    pub(crate) fn connect(
        &self,
        name: &OsStr,
        sockets: &Sockets,
    ) -> Result<ProgramSocket, Refusal> {
        let (file, stat) = self.open(name).map_err(|error| match error {
            Errno::MFILE | Errno::NFILE => Refusal::OutOfDescriptors,
            _ => Refusal::NoHybridSocket,
        })?;
        let directory = fstat(self).map_err(|_| Refusal::NoHybridSocket)?;
        if !may_serve(&directory, &stat, geteuid().as_raw()) {
            return Err(Refusal::ForeignSocket);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|_| Refusal::OutOfDescriptors)?;
        let socket = sockets.prepare(fd, vsock_core::SocketType::Stream);
        let socket = socket.map_err(|_| Refusal::NoHybridSocket)?;
        // This very file, whatever has its name by now.
        SocketAddrUnix::new(link_to(&file))
            .and_then(|address| connect(&socket, &address))
            .map_err(|_| Refusal::NoHybridSocket)?;
        Ok(socket)
    }
}

/// A path to an open file.
fn link_to(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A socket without a second name: whoever may write to a directory can put a hard link to another's socket there.
fn is_single_socket(file: &Stat) -> bool {
    FileType::from_raw_mode(file.st_mode) == FileType::Socket && file.st_nlink == 1
}

/// Whether a file is a socket that its directory's owner has put there. In a sticky directory, such as `/tmp`, it may
/// also be a socket of the node's own user.
fn may_serve(directory: &Stat, file: &Stat, own: u32) -> bool {
    let is_sticky = Mode::from_raw_mode(directory.st_mode).contains(Mode::SVTX);
    let is_owners = file.st_uid == directory.st_uid || (is_sticky && file.st_uid == own);
    is_single_socket(file) && is_owners
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A directory that goes with the test, and a socket in it at which somebody listens.
    struct Lab {
        path: PathBuf,
        directory: Directory,
        _listener: UnixListener,
    }

    impl Lab {
        fn new(name: &str) -> Self {
            let file = format!("vsock-directory-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(file);
            std::fs::create_dir(&path).unwrap();
            let listener = UnixListener::bind(path.join("socket")).unwrap();
            let directory = Directory::of(&path.join("socket")).unwrap();
            Self { path, directory, _listener: listener }
        }

        fn connect(&self, name: &str) -> Result<(), Refusal> {
            self.directory.connect(name.as_ref(), &Sockets::alone()).map(|_| ())
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            // Left behind in the directory for temporary files, if this fails.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }

    #[test]
    fn only_a_socket_itself_is_connected_to() {
        let lab = Lab::new("kinds");
        assert_eq!(lab.connect("socket"), Ok(()));
        assert_eq!(lab.connect("nothing"), Err(Refusal::NoHybridSocket));
        symlink(lab.path.join("socket"), lab.path.join("link")).unwrap();
        std::fs::write(lab.path.join("file"), "").unwrap();
        for name in ["link", "file", ".", ".."] {
            assert_eq!(lab.connect(name), Err(Refusal::ForeignSocket), "{name}");
        }
        std::fs::hard_link(lab.path.join("socket"), lab.path.join("second")).unwrap();
        assert_eq!(lab.connect("second"), Err(Refusal::ForeignSocket));
    }

    #[test]
    fn directory_that_another_has_replaced_stays_the_one_that_was_opened() {
        let lab = Lab::new("replaced");
        let aside = lab.path.with_extension("aside");
        std::fs::rename(&lab.path, &aside).unwrap();
        std::fs::create_dir(&lab.path).unwrap();
        let _other = UnixListener::bind(lab.path.join("other")).unwrap();
        assert_eq!(lab.connect("other"), Err(Refusal::NoHybridSocket));
        assert_eq!(lab.connect("socket"), Ok(()));
        std::fs::remove_dir_all(aside).unwrap();
    }

    #[test]
    fn socket_is_its_directorys_owners_or_in_a_sticky_directory_the_nodes() {
        let lab = Lab::new("owners");
        let (mut directory, (_, mut file)) =
            (fstat(&lab.directory).unwrap(), lab.directory.open("socket".as_ref()).unwrap());
        let (node, owner, other) = (0, 1000, 1001);
        directory.st_uid = owner;
        for (uid, in_sticky, in_other) in
            [(owner, true, true), (node, true, false), (other, false, false)]
        {
            file.st_uid = uid;
            directory.st_mode = 0o041_777;
            assert_eq!(may_serve(&directory, &file, node), in_sticky, "{uid}");
            directory.st_mode = 0o040_777;
            assert_eq!(may_serve(&directory, &file, node), in_other, "{uid}");
        }
    }

    #[test]
    fn mode_is_what_was_asked_for_and_only_a_socket_of_ours_gets_it() {
        let lab = Lab::new("access");
        let own = rustix::process::getegid().as_raw();
        let access = Access { user: None, group: Some(own), mode: 0o666 };
        let before = std::fs::metadata(lab.path.join("socket")).unwrap();
        lab.directory.grant("socket".as_ref(), Access::default()).unwrap();
        let after = std::fs::metadata(lab.path.join("socket")).unwrap();
        assert_eq!(before.permissions(), after.permissions());
        lab.directory.grant("socket".as_ref(), access).unwrap();
        let after = std::fs::metadata(lab.path.join("socket")).unwrap();
        assert_eq!((after.permissions().mode() & 0o7777, after.gid()), (0o666, own));
        let victim = lab.path.join("victim");
        std::fs::write(&victim, "").unwrap();
        let mode = std::fs::metadata(&victim).unwrap().permissions();
        symlink(&victim, lab.path.join("link")).unwrap();
        std::fs::hard_link(lab.path.join("socket"), lab.path.join("second")).unwrap();
        for name in ["link", "victim", "second"] {
            assert!(lab.directory.grant(name.as_ref(), access).is_err(), "{name}");
        }
        assert_eq!(std::fs::metadata(&victim).unwrap().permissions(), mode);
    }

    #[test]
    fn descriptor_that_is_no_directory_is_not_restored() {
        let lab = Lab::new("restored");
        let fd = lab.directory.as_fd().try_clone_to_owned().unwrap();
        let directory = Directory::restore(fd).unwrap();
        assert!(directory.connect("socket".as_ref(), &Sockets::alone()).is_ok());
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        assert_eq!(Directory::restore(fd).err(), Some(Unfit::Descriptor));
    }
}
