//! The first process of a guest: mounts what every program expects, loads modules, keeps a server running, and
//! reaps the children that others have left.
//!
//! The server is a process of its own, so that nothing that it does ends the guest.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SendFlags, SocketType, netlink};
use rustix::process::{Pid, WaitOptions};

use crate::arguments::{Arguments, WITHOUT_KEYS};
use crate::log;
use crate::process::OURSELVES;

/// Type, folder, options.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", "mode=755"),
    ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("tmpfs", "/tmp", "mode=1777"),
];

const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Modules to load, in the order of their names.
const MODULES: &str = "/usr/lib/vsock/modules";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long to wait before a server that has ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// Does not return: when the first process ends, the kernel panics.
///
/// # Errors
/// This is not the first process.
pub(crate) fn run(arguments: &Arguments) -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::Error::other("--init is for the first process of a guest"));
    }
    for (kind, folder, options) in MOUNTS {
        warn(folder, mount_at(kind, folder, options));
    }
    for (link, target) in LINKS {
        // It may be there already.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    load_modules();
    warn("lo", raise_loopback());
    let mut command = start_command(&arguments.command);
    let mut server = start_server(&arguments.of_server);
    loop {
        let options = if server.is_some() { WaitOptions::empty() } else { WaitOptions::NOHANG };
        let (pid, status) = match rustix::process::wait(options) {
            Ok(Some(ended)) => ended,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => {
                // The server has ended, or could not be started.
                std::thread::sleep(PAUSE);
                server = start_server(&arguments.of_server);
                continue;
            }
        };
        let status = ExitStatus::from_raw(status.as_raw());
        if is(&server, pid) {
            log::say(format_args!("the server has ended ({status}); starting it again"));
            server = None;
        } else if is(&command, pid) {
            log::say(format_args!("{} has ended ({status})", arguments.command[0].display()));
            command = None;
        }
    }
}

fn is(child: &Option<Child>, pid: Pid) -> bool {
    child.as_ref().is_some_and(|child| Pid::from_child(child) == pid)
}

fn warn(what: &str, done: io::Result<()>) {
    if let Err(error) = done {
        log::say(format_args!("{what}: {error}"));
    }
}

fn mount_at(kind: &str, folder: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // By the kernel, or by an initramfs before us: what is in it must not be hidden.
    if is_mount_point(Path::new(folder))? {
        return Ok(());
    }
    let options = std::ffi::CString::new(options)?;
    match mount(kind, folder, kind, MountFlags::NOSUID, Some(options.as_c_str())) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_mount_point(folder: &Path) -> io::Result<bool> {
    let parent = folder.parent().unwrap_or(folder);
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}

fn load_modules() {
    let mut files: Vec<PathBuf> =
        fs::read_dir(MODULES).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        warn(&file.display().to_string(), load_module(&file));
    }
}

fn load_module(file: &Path) -> io::Result<()> {
    match rustix::system::finit_module(File::open(file)?, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What `ip link set lo up` does: services of the guest listen there. See rtnetlink(7).
fn raise_loopback() -> io::Result<()> {
    const NEW_LINK: u16 = 16;
    const REQUEST: u16 = 1;
    const LOOPBACK: i32 = 1;
    const UP: u32 = 1;
    let mut message = Vec::new();
    message.extend(32u32.to_ne_bytes()); // of the whole message
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]); // sequence number, port
    message.extend([0; 4]); // family, padding, type of device
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes()); // the flags that change
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?; // NETLINK_ROUTE is 0
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    Ok(())
}

fn start_server(options: &[OsString]) -> Option<Child> {
    let path = if Path::new(OURSELVES).exists() {
        OsString::from(OURSELVES)
    } else {
        std::env::args_os().next()?
    };
    started("the server", Command::new(path).arg0("vsock-sshd").arg(WITHOUT_KEYS).args(options))
}

fn start_command(words: &[OsString]) -> Option<Child> {
    let (name, arguments) = words.split_first()?;
    let mut command = Command::new(name);
    started(&name.to_string_lossy(), command.args(arguments).stdin(Stdio::null()))
}

/// Starts a program in a process group of its own.
fn started(what: &str, command: &mut Command) -> Option<Child> {
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", PATH);
    }
    match command.process_group(0).spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            warn(what, Err(error));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_recognized() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        assert!(!is_mount_point(&folder.path().join("inner")).unwrap());
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/")).unwrap());
    }
}
