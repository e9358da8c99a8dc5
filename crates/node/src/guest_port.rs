//! A guest's control thread as seen by the worker: what its front end does is carried out between two rounds, and has
//! been when the call returns.

use crate::links::LinkId;
use crate::mailbox::Mailbox;
use crate::orders::Order;
use vsock_virtio::vhost_user::{Attachment, Change};

/// The worker's end of a guest's control thread. A worker that has stopped uses nothing of the guest any more, so there
/// is nothing left to do then, and the answer is the harmless one.
pub(crate) struct GuestPort {
    mailbox: Mailbox<Order>,
    link: LinkId,
}

impl GuestPort {
    pub(crate) fn new(mailbox: Mailbox<Order>, link: LinkId) -> Self {
        Self { mailbox, link }
    }
}

impl Attachment for GuestPort {
    fn apply(&mut self, change: Change) {
        let link = self.link;
        let _ = self.mailbox.call(|reply| Order::Apply { link, change, reply });
    }

    fn stop_queue(&mut self, queue: usize) -> u16 {
        let link = self.link;
        let stopped_at = self.mailbox.call(|reply| Order::StopQueue { link, queue, reply });
        stopped_at.unwrap_or_default()
    }
}
