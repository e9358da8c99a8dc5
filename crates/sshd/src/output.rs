//! What goes to a client on a channel, until the channel is closed.

use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::yield_now;

use crate::backlog::Backlog;

/// A channel is open until this is dropped.
#[derive(Debug)]
pub(crate) struct Open(watch::Sender<()>);

impl Default for Open {
    fn default() -> Open {
        Open(watch::Sender::new(()))
    }
}

impl Open {
    /// Tells the end of it.
    pub(crate) fn closed(&self) -> Closed {
        Closed(self.0.subscribe())
    }
}

/// Tells when a channel is closed: by the client, by us, or with its connection.
#[derive(Debug, Clone)]
pub(crate) struct Closed(watch::Receiver<()>);

impl Closed {
    /// Waits for it.
    pub(crate) async fn wait(&mut self) {
        // Nothing is sent: there is a change only when the sender is dropped.
        while self.0.changed().await.is_ok() {}
    }
}

/// Sends to a client.
pub(crate) struct Output<W> {
    to: W,
    backlog: Arc<Backlog>,
    closed: Closed,
}

impl<W: AsyncWrite + Unpin> Output<W> {
    pub(crate) fn new(to: W, backlog: &Arc<Backlog>, closed: &Closed) -> Output<W> {
        Output { to, backlog: Arc::clone(backlog), closed: closed.clone() }
    }

    /// Sends bytes. Those of a closed channel are dropped: who writes them must be able to go on, and to read.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _waits = self.backlog.output_waits();
        tokio::select! {
            biased;
            // A writer that never pauses must not hold the one thread up.
            () = self.closed.wait() => yield_now().await,
            // An error says that the connection has ended, which closes the channel.
            _ = self.to.write_all(bytes) => {}
        }
    }
}
