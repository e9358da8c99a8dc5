//! Requests about rings, and the starting and stopping that follows from them.

use std::os::fd::{BorrowedFd, OwnedFd};

use vhost::vhost_user::message::{VhostUserU64, VhostUserVringAddr, VhostUserVringState};
use vm_memory::ByteValued;

use super::super::call::Call;
use super::super::message::Message;
use super::super::{Change, Detach, F_PROTOCOL_FEATURES, QueueStart};
use super::{Answer, Handler};
use crate::spec::{F_EVENT_IDX, QUEUE_COUNT};
use crate::sys::is_eventfd;

/// Bit 8 of the vring fd messages: no fd comes with it.
const NO_FD: u64 = 1 << 8;

/// What is no eventfd may stop the worker, so a descriptor of which nothing is known is refused.
const CANNOT_TELL: &str =
    "whether its descriptor is an eventfd cannot be told: there is no /proc here";

impl Handler {
    pub(super) fn get_vring_base(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let state = message.body::<VhostUserVringState>()?;
        let index = ring_index(state.index)?;
        self.stop_ring(index);
        let ring = &mut self.rings[index];
        // Only a new kick eventfd starts it again.
        ring.kick = None;
        let reply = VhostUserVringState::new(state.index, ring.base().into());
        Ok(Answer::Body(reply.as_slice().to_vec()))
    }

    pub(super) fn set_vring_num(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let state = message.body::<VhostUserVringState>()?;
        let index = ring_index(state.index)?;
        self.rings[index].set_size(index, state.num)?;
        self.start_ready_ring(index)
    }

    pub(super) fn set_vring_base(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let state = message.body::<VhostUserVringState>()?;
        let index = ring_index(state.index)?;
        let base = u16::try_from(state.num)
            .map_err(|_| message.malformed("the base does not fit a split ring"))?;
        self.rings[index].set_base(index, base)?;
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_addr(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let addr = message.body::<VhostUserVringAddr>()?;
        let index = ring_index(addr.index)?;
        self.rings[index].set_parts(index, addr)?;
        self.start_ready_ring(index)
    }

    pub(super) fn set_vring_enable(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let state = message.body::<VhostUserVringState>()?;
        let index = ring_index(state.index)?;
        let enable = match state.num {
            0 => false,
            1 => true,
            _ => return Err(message.malformed("a ring is enabled with 1 and disabled with 0")),
        };
        if !enable {
            self.stop_ring(index);
        }
        self.rings[index].enabled = Some(enable);
        self.start_ready_ring(index)
    }

    pub(super) fn set_vring_kick(&mut self, message: Message) -> Result<Answer, Detach> {
        let fault = |fault| Detach::WrongFds { request: message.request, fault };
        let missing = fault("rings that are polled for want of a kick eventfd");
        let (wrong, unknown) = (fault("the kick is no eventfd"), fault(CANNOT_TELL));
        let (index, fd) = vring_fd(message)?;
        let kick = fd.ok_or(missing)?;
        if !is_eventfd(&kick).map_err(|_| unknown)? {
            return Err(wrong);
        }
        self.stop_ring(index);
        self.rings[index].kick = Some(kick);
        self.start_ready_ring(index)
    }

    pub(super) fn set_vring_call(&mut self, message: Message) -> Result<Answer, Detach> {
        let fault = |fault| Detach::WrongFds { request: message.request, fault };
        let wrong = fault("the call is no eventfd, pipe or Unix stream socket of the same user");
        let unknown = fault(CANNOT_TELL);
        let (index, fd) = vring_fd(message)?;
        let uid = self.peer.map_or(u32::MAX, |peer| peer.uid);
        let call = match fd {
            Some(fd) => Some(Call::new(fd, self.signals, uid).map_err(|_| unknown)?.ok_or(wrong)?),
            None => None,
        };
        let ring = &mut self.rings[index];
        if ring.running {
            let call = duplicate(call.as_ref().map(Call::eventfd))?;
            self.attachment.apply(Change::SetCall { index, call });
        }
        ring.call = call;
        Ok(Answer::Done)
    }

    /// SET_VRING_ERR: for errors we end the attachment, so there is never one to signal.
    pub(super) fn set_vring_err(message: Message) -> Result<Answer, Detach> {
        vring_fd(message).map(|_| Answer::Done)
    }

    /// Descriptors that are readable when there is a signal to pass on to the front end.
    pub(in super::super) fn to_relay(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().filter_map(|ring| ring.call.as_ref()?.to_relay())
    }

    /// Passes on to the front end what the worker has signalled.
    pub(in super::super) fn relay(&self) -> Result<(), Detach> {
        Ok(self.rings.iter().filter_map(|ring| ring.call.as_ref()).try_for_each(Call::relay)?)
    }
}

/// The ring and the descriptor of a SET_VRING_KICK, _CALL or _ERR.
fn vring_fd(mut message: Message) -> Result<(usize, Option<OwnedFd>), Detach> {
    let value = message.body::<VhostUserU64>()?.value;
    let index = ring_index(u32::from(value.to_le_bytes()[0]))?;
    if value & NO_FD != 0 {
        message.expect_no_fds()?;
        return Ok((index, None));
    }
    Ok((index, Some(message.take_fd()?)))
}

/// Starting and stopping.
impl Handler {
    /// Starts ring `index` if it is ready and not running.
    fn start_ready_ring(&mut self, index: usize) -> Result<Answer, Detach> {
        if !self.start_ring(index)? {
            return Err(Detach::RingOutsideMemory(index));
        }
        Ok(Answer::Done)
    }

    /// Starts every ring that is ready; the memory they need must be there.
    pub(super) fn start_rings(&mut self) -> Result<(), Detach> {
        (0..QUEUE_COUNT).try_for_each(|index| self.start_ready_ring(index).map(|_| ()))
    }

    /// Starts the ready rings whose memory is there: between REM_MEM_REG and ADD_MEM_REG some may lack theirs.
    pub(super) fn start_located_rings(&mut self) -> Result<(), Detach> {
        (0..QUEUE_COUNT).try_for_each(|index| self.start_ring(index).map(|_| ()))
    }

    /// Returns `false` if the ring is ready but does not lie in memory.
    fn start_ring(&mut self, index: usize) -> Result<bool, Detach> {
        // Without protocol features there is no SET_VRING_ENABLE: rings run as soon as they are set up.
        let enabled_at_once = self.features & F_PROTOCOL_FEATURES == 0;
        let ring = &mut self.rings[index];
        if ring.running || !ring.is_ready(enabled_at_once) {
            return Ok(true);
        }
        let event_idx = self.features & F_EVENT_IDX != 0;
        let Some(memory) = self.memory.clone() else { return Ok(false) };
        let Some(config) = ring.locate(&memory, event_idx) else { return Ok(false) };
        if let Some(kick) = duplicate(ring.kick.as_ref())? {
            let call = duplicate(ring.call.as_ref().map(Call::eventfd))?;
            let start = QueueStart { index, memory, config, kick, call };
            self.attachment.apply(Change::StartQueue(start));
            ring.running = true;
        }
        Ok(true)
    }

    fn stop_ring(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        if ring.running {
            ring.stopped(self.attachment.stop_queue(index));
        }
    }

    /// Stops all rings in a way that starting them again goes on where they were.
    pub(super) fn pause_rings(&mut self) {
        (0..QUEUE_COUNT).for_each(|index| self.stop_ring(index));
    }

    /// The data plane has been told [`Change::Detached`], or is about to be, which stops those that run.
    pub(super) fn forget_rings(&mut self) {
        self.rings = Default::default();
        self.features = 0;
    }
}

fn ring_index(index: u32) -> Result<usize, Detach> {
    usize::try_from(index).ok().filter(|index| *index < QUEUE_COUNT).ok_or(Detach::RingIndex(index))
}

/// The worker gets fds of its own: ours must outlive a stop and start of the ring.
fn duplicate(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, Detach> {
    Ok(fd.map(OwnedFd::try_clone).transpose()?)
}
