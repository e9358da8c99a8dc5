//! One guest's device as front ends see it: requests in, replies out, calls of the [`Attachment`] in between.
//!
//! Front ends differ in what they say and when. QEMU disables rings, asks for their base and sets everything up again
//! at every reboot of its guest, without a reset; User-Mode Linux enables rings before it reads the configuration
//! space. So nothing here depends on an order: after each request about a ring, it is started if it is ready.
//!
//! A QEMU 7.2 whose back end was restarted reconnects and goes on as if nothing had happened: it does not negotiate
//! protocol features again, but still waits for the acknowledgements it had negotiated. Such a front end is known by
//! its first request, and is then taken to have acknowledged all that we offer, as QEMU does.

mod memory;
mod rings;
mod saved;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, sockopt};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserProtocolFeatures, VhostUserU64,
};
use vm_memory::ByteValued;

pub use self::saved::{SavedHandler, SavedRegion};
use super::control::Shared;
use super::message::{Message, send_reply};
use super::rings::RingSetup;
use super::{Attachment, BackendOptions, Change, Detach, F_PROTOCOL_FEATURES};
use crate::spec::QUEUE_COUNT;
use crate::sys::PeerCredentials;
use vsock_guest_memory::{GuestMemory, MAX_REGIONS};

/// From the driver's features to its memory it is one message with every front end; QEMU sends none if it cannot.
const MEMORY_PATIENCE: Duration = Duration::from_secs(2);

/// What to answer to a request that succeeded.
enum Answer {
    /// A reply of its own.
    Body(Vec<u8>),
    /// An acknowledgement, if the front end wants one.
    Done,
}

/// The device of one guest, for one front end after the other.
pub(super) struct Handler {
    options: BackendOptions,
    shared: Arc<Shared>,
    attachment: Box<dyn Attachment>,
    /// Some while a front end is attached.
    peer: Option<PeerCredentials>,
    /// Whether the front end has said anything yet.
    has_spoken: bool,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    memory: Option<Arc<GuestMemory>>,
    /// When to complain that there is no memory, though there is a driver.
    memory_due: Option<Instant>,
    rings: [RingSetup; QUEUE_COUNT],
}

impl Handler {
    pub(super) fn new(
        options: BackendOptions,
        shared: Arc<Shared>,
        attachment: Box<dyn Attachment>,
    ) -> Self {
        Self {
            options,
            shared,
            attachment,
            peer: None,
            has_spoken: false,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            memory: None,
            memory_due: None,
            rings: Default::default(),
        }
    }

    /// What the device offers.
    pub(super) fn options(&self) -> BackendOptions {
        self.options
    }

    /// How long until [`Handler::complain`] has something to do.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.memory_due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Says that the front end shares no memory, when that is due.
    pub(super) fn complain(&mut self) {
        if self.memory_due.is_some_and(|due| due <= Instant::now()) {
            self.memory_due = None;
            self.attachment.apply(Change::WithoutMemory);
        }
    }

    /// A front end has the device from now on.
    pub(super) fn attach(&mut self, peer: PeerCredentials) {
        self.peer = Some(peer);
        self.has_spoken = false;
        self.protocol = VhostUserProtocolFeatures::empty();
        self.attachment.apply(Change::Attached(peer));
    }

    /// A front end came too late.
    pub(super) fn refuse(&mut self, peer: PeerCredentials) {
        self.attachment.apply(Change::Refused(peer));
    }

    /// Stops and forgets everything of the front end.
    pub(super) fn detach(&mut self, reason: Detach) {
        if self.peer.take().is_none() {
            return;
        }
        self.forget_rings();
        self.shared.set_channel(None);
        self.attachment.apply(Change::Detached(reason));
        self.memory = None;
        self.memory_due = None;
    }

    /// Does what `message` asks and answers it on `socket`.
    pub(super) fn handle(&mut self, message: Message, socket: impl AsFd) -> Result<(), Detach> {
        let (request, needs_reply) = (message.request, message.needs_reply);
        self.expect_resumption(request);
        let result = self.dispatch(message);
        let wants_ack = needs_reply && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        match result {
            Ok(Answer::Body(body)) => send_reply(socket, request, &body),
            Ok(Answer::Done) if wants_ack => send_reply(socket, request, &0u64.to_ne_bytes()),
            Ok(Answer::Done) => Ok(()),
            Err(reason) => {
                if wants_ack && !has_own_reply(request) {
                    // The attachment ends anyway; this only makes the front end's error message a better one.
                    let _ = send_reply(socket, request, &1u64.to_ne_bytes());
                }
                Err(reason)
            }
        }
    }

    /// Takes a front end that does not begin with negotiation for one that negotiated with our predecessor.
    fn expect_resumption(&mut self, request: u32) {
        let is_first = !std::mem::replace(&mut self.has_spoken, true);
        let negotiates = matches!(
            FrontendReq::try_from(request),
            Ok(FrontendReq::GET_FEATURES
                | FrontendReq::SET_OWNER
                | FrontendReq::GET_PROTOCOL_FEATURES
                | FrontendReq::SET_PROTOCOL_FEATURES)
        );
        if is_first && !negotiates {
            self.protocol = self.options.protocol_features();
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what is not served is refused, whatever requests the crate learns to name"
    )]
    fn dispatch(&mut self, message: Message) -> Result<Answer, Detach> {
        let request = FrontendReq::try_from(message.request)
            .map_err(|_| Detach::Unsupported(message.request))?;
        match request {
            FrontendReq::GET_FEATURES => question(&message, self.options.features()),
            FrontendReq::GET_PROTOCOL_FEATURES => {
                question(&message, self.options.protocol_features().bits())
            }
            FrontendReq::GET_QUEUE_NUM => question(&message, QUEUE_COUNT as u64),
            FrontendReq::GET_MAX_MEM_SLOTS => question(&message, MAX_REGIONS as u64),
            FrontendReq::GET_CONFIG => self.get_config(&message),
            FrontendReq::GET_VRING_BASE => self.get_vring_base(&message),
            FrontendReq::SET_OWNER => message.expect_empty().map(|()| Answer::Done),
            FrontendReq::RESET_OWNER | FrontendReq::RESET_DEVICE => self.reset(&message),
            FrontendReq::SET_FEATURES => self.set_features(&message),
            FrontendReq::SET_PROTOCOL_FEATURES => self.set_protocol_features(&message),
            FrontendReq::SET_BACKEND_REQ_FD => self.set_channel(message),
            FrontendReq::SET_MEM_TABLE => self.set_mem_table(message),
            FrontendReq::ADD_MEM_REG => self.add_mem_reg(message),
            FrontendReq::REM_MEM_REG => self.rem_mem_reg(&message),
            FrontendReq::SET_VRING_NUM => self.set_vring_num(&message),
            FrontendReq::SET_VRING_BASE => self.set_vring_base(&message),
            FrontendReq::SET_VRING_ADDR => self.set_vring_addr(&message),
            FrontendReq::SET_VRING_ENABLE => self.set_vring_enable(&message),
            FrontendReq::SET_VRING_KICK => self.set_vring_kick(message),
            FrontendReq::SET_VRING_CALL => self.set_vring_call(message),
            // For errors we end the attachment, so there is never one to signal.
            FrontendReq::SET_VRING_ERR => self.vring_fd(message).map(|_| Answer::Done),
            _ => Err(Detach::Unsupported(message.request)),
        }
    }

    fn set_features(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let features = message.body::<VhostUserU64>()?.value;
        let surplus = features & !self.options.features();
        if surplus != 0 {
            return Err(Detach::UnofferedFeatures(surplus));
        }
        self.pause_rings();
        self.features = features;
        self.memory_due = self.memory.is_none().then(|| Instant::now() + MEMORY_PATIENCE);
        self.attachment.apply(Change::Features(features & !F_PROTOCOL_FEATURES));
        self.start_rings()?;
        Ok(Answer::Done)
    }

    fn set_protocol_features(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let features = message.body::<VhostUserU64>()?.value;
        let surplus = features & !self.options.protocol_features().bits();
        if surplus != 0 {
            return Err(Detach::UnofferedFeatures(surplus));
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(Answer::Done)
    }

    fn set_channel(&mut self, mut message: Message) -> Result<Answer, Detach> {
        let fd = message.take_fd()?;
        if !is_unix_stream(&fd) {
            return Err(message.wrong_fds("the fd is not a Unix stream socket"));
        }
        self.shared.set_channel(Some(fd));
        Ok(Answer::Done)
    }

    /// Answers a read outside the 8 bytes with an empty configuration space, which is how the protocol says no.
    fn get_config(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_no_fds()?;
        let (mut config, payload) = message.body_and_rest::<VhostUserConfig>()?;
        if payload.len() != config.size as usize {
            return Err(message.malformed("the payload is not as long as it says"));
        }
        let space = self.shared.config_space();
        let start = config.offset as usize;
        let part = space.get(start..start.saturating_add(payload.len())).unwrap_or_default();
        if part.is_empty() {
            config.size = 0;
        }
        Ok(Answer::Body([config.as_slice(), part].concat()))
    }

    /// The front end stays with its memory, so the attachment sees a front end go and the same one come.
    fn reset(&mut self, message: &Message) -> Result<Answer, Detach> {
        message.expect_empty()?;
        self.forget_rings();
        self.attachment.apply(Change::Detached(Detach::Reset));
        if let Some(peer) = self.peer {
            self.attachment.apply(Change::Attached(peer));
        }
        Ok(Answer::Done)
    }
}

/// Whether requests of ours can be sent over this.
pub(super) fn is_unix_stream(fd: impl AsFd) -> bool {
    sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
}

/// Requests whose reply is not the plain acknowledgement.
fn has_own_reply(request: u32) -> bool {
    matches!(
        FrontendReq::try_from(request),
        Ok(FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_QUEUE_NUM
            | FrontendReq::GET_MAX_MEM_SLOTS
            | FrontendReq::GET_CONFIG
            | FrontendReq::GET_VRING_BASE)
    )
}

/// The answer to a request that asks for a number and has no body.
fn question(message: &Message, value: u64) -> Result<Answer, Detach> {
    message.expect_empty()?;
    Ok(Answer::Body(value.to_ne_bytes().to_vec()))
}
