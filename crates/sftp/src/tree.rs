//! What the paths of a client lead to: any file of this machine, or only those in one folder.
//!
//! A folder is confined by the kernel: openat2(2) resolves each path below it, and what that finds is from then on named by
//! its descriptor, as `/proc/self/fd/N`, also for calls that know paths alone. No path is compared as text, and a folder that
//! is exchanged for a link between two calls changes nothing. Landlock is a second layer (`restrict_process`).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use vsock_sandbox::State;

use crate::files;
use crate::packet::Attributes;

/// How often something is tried that another process has interfered with.
const ATTEMPTS: usize = 16;
/// The file system /proc (statfs(2)).
const PROC: rustix::fs::FsWord = 0x9fa0;
/// Bits of a mode that a client of a folder may set: none that gives a program its owner's rights.
const MODE: u32 = 0o777;

/// The files that a client may name.
#[derive(Debug)]
pub(crate) enum Tree {
    /// All of this machine, with the rights of this process.
    Machine,
    /// Those in a folder and on its file system; `/` is the folder itself.
    Folder { root: OwnedFd, is_writable: bool },
}

/// A path for system calls, which leads to the same file as long as this value lives.
#[derive(Debug)]
pub(crate) struct Found {
    path: PathBuf,
    /// What the path begins with.
    pin: Option<OwnedFd>,
}

impl Deref for Found {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Found {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Found {
    fn anywhere(path: &Path) -> Found {
        Found { path: path.to_owned(), pin: None }
    }

    fn pinned(pin: OwnedFd) -> Found {
        Found { path: format!("/proc/self/fd/{}", pin.as_raw_fd()).into(), pin: Some(pin) }
    }

    fn joined(mut self, name: &OsStr) -> Found {
        self.path.push(name);
        self
    }
}

impl Tree {
    /// The files in a folder, to which no link leads: a client of another one might have exchanged it for a link.
    pub(crate) fn folder(path: &Path, is_writable: bool) -> io::Result<Tree> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let root = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)
            .map_err(|error| match error {
                Errno::NOSYS => io::Error::other("no openat2(2): use Linux 5.6 or later"),
                _ => error.into(),
            })?;
        // Whatever its path: a mount of a part of it may be anywhere.
        if rustix::fs::fstatfs(&root)?.f_type == PROC {
            return Err(io::Error::other("its files stand for processes, and are not shared"));
        }
        let tree = Tree::Folder { root, is_writable };
        fs::metadata(tree.find(Path::new("/"))?)
            .map_err(|error| io::Error::new(error.kind(), format!("/proc/self/fd: {error}")))?;
        Ok(tree)
    }

    /// Takes all other files from this process, as far as the kernel lets it.
    pub(crate) fn restrict_process(&self) -> io::Result<State> {
        match self {
            Tree::Machine => Ok(State::Disabled),
            Tree::Folder { root, is_writable } => {
                vsock_sandbox::keep_folder(root.as_fd(), *is_writable)
            }
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        matches!(self, Tree::Machine | Tree::Folder { is_writable: true, .. })
    }

    /// What a path leads to, and a link at its end.
    pub(crate) fn find(&self, path: &Path) -> io::Result<Found> {
        match self {
            Tree::Machine => Ok(Found::anywhere(path)),
            Tree::Folder { root, .. } => Ok(Found::pinned(beneath(root, path, OFlags::empty())?)),
        }
    }

    /// A name in a folder, for calls that follow no link at the end of a path. The name need not be there.
    pub(crate) fn name(&self, path: &Path) -> io::Result<Found> {
        let Tree::Folder { root, .. } = self else { return Ok(Found::anywhere(path)) };
        let (folder, name) = match path.components().next_back() {
            Some(Component::Normal(name)) => (path.parent().unwrap_or(Path::new("")), name),
            // The folder itself, or what `..` leads to.
            _ => (path, OsStr::new(".")),
        };
        Ok(Found::pinned(beneath(root, folder, OFlags::DIRECTORY)?).joined(name))
    }

    /// Opens a file as the flags of SFTP say; in a folder no device and no FIFO, where opening alone does something.
    pub(crate) fn open(&self, path: &Path, flags: u32, wanted: &Attributes) -> io::Result<File> {
        if matches!(self, Tree::Machine) {
            return files::open(path, flags, wanted);
        }
        let wanted = Attributes { mode: wanted.mode.map(|mode| mode & MODE), ..wanted.clone() };
        if flags & files::CREATE == 0 {
            return self.open_found(path, flags, &wanted);
        }
        for _ in 0..ATTEMPTS {
            if flags & files::NEW == 0 {
                match self.open_found(path, flags & !files::CREATE, &wanted) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => return done,
                }
            }
            match files::open(&self.name(path)?, flags | files::NEW, &wanted) {
                // Made meanwhile, or a link that leads nowhere, which is not followed.
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && flags & files::NEW == 0 => {}
                done => return done,
            }
        }
        Err(Errno::EXIST.into())
    }

    fn open_found(&self, path: &Path, flags: u32, wanted: &Attributes) -> io::Result<File> {
        let found = self.find(path)?;
        regular(&fs::metadata(&found)?)?;
        files::open(&found, flags, wanted)
    }

    /// Changes what has a path; `follow`: what a link leads to.
    pub(crate) fn change(&self, path: &Path, wanted: &Attributes, follow: bool) -> io::Result<()> {
        let Tree::Folder { root, .. } = self else { return files::change(path, wanted, follow) };
        let flags = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let found = Found::pinned(beneath(root, path, flags)?);
        let wanted = admitted(wanted, &fs::metadata(&found)?)?;
        // What is pinned is the link, or what it leads to: the kernel follows no more than `/proc/self/fd/N`.
        files::change(&found, &wanted, true)
    }

    /// Changes an open file.
    pub(crate) fn change_file(&self, file: &File, wanted: &Attributes) -> io::Result<()> {
        match self {
            Tree::Machine => files::change_file(file, wanted),
            Tree::Folder { .. } => files::change_file(file, &admitted(wanted, &file.metadata()?)?),
        }
    }

    /// The mode of a new folder.
    pub(crate) fn new_mode(&self, wanted: u32) -> u32 {
        wanted & if matches!(self, Tree::Machine) { 0o7777 } else { MODE }
    }

    /// Whether a client may make a link to a target. Programs of this machine follow links, and so none may lead out of a
    /// folder, also when it was moved to another place in it.
    pub(crate) fn check_target(&self, target: &Path) -> io::Result<()> {
        let leads_out = |part| matches!(part, Component::RootDir | Component::ParentDir);
        match self {
            Tree::Folder { .. } if target.components().any(leads_out) => Err(Errno::PERM.into()),
            Tree::Machine | Tree::Folder { .. } => Ok(()),
        }
    }

    /// Whether a client may give what has a name another one. A link may be harmless where it is and lead out from elsewhere.
    pub(crate) fn check_move(&self, old: &Found, new: &Found) -> io::Result<()> {
        let (Some(from), Some(to)) = (&old.pin, &new.pin) else { return Ok(()) };
        let (from, to) = (rustix::fs::fstat(from)?, rustix::fs::fstat(to)?);
        if (from.st_dev, from.st_ino) == (to.st_dev, to.st_ino) {
            return Ok(());
        }
        match fs::read_link(old) {
            Ok(target) => self.check_target(&target),
            // No link, or nothing.
            Err(_) => Ok(()),
        }
    }

    /// The absolute path as the client sees it; the last name need not be there.
    pub(crate) fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        if matches!(self, Tree::Machine) {
            return files::real_path(path);
        }
        // Only a text: each use of it is resolved by the kernel.
        let mut whole = PathBuf::from("/");
        for part in path.components() {
            match part {
                Component::Normal(name) => whole.push(name),
                Component::ParentDir => drop(whole.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(whole)
    }
}

/// What of the changes that a client of a folder wants is carried out.
fn admitted(wanted: &Attributes, of: &Metadata) -> io::Result<Attributes> {
    if wanted.size.is_some() {
        regular(of)?;
    }
    // Files stay their owners'.
    if wanted.owners.is_some_and(|owners| owners != (of.uid(), of.gid())) {
        return Err(Errno::PERM.into());
    }
    // Linux has no mode for a link.
    let mode = wanted.mode.filter(|_| !of.is_symlink()).map(|mode| mode & MODE);
    Ok(Attributes { owners: None, mode, ..wanted.clone() })
}

/// Opens what is at a path below a folder, not to read or write it.
fn beneath(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = relative(path);
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    // Another file system may be one whose files stand for something else, such as /proc.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(root, &path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile, and the kernel cannot rule out that `..` leads out.
            Err(Errno::AGAIN) => {}
            // It leads out.
            Err(Errno::XDEV) => return Err(Errno::ACCESS.into()),
            done => return Ok(done?),
        }
    }
    Err(Errno::ACCESS.into())
}

fn relative(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let begin = bytes.iter().position(|byte| *byte != b'/').unwrap_or(bytes.len());
    match bytes.get(begin..) {
        None | Some(b"") => OsString::from("."),
        Some(rest) => OsString::from_vec(rest.to_vec()),
    }
}

fn regular(file: &Metadata) -> io::Result<()> {
    match file.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(Errno::ISDIR.into()),
        _ => Err(Errno::ACCESS.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use super::*;

    const WRITE: u32 = 2;
    const TRUNCATE: u32 = 16;

    /// A folder `in` with `file` and `inner/file`, and beside it the file `secret`.
    fn place() -> (TempDir, Tree) {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("in");
        fs::create_dir_all(folder.join("inner")).unwrap();
        fs::write(folder.join("file"), "of the folder").unwrap();
        fs::write(folder.join("inner/file"), "of the folder").unwrap();
        fs::write(place.path().join("secret"), "of the host").unwrap();
        let tree = Tree::folder(&folder, true).unwrap();
        (place, tree)
    }

    fn no_change() -> Attributes {
        Attributes::default()
    }

    fn code<T>(done: io::Result<T>) -> Option<Errno> {
        done.err().and_then(|error| Errno::from_io_error(&error))
    }

    /// What every way to name a file gives that is not in the folder.
    fn refused(tree: &Tree, path: &str) {
        let path = Path::new(path);
        let mode = Attributes { mode: Some(0o777), ..no_change() };
        assert!(tree.find(path).is_err(), "{path:?}");
        for flags in [1, WRITE, WRITE | TRUNCATE, WRITE | files::CREATE] {
            assert!(tree.open(path, flags, &no_change()).is_err(), "{path:?} {flags}");
        }
        assert!(tree.change(path, &mode, true).is_err(), "{path:?}");
    }

    #[test]
    fn paths_lead_to_the_folder_whatever_they_look_like() {
        let (_place, tree) = place();
        for path in ["file", "/file", "//./file", "inner/../file", "/inner/../inner/file"] {
            let mut file = tree.open(Path::new(path), 1, &no_change()).unwrap();
            assert_eq!(io::read_to_string(&mut file).unwrap(), "of the folder", "{path}");
        }
        for path in ["", "/", ".", "/.", "inner/..", "//"] {
            assert!(fs::metadata(tree.find(Path::new(path)).unwrap()).unwrap().is_dir(), "{path}");
            let name = tree.name(Path::new(path)).unwrap();
            assert!(fs::symlink_metadata(name).unwrap().is_dir(), "{path}");
        }
    }

    #[test]
    fn dots_and_links_do_not_lead_out() {
        let (place, tree) = place();
        let folder = place.path().join("in");
        let secret = place.path().join("secret");
        symlink(&secret, folder.join("absolute")).unwrap();
        symlink("../secret", folder.join("up")).unwrap();
        symlink("..", folder.join("above")).unwrap();
        symlink("/proc/self/root", folder.join("magic")).unwrap();
        symlink(format!("/proc/self/fd/{}", 0), folder.join("descriptor")).unwrap();
        symlink("../new", folder.join("dangling")).unwrap();
        for path in [
            "../secret",
            "/../secret",
            "inner/../../secret",
            "absolute",
            "up",
            "above/secret",
            "above/in/file",
            "magic/etc/passwd",
            "descriptor",
            "dangling",
        ] {
            refused(&tree, path);
        }
        for path in ["..", "/..", "inner/../..", "above/new", "../new", "magic/tmp/new"] {
            assert_eq!(code(tree.name(Path::new(path))), Some(Errno::ACCESS), "{path}");
        }
        assert!(!place.path().join("new").exists());
        assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
        assert_ne!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o777);
    }

    #[test]
    fn link_within_is_followed_and_a_link_itself_can_be_changed() {
        let (place, tree) = place();
        let link = place.path().join("in/link");
        symlink("inner/file", &link).unwrap();
        assert!(tree.open(Path::new("link"), 1, &no_change()).is_ok());
        let wanted = Attributes { mode: Some(0o604), times: Some((1, 2)), ..no_change() };
        tree.change(Path::new("link"), &wanted, false).unwrap();
        assert_eq!(fs::symlink_metadata(&link).unwrap().mtime(), 2);
        let target = fs::metadata(&link).unwrap();
        assert!(target.mtime() != 2 && target.mode() & 0o777 != 0o604);
        tree.change(Path::new("link"), &wanted, true).unwrap();
        let target = fs::metadata(&link).unwrap();
        assert_eq!((target.mtime(), target.mode() & 0o777), (2, 0o604));
    }

    #[test]
    fn links_that_lead_out_are_not_made() {
        let (_place, tree) = place();
        for target in ["/etc/passwd", "..", "../secret", "inner/../../secret", "/"] {
            assert_eq!(code(tree.check_target(Path::new(target))), Some(Errno::PERM), "{target}");
        }
        for target in ["file", "inner/file", "./file", "..."] {
            assert!(tree.check_target(Path::new(target)).is_ok(), "{target}");
        }
    }

    #[test]
    fn link_with_dots_keeps_its_folder() {
        let (place, tree) = place();
        let folder = place.path().join("in");
        symlink("../file", folder.join("inner/link")).unwrap();
        symlink("file", folder.join("inner/plain")).unwrap();
        let moved = |old: &str, new: &str| {
            let (old, new) =
                (tree.name(Path::new(old)).unwrap(), tree.name(Path::new(new)).unwrap());
            code(tree.check_move(&old, &new))
        };
        assert_eq!(moved("inner/link", "link"), Some(Errno::PERM));
        assert_eq!(moved("inner/../inner/link", "inner/.././link"), Some(Errno::PERM));
        for (old, new) in [
            ("inner/link", "/inner/other"),
            ("inner/plain", "plain"),
            ("inner/file", "other"),
            ("inner/missing", "other"),
            ("inner", "other"),
        ] {
            assert_eq!(moved(old, new), None, "{old} {new}");
        }
    }

    #[test]
    fn files_that_stand_for_processes_are_not_shared() {
        for path in ["/proc", "/proc/sys"] {
            assert!(Tree::folder(Path::new(path), false).is_err(), "{path}");
        }
    }

    /// What the first layer lets through by mistake, the second one does not.
    #[test]
    fn kernel_itself_keeps_the_server_in_the_folder_and_from_writing() {
        for is_writable in [false, true] {
            let (place, _) = place();
            let (inside, outside) = (place.path().join("in/file"), place.path().join("secret"));
            let tree = Tree::folder(&place.path().join("in"), is_writable).unwrap();
            // Restrictions are a thread's, and end with it.
            let restricted = thread::spawn(move || {
                let state = tree.restrict_process().unwrap();
                let write = |path| fs::OpenOptions::new().write(true).open(path);
                let done =
                    [File::open(&inside), write(&inside), File::open(&outside), write(&outside)];
                (state, done.map(code))
            });
            let (state, done) = restricted.join().unwrap();
            if state != State::On {
                eprintln!("the sandbox is {state}");
                return;
            }
            let no = Some(Errno::ACCESS);
            assert_eq!(done, [None, if is_writable { None } else { no }, no, no]);
        }
    }

    #[test]
    fn fifo_and_socket_are_not_opened() {
        let (place, tree) = place();
        let folder = place.path().join("in");
        let kind = rustix::fs::FileType::Fifo;
        let fifo = folder.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::RWXU, 0).unwrap();
        // With both ends open, a server that does open it fails here and does not wait.
        let _ends = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        let size = Attributes { size: Some(0), ..no_change() };
        for name in ["fifo", "socket"] {
            for flags in [1, WRITE, 1 | WRITE, WRITE | files::CREATE] {
                let done = tree.open(Path::new(name), flags, &no_change());
                assert_eq!(code(done), Some(Errno::ACCESS), "{name} {flags}");
            }
            let done = tree.change(Path::new(name), &size, true);
            assert_eq!(code(done), Some(Errno::ACCESS), "{name}");
        }
    }

    #[test]
    fn nobody_gets_the_rights_of_an_owner() {
        let (place, tree) = place();
        let file = place.path().join("in/file");
        let mode = Attributes { mode: Some(0o107_755), ..no_change() };
        tree.change(Path::new("file"), &mode, true).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o755);
        let open = tree.open(Path::new("new"), WRITE | files::CREATE, &mode).unwrap();
        tree.change_file(&open, &mode).unwrap();
        assert_eq!(open.metadata().unwrap().mode() & 0o7777, 0o755);
        assert_eq!(tree.new_mode(0o7777), 0o777);
        let found = fs::metadata(&file).unwrap();
        for (owners, answer) in [
            ((found.uid(), found.gid()), None),
            ((found.uid() + 1, found.gid()), Some(Errno::PERM)),
            ((found.uid(), found.gid() + 1), Some(Errno::PERM)),
        ] {
            let wanted = Attributes { owners: Some(owners), ..no_change() };
            assert_eq!(code(tree.change(Path::new("file"), &wanted, true)), answer, "{owners:?}");
            assert_eq!(code(tree.change_file(&open, &wanted)), answer, "{owners:?}");
        }
    }

    #[test]
    fn other_file_systems_are_not_part_of_the_folder() {
        let tree = Tree::folder(Path::new("/"), false).unwrap();
        refused(&tree, "/proc/self/mem");
        refused(&tree, "/proc/version");
    }

    #[test]
    fn folder_that_is_exchanged_for_a_link_leads_nowhere_else() {
        let (place, tree) = place();
        let folder = place.path().join("in");
        let outside = place.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "of the host").unwrap();
        symlink(&outside, folder.join("link")).unwrap();
        let is_over = AtomicBool::new(false);
        let end = Instant::now() + Duration::from_secs(10);
        let exchange = || {
            let (inner, link) = (folder.join("inner"), folder.join("link"));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let cwd = rustix::fs::CWD;
            while !is_over.load(Ordering::Relaxed) && Instant::now() < end {
                rustix::fs::renameat_with(cwd, &inner, cwd, &link, flags).unwrap();
            }
        };
        let (mut reached, mut missed) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(exchange);
            // Until both have been seen often enough: on a busy machine one of the two may run alone for a while.
            while (reached < 500 || missed < 500) && Instant::now() < end {
                match tree.open(Path::new("inner/file"), 1, &no_change()) {
                    Ok(mut file) => {
                        assert_eq!(io::read_to_string(&mut file).unwrap(), "of the folder");
                        reached += 1;
                    }
                    Err(_) => missed += 1,
                }
                if let Ok(name) = tree.name(Path::new("inner/new")) {
                    let _ = fs::write(name, "new");
                }
                let mode = Attributes { mode: Some(0o611), ..no_change() };
                let _ = tree.change(Path::new("inner/file"), &mode, true);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(reached > 0 && missed > 0, "{reached} {missed}");
        assert!(!outside.join("new").exists());
        assert_ne!(fs::metadata(outside.join("file")).unwrap().mode() & 0o777, 0o611);
    }
}
