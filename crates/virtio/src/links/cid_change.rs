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

use std::time::Duration;

use vsock_core::Cid;

use super::filter::FormerCid;
use super::{AddError, LinkId, Links};
use crate::context::Context;
use crate::link::{Link, TX_QUEUE};

/// How long a device may take to say what our CID is.
const CONFIG_WAIT: Duration = Duration::from_secs(1);

/// How the connections of a guest end that gets another CID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest is told on its event queue, or does not run: nothing is sent.
    Silent,
    /// Each with RST.
    Reset,
}

/// Whether a guest of a node with the CID `local` can have this CID.
pub(super) fn check_range(cid: Cid, local: Cid) -> Result<(), AddError> {
    if cid.is_guest() && cid != local { Ok(()) } else { Err(AddError::BadCid(cid.0)) }
}

impl Links {
    /// Tells a guest, if it can be told, that it is about to have another CID. Its connections are to end like this
    /// before it has.
    pub(crate) fn announce_cid_change(&mut self, id: LinkId) -> Ending {
        match self.interface(id).map(|it| it.link_mut()) {
            Some(Link::Device(device)) if device.is_running(TX_QUEUE) => {
                if device.announce_reset() { Ending::Silent } else { Ending::Reset }
            }
            Some(Link::Device(_) | Link::Driver(_) | Link::Loopback(_)) | None => Ending::Silent,
        }
    }

    /// Gives a guest another CID; its configuration space has it already, and its connections have ended like this.
    pub(crate) fn change_cid(&mut self, id: LinkId, cid: Cid, ending: Ending) {
        let Some(interface) = self.interface(id) else { return };
        let Some(old) = interface.role().guest() else { return };
        let runs = matches!(interface.link(), Link::Device(device) if device.is_running(TX_QUEUE));
        let former = match ending {
            Ending::Reset => Some(FormerCid::Meant(old)),
            Ending::Silent => runs.then_some(FormerCid::Dropped(old)),
        };
        interface.filter_mut().set_cid(cid, former);
        if let Some(entry) = self.get_mut(id) {
            entry.options.cid = cid.0;
        }
        self.routes.remove(&old);
        self.routes.insert(cid, id);
        self.activate(id);
    }

    /// The CID of a userspace guest may have changed with a reset. This waits for the device's answer, a moment and at
    /// most a second: the event's buffer goes back only after it, and the device sends nothing before. Returns the CID.
    pub(crate) fn read_cid_again(&mut self, cx: &Context, id: LinkId) -> Option<Cid> {
        let config = self.get(id)?.attachment.config.as_ref()?;
        match config.cid(CONFIG_WAIT) {
            Ok(cid) => {
                self.set_local(Cid(cid));
                cx.note("renumbered", Cid(cid), "the device says so");
                Some(Cid(cid))
            }
            Err(error) => {
                cx.note("failed", self.local, format!("reading the CID: {error}"));
                None
            }
        }
    }
}
