//! Any descriptor that can be polled, as a stream of tokio: sockets, pipes, terminals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A descriptor in non-blocking mode.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Sets its mode, and registers it with the runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Descriptor> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: an `OwnedFd` is open until it is dropped and has one number; nothing takes it out of the `AsyncFd`.
        Ok(Descriptor(unsafe { AsyncFd::register(fd) }?))
    }

    /// Reads what is there; `None` if there is nothing yet. A terminal without programs is at its end.
    pub(crate) fn read_now(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match rustix::io::read(self.0.get_ref(), &mut *into) {
                Ok(length) => Ok(Some(length)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::IO) => Ok(Some(0)), // the master of a terminal whose other end is closed
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Waits until there may be something to read, or to accept.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// Polls for something to read, without reading; true: the peer has hung up.
    pub(crate) fn poll_hung_up(&self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut ready = ready!(self.0.poll_read_ready(context))?;
        let hung_up = ready.ready().is_read_closed();
        ready.clear_ready();
        Poll::Ready(Ok(hung_up))
    }

    pub(crate) fn poll_read_into(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(length) = self.read_now(buffer.initialize_unfilled())? {
                buffer.advance(length);
                return Poll::Ready(Ok(()));
            }
            ready!(self.0.poll_read_ready(context))?.clear_ready();
        }
    }

    pub(crate) fn poll_write_from(
        &self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(length) => return Poll::Ready(Ok(length)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready!(self.0.poll_write_ready(context))?.clear_ready(),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_read_into(context, buffer)
    }
}

impl AsyncWrite for Descriptor {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_from(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is no socket has no direction to shut down; it ends when it is closed.
        let _ = rustix::net::shutdown(self.0.get_ref(), rustix::net::Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
