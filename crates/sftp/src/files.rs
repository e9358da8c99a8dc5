//! What SFTP asks of files, in the words of the kernel.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::packet::Attributes;

pub(crate) const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
pub(crate) const CREATE: u32 = 8;
const TRUNCATE: u32 = 16;
/// With `CREATE`: what is there is not opened.
pub(crate) const NEW: u32 = 32;

/// Opens a file as the flags of SFTP say.
pub(crate) fn open(path: &Path, flags: u32, wanted: &Attributes) -> io::Result<File> {
    let has = |flag| flags & flag != 0;
    let mut options = OpenOptions::new();
    options
        .read(has(READ))
        .write(has(WRITE))
        .append(has(APPEND))
        .mode(wanted.mode.unwrap_or(0o666) & 0o7777);
    // Without writing these are meaningless, and refused.
    options.truncate(has(TRUNCATE)).create(has(CREATE)).create_new(has(CREATE) && has(NEW));
    options.open(path)
}

/// A line for people, such as `ls -l` has; programs read the attributes.
pub(crate) fn long_name(name: &OsStr, found: &Metadata) -> Vec<u8> {
    let kind = match found.mode() & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o100_000 => '-',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        _ => 's',
    };
    let letters = |bits: u32| {
        ['r', 'w', 'x'].iter().enumerate().map(move |(at, letter)| match bits >> (2 - at) & 1 {
            0 => '-',
            _ => *letter,
        })
    };
    let mode = found.mode();
    let rights: String = [mode >> 6, mode >> 3, mode].into_iter().flat_map(letters).collect();
    let (links, user, group, size) = (found.nlink(), found.uid(), found.gid(), found.size());
    let mut line = format!("{kind}{rights} {links:3} {user:8} {group:8} {size:12} ").into_bytes();
    line.extend(name.as_bytes());
    line
}

/// The absolute path; the last name need not be there.
pub(crate) fn real_path(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(error);
            };
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            Ok(fs::canonicalize(folder)?.join(name))
        }
        done => done,
    }
}

/// Removes what is no folder.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    fs::remove_file(path)
}

/// As the third version has it: what has the new name stays.
pub(crate) fn rename(old: &Path, new: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, old, CWD, new, RenameFlags::NOREPLACE) {
        // A file system that does not know this.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if fs::symlink_metadata(new).is_ok() {
                return Err(Errno::EXIST.into());
            }
            fs::rename(old, new)
        }
        done => Ok(done?),
    }
}

/// Changes an open file.
pub(crate) fn change_file(file: &File, wanted: &Attributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owners {
        std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.mode {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((read, written)) = wanted.times {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(seconds));
        file.set_times(FileTimes::new().set_accessed(time(read)).set_modified(time(written)))?;
    }
    Ok(())
}

/// Changes what has a path; `follow`: what a link leads to.
pub(crate) fn change(path: &Path, wanted: &Attributes, follow: bool) -> io::Result<()> {
    if let Some(size) = wanted.size.filter(|_| follow) {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owners {
        let change = if follow { std::os::unix::fs::chown } else { std::os::unix::fs::lchown };
        change(path, Some(user), Some(group))?;
    }
    // Linux has no mode for a link.
    if let Some(mode) = wanted.mode.filter(|_| follow || !path.is_symlink()) {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((read, written)) = wanted.times {
        let time = |seconds| Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
        let times = Timestamps { last_access: time(read), last_modification: time(written) };
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        rustix::fs::utimensat(CWD, path, &times, flags)?;
    }
    Ok(())
}
