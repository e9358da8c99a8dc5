//! Whether a program may bind ports below 1024: who has CAP_NET_BIND_SERVICE, as root usually does.
//!
//! The kernel's AF_VSOCK asks `capable()` of the caller. The node knows its caller by SO_PEERCRED: the process that
//! connected to the node's socket, which is the caller unless it handed the descriptor on. `/proc/PID/status` tells
//! its effective capabilities, as far as two traps allow:
//!
//! - The process may have ended and its number may belong to another. So it is held by a pidfd, and must still be
//!   alive *after* the file has been read: then the number was its own all the time.
//! - In a user namespace of its own everybody has all capabilities, and they are worth nothing outside. So its
//!   namespace must map users as ours does; `uid_map` is what says so without further privileges.
//!
//! Whatever cannot be found out means no, but for root, who usually has it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use vsock_virtio::sys::{PeerCredentials, peer_pidfd};

/// CAP_NET_BIND_SERVICE of capabilities(7), as a bit.
const NET_BIND_SERVICE: u64 = 1 << 10;

/// The question, to be answered by a thread that may read files.
#[derive(Debug)]
pub(crate) struct Inquiry {
    /// The process, if the kernel tells it of a socket.
    held: Option<OwnedFd>,
    peer: PeerCredentials,
}

impl Inquiry {
    /// About the program behind `socket`.
    pub(crate) fn new(socket: BorrowedFd<'_>, peer: PeerCredentials) -> Self {
        Self { held: peer_pidfd(socket), peer }
    }

    /// Whether the program may bind ports below 1024. Reads files.
    pub(crate) fn answer(self) -> bool {
        let peer = self.peer;
        self.has_capability().unwrap_or_else(|| is_privileged_unseen(peer))
    }

    fn has_capability(self) -> Option<bool> {
        let Self { held, peer } = self;
        let pid = i32::try_from(peer.pid).ok().and_then(Pid::from_raw)?;
        // Before Linux 6.5 a socket gives no pidfd; then the number may be another's already, but only one of the same
        // user, which is checked below.
        let held = match held {
            Some(held) => held,
            None => pidfd_open(pid, PidfdFlags::empty()).ok()?,
        };
        let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid)).ok()?;
        let its_users = std::fs::read_to_string(format!("/proc/{}/uid_map", peer.pid)).ok()?;
        let our_users = std::fs::read_to_string("/proc/self/uid_map").ok()?;
        let is_alive = !is_over(held.as_fd());
        let is_same_user = effective_user(&status)? == peer.uid;
        let has = effective_capabilities(&status)? & NET_BIND_SERVICE != 0;
        Some(is_alive && is_same_user && its_users == our_users && has)
    }
}

/// Whether a program may bind ports below 1024 of which nothing can be found out.
pub(crate) fn is_privileged_unseen(peer: PeerCredentials) -> bool {
    peer.uid == 0
}

/// A pidfd becomes readable when its process has ended.
fn is_over(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)) != Ok(0)
}

/// The number in the line `CapEff:` of a status file.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The second number in the line `Uid:` of a status file.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const STATUS: &str = "Name:\tx\nUid:\t1000\t1001\t1000\t1000\nCapEff:\t0000000000000400\n";

    #[test]
    fn status_file_tells_user_and_capabilities() {
        assert_eq!(effective_user(STATUS), Some(1001));
        assert_eq!(effective_capabilities(STATUS), Some(NET_BIND_SERVICE));
        assert_eq!(effective_capabilities("CapEff:\tnonsense\n"), None);
        assert_eq!(effective_user(""), None);
    }

    #[test]
    fn root_needs_no_look_at_its_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let root = PeerCredentials { pid: 0, uid: 0, gid: 0 };
        assert!(Inquiry::new(ours.as_fd(), root).answer());
        let unseen = PeerCredentials { pid: 0, uid: 1000, gid: 1000 };
        assert!(!Inquiry::new(ours.as_fd(), unseen).answer());
    }

    #[test]
    fn process_of_another_user_than_the_socket_says_gets_nothing() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = PeerCredentials { pid: std::process::id(), uid: 4_294_967_000, gid: 0 };
        assert_eq!(Inquiry::new(ours.as_fd(), peer).has_capability(), Some(false));
    }
}
