//! How a driver is signalled on one ring: on the front end's own eventfd, or by way of the control thread.
//!
//! The worker serves every guest, so it touches no file whose code may wait for a front end: a pipe has a lock that is held
//! for as long as somebody's write to it lasts, a socket does what its peer decides. It signals eventfds alone, and
//! without waiting. User-Mode Linux has a socket instead of an eventfd (older ones a pipe). For these the worker signals an eventfd of
//! ours, and the control thread of that guest, which waits for nobody else, writes to the front end's file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::sys::{PeerCredentials, check_signals, is_eventfd, is_pipe_or_stream, signal};

/// Whether the worker may signal the eventfds of front ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signals {
    /// It may: the kernel has signals that do not wait.
    AtOnce,
    /// It may not: all signals go by way of the control thread.
    Relayed,
}

impl Signals {
    /// What the kernel has for us.
    pub(super) fn of_this_kernel() -> Self {
        if check_signals().is_ok() { Self::AtOnce } else { Self::Relayed }
    }
}

/// The call descriptor of one ring.
pub(super) struct Call {
    /// What the worker signals.
    eventfd: OwnedFd,
    /// The front end's file, if that is another.
    relayed_to: Option<OwnedFd>,
}

impl Call {
    /// Takes what a front end of this user wants to be signalled on. `None`: the file is neither an eventfd nor a pipe nor a
    /// Unix stream socket whose other end is that user's. Who asks for credentials at another's end would take what the
    /// switch writes for its word.
    pub(super) fn new(theirs: OwnedFd, signals: Signals, uid: u32) -> io::Result<Option<Self>> {
        let is_eventfd = is_eventfd(&theirs)?;
        if is_eventfd && signals == Signals::AtOnce {
            return Ok(Some(Self { eventfd: theirs, relayed_to: None }));
        }
        let can_relay = is_eventfd || (is_pipe_or_stream(&theirs) && is_of(&theirs, uid));
        if !can_relay {
            return Ok(None);
        }
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Some(Self { eventfd, relayed_to: Some(theirs) }))
    }

    /// One that was saved; `None`: the files are not such as front ends can have, or the worker may not signal this one here.
    pub(super) fn restore(
        eventfd: OwnedFd,
        relayed_to: Option<OwnedFd>,
        signals: Signals,
    ) -> Option<Self> {
        let is_known = |fd: &OwnedFd| is_eventfd(fd).is_ok_and(|is_eventfd| is_eventfd);
        let can_relay = |fd: &OwnedFd| is_known(fd) || is_pipe_or_stream(fd);
        let may_signal = relayed_to.is_some() || signals == Signals::AtOnce;
        let fits = may_signal && is_known(&eventfd) && relayed_to.as_ref().is_none_or(can_relay);
        fits.then_some(Self { eventfd, relayed_to })
    }

    /// The front end's file, if it is not what the worker signals.
    pub(super) fn relayed_to(&self) -> Option<&OwnedFd> {
        self.relayed_to.as_ref()
    }

    /// What the worker signals.
    pub(super) fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Readable when there is a signal to pass on; `None` if there never is.
    pub(super) fn to_relay(&self) -> Option<BorrowedFd<'_>> {
        self.relayed_to.as_ref().map(|_| self.eventfd.as_fd())
    }

    /// Passes on what the worker has signalled, as one signal. A front end that makes this wait makes its own control thread wait.
    ///
    /// # Errors
    /// Nobody can receive it.
    pub(super) fn relay(&self) -> io::Result<()> {
        let Some(theirs) = &self.relayed_to else { return Ok(()) };
        let mut count = [0; 8];
        // Without a signal it fails with EAGAIN.
        if rustix::io::read(&self.eventfd, &mut count).is_ok() { signal(theirs) } else { Ok(()) }
    }
}

/// Whether the other end of a socket was this user's when they were connected. What has no other end is anybody's.
fn is_of(socket: &OwnedFd, uid: u32) -> bool {
    match PeerCredentials::of(socket.as_fd()) {
        Ok(peer) => peer.uid == uid,
        Err(error) => error.raw_os_error() == Some(libc::ENOTSOCK),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::process::geteuid;

    use super::*;

    fn count(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn eventfd_of_the_front_end_is_what_the_worker_signals() {
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        let same = theirs.try_clone().unwrap();
        let call = Call::new(theirs, Signals::AtOnce, 0).unwrap().unwrap();
        signal(call.eventfd()).unwrap();
        assert!(call.to_relay().is_none());
        assert_eq!(count(&same), 1);
    }

    #[test]
    fn eventfd_is_relayed_to_where_the_kernel_has_no_signal_that_does_not_wait() {
        let theirs = eventfd(0, EventfdFlags::empty()).unwrap();
        let same = theirs.try_clone().unwrap();
        let call = Call::new(theirs, Signals::Relayed, 0).unwrap().unwrap();
        signal(call.eventfd()).unwrap();
        signal(call.eventfd()).unwrap();
        call.relay().unwrap();
        assert_eq!(count(&same), 1);
        call.relay().unwrap();
        let left = rustix::event::PollFd::new(&same, rustix::event::PollFlags::IN);
        let at_once = rustix::event::Timespec::default();
        assert_eq!(rustix::event::poll(&mut [left], Some(&at_once)).unwrap(), 0);
    }

    /// Both ends of such a pair were its maker's.
    fn socket() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    fn is_taken(fd: OwnedFd, uid: u32) -> bool {
        Call::new(fd, Signals::AtOnce, uid).unwrap().is_some()
    }

    #[test]
    fn socket_whose_other_end_is_not_the_front_ends_users_is_refused() {
        let own = geteuid().as_raw();
        assert!(is_taken(socket(), own));
        assert!(!is_taken(socket(), own + 1));
        assert!(is_taken(rustix::pipe::pipe().unwrap().1, own + 1));
        let alone = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            None,
        );
        assert!(!is_taken(alone.unwrap(), own));
    }
}
