//! A guest gets another CID while it runs: live migration as vsock(7) describes it.
//!
//! All connections of the guest end, and what listens goes on at the new CID; programs here keep their listeners. How the
//! guest hears of it depends on its front end:
//!
//! - **With the event queue** (User-Mode Linux, a userspace guest) it gets TRANSPORT_RESET: its driver reads the new CID
//!   and ends its connections with ECONNRESET. Until it has, nothing else is sent to it (`device.rs`), and what it
//!   still sends from the old CID belongs to connections that are over: it is dropped without an answer.
//! - **Without it** (QEMU) each connection is ended by RST. Linux reads the new CID only when its driver begins anew
//!   (reboot, rebind), and until then goes on under the old one, which stands for the new one here.

use vsock_core::Cid;

use super::Interface;
use super::filter::FormerCid;
use vsock_virtio::link::Link;
use vsock_virtio::spec::TX_QUEUE;

/// How the connections of a guest end that gets another CID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest is told on its event queue, or does not run: nothing is sent.
    Silent,
    /// Each with RST.
    Reset,
}

fn runs(link: &Link) -> bool {
    matches!(link, Link::Device(device) if device.is_running(TX_QUEUE))
}

impl Ending {
    /// Tells a guest, if it can be told, that it is about to have another CID; how its connections are to end before it
    /// has.
    pub(crate) fn announce(interface: &mut Interface) -> Self {
        let runs = runs(interface.link());
        let is_told = match interface.link_mut() {
            Link::Device(device) if runs => device.announce_reset(),
            Link::Device(_) | Link::Driver(_) | Link::Loopback(_) => true,
        };
        if is_told { Self::Silent } else { Self::Reset }
    }
}

/// Gives a guest another CID, whose connections have ended like this.
pub(super) fn change(interface: &mut Interface, cid: Cid, ending: Ending) {
    let Some(old) = interface.role().guest() else { return };
    let former = match ending {
        Ending::Reset => Some(FormerCid::Meant(old)),
        Ending::Silent => runs(interface.link()).then_some(FormerCid::Dropped(old)),
    };
    interface.filter_mut().set_cid(cid, former);
}
