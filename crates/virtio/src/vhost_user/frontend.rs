//! The driver's side of vhost-user: lends one memory file and its rings to a vsock device behind a Unix socket.
//!
//! This is what a VMM does for its guest; our userspace guest does it for itself. It works with any vhost-user-vsock
//! device and asks for no more than it needs: VERSION_1 and CONFIG (for the CID) must be there, acknowledgements, ring
//! count, EVENT_IDX, indirect descriptors and SEQPACKET are used where offered.
//!
//! User addresses in the messages need not be addresses of this process; we use the guest addresses for both, so that
//! where the memory is mapped here stays our own affair.
//!
//! The `vhost` crate's front end blocks on every reply. [`within`] bounds that: at the deadline it shuts the socket
//! down, which ends whatever read or write is going on.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::F_PROTOCOL_FEATURES;
use crate::queue::QueueConfig;
use crate::spec::{F_DGRAM, F_EVENT_IDX, F_INDIRECT_DESC, F_SEQPACKET, F_VERSION_1, QUEUE_COUNT};
use crate::sys::owned;
use vsock_guest_memory::SharedRegion;

/// How long leaving may take: the device has to say where it stopped.
const LEAVE: Duration = Duration::from_secs(1);

/// What to ask of a device.
#[derive(Clone, Copy, Debug)]
pub struct FrontendOptions {
    /// Use EVENT_IDX if offered.
    pub event_idx: bool,
    /// Use indirect descriptors if offered.
    pub indirect: bool,
    /// Use SEQPACKET if offered.
    pub seqpacket: bool,
    /// How long connecting and all negotiation together may take.
    pub timeout: Duration,
}

impl Default for FrontendOptions {
    fn default() -> Self {
        let timeout = Duration::from_secs(10);
        Self { event_idx: true, indirect: true, seqpacket: true, timeout }
    }
}

impl FrontendOptions {
    /// The virtio features to take if they are offered.
    fn features(&self) -> u64 {
        let if_wanted = |wanted: bool, feature: u64| if wanted { feature } else { 0 };
        F_VERSION_1
            | F_PROTOCOL_FEATURES
            | if_wanted(self.event_idx, F_EVENT_IDX)
            | if_wanted(self.indirect, F_INDIRECT_DESC)
            | if_wanted(self.seqpacket, F_SEQPACKET | F_DGRAM)
    }
}

/// The eventfds of one ring, neither blocking.
#[derive(Debug)]
pub struct RingSignals {
    /// We write it to wake the device.
    pub kick: OwnedFd,
    /// The device writes it to wake us.
    pub call: OwnedFd,
}

/// Why there is no attachment to a device.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// Nobody listens there, or not for us.
    #[error("cannot connect to the device: {0}")]
    Connect(#[source] io::Error),
    /// The device did not answer in time.
    #[error("the device does not answer")]
    TimedOut,
    /// The device lacks something without which nothing goes.
    #[error("the device does not offer {0}")]
    Missing(&'static str),
    /// The device has fewer rings than a vsock device.
    #[error("the device has {0} rings")]
    TooFewRings(u64),
    /// The configuration space holds no CID a guest can have.
    #[error("the device gives us the impossible CID {0}")]
    BadCid(u64),
    /// The device hung up, refused something or broke the protocol.
    #[error("the device does not get on with us: {0}")]
    Protocol(#[from] vhost::Error),
    /// We ran out of something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An attachment to a device; ends when dropped.
///
/// Its fd becomes readable when the device hangs up, and at no other time.
pub struct Attached {
    /// The virtio features agreed upon (without the vhost-user bit 30).
    pub features: u64,
    /// Our CID.
    pub cid: u32,
    /// The eventfds of the rings, in the order of the rings; the caller may take them out.
    pub rings: Vec<RingSignals>,
    ring_count: usize,
    frontend: Frontend,
    socket: UnixStream,
}

/// Connects to the device at `path` and gives it `region` with `rings` in it.
///
/// `rings` are rx, tx and, if the caller has one, event, in guest addresses; their memory must be zero where a new
/// ring is zero. They run when this returns; whether their EVENT_IDX fields count is said by `features`.
///
/// # Errors
/// See [`FrontendError`]; nothing is attached then.
pub fn attach(
    path: &Path,
    region: SharedRegion<'_>,
    rings: &[QueueConfig],
    options: FrontendOptions,
) -> Result<Attached, FrontendError> {
    let socket = connect_within(path, options.timeout)?;
    let frontend = Frontend::from_stream(socket.try_clone()?, QUEUE_COUNT as u64);
    let negotiation = Negotiation { frontend, options };
    let (result, is_late) = within(options.timeout, &socket, || negotiation.run(region, rings));
    match result {
        Ok((frontend, features, cid, rings)) if !is_late => {
            let features = features & !F_PROTOCOL_FEATURES;
            let ring_count = rings.len();
            Ok(Attached { features, cid, rings, ring_count, frontend, socket })
        }
        Ok(_) => Err(FrontendError::TimedOut),
        Err(_) if is_late => Err(FrontendError::TimedOut),
        Err(error) => Err(error),
    }
}

impl Attached {
    /// Lets the device use the first `count` rings, or no longer: a guest that is paused and goes on.
    ///
    /// # Errors
    /// The device hung up or refused.
    pub fn set_running(&mut self, count: usize, runs: bool) -> Result<(), FrontendError> {
        for index in 0..count {
            self.frontend.set_vring_enable(index, runs)?;
        }
        // Without acknowledgements, a question is the only way to know that it was taken.
        self.frontend.get_features()?;
        Ok(())
    }

    /// The configuration space, for whoever has to read it again while this attachment lasts.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn config_space(&self) -> io::Result<ConfigSpace> {
        Ok(ConfigSpace { frontend: self.frontend.clone(), socket: self.socket.try_clone()? })
    }
}

/// The configuration space of a device: the CID.
pub struct ConfigSpace {
    frontend: Frontend,
    socket: UnixStream,
}

impl ConfigSpace {
    /// Reads the CID. A device that does not answer in `timeout` is hung up on.
    ///
    /// # Errors
    /// See [`FrontendError`].
    pub fn cid(&self, timeout: Duration) -> Result<u32, FrontendError> {
        let mut frontend = self.frontend.clone();
        let (result, is_late) = within(timeout, &self.socket, || read_cid(&mut frontend));
        if is_late { Err(FrontendError::TimedOut) } else { result }
    }
}

impl AsFd for Attached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Attached {
    /// Takes the rings back, so that the device has let go of the memory before it is reused.
    fn drop(&mut self) {
        let (frontend, count) = (&mut self.frontend, self.ring_count);
        within(LEAVE, &self.socket, || {
            let disabled = (0..count).try_for_each(|index| frontend.set_vring_enable(index, false));
            let stopped =
                || (0..count).try_for_each(|index| frontend.get_vring_base(index).map(|_| ()));
            // If the device is gone there is nobody to take the rings from.
            let _ = disabled.and_then(|()| stopped());
        });
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// One run through everything a front end says before its rings run.
struct Negotiation {
    frontend: Frontend,
    options: FrontendOptions,
}

type Negotiated = (Frontend, u64, u32, Vec<RingSignals>);

impl Negotiation {
    fn run(
        mut self,
        region: SharedRegion<'_>,
        rings: &[QueueConfig],
    ) -> Result<Negotiated, FrontendError> {
        let features = self.choose_features()?;
        let protocol = self.choose_protocol_features()?;
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            let count = self.frontend.get_queue_num()?;
            if count < rings.len() as u64 {
                return Err(FrontendError::TooFewRings(count));
            }
        }
        self.frontend.set_owner()?;
        let cid = read_cid(&mut self.frontend)?;
        self.frontend.set_features(features)?;
        self.lend(region)?;
        let signals = rings.iter().enumerate().map(|(index, ring)| self.set_up(index, ring));
        let signals = signals.collect::<Result<Vec<_>, _>>()?;
        for index in 0..rings.len() {
            self.frontend.set_vring_enable(index, true)?;
        }
        // Without acknowledgements, a question is the only way to know that all this was taken.
        self.frontend.get_features()?;
        Ok((self.frontend, features, cid, signals))
    }

    fn choose_features(&mut self) -> Result<u64, FrontendError> {
        let offered = self.frontend.get_features()?;
        if offered & F_VERSION_1 == 0 {
            return Err(FrontendError::Missing("VIRTIO_F_VERSION_1"));
        }
        if offered & F_PROTOCOL_FEATURES == 0 {
            return Err(FrontendError::Missing("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        Ok(offered & self.options.features())
    }

    fn choose_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures, FrontendError> {
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK;
        let taken = self.frontend.get_protocol_features()? & known;
        if !taken.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(FrontendError::Missing("VHOST_USER_PROTOCOL_F_CONFIG"));
        }
        self.frontend.set_protocol_features(taken)?;
        if taken.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(taken)
    }

    fn lend(&mut self, region: SharedRegion<'_>) -> Result<(), FrontendError> {
        let info = VhostUserMemoryRegionInfo {
            guest_phys_addr: region.guest,
            memory_size: region.len,
            userspace_addr: region.guest,
            mmap_offset: 0,
            mmap_handle: region.file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[info])?;
        Ok(())
    }

    fn set_up(&mut self, index: usize, ring: &QueueConfig) -> Result<RingSignals, FrontendError> {
        let (kick, call) =
            (EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?, EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let data = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.desc,
            used_ring_addr: ring.used,
            avail_ring_addr: ring.avail,
            log_addr: None,
        };
        self.frontend.set_vring_num(index, ring.size)?;
        self.frontend.set_vring_base(index, ring.base)?;
        self.frontend.set_vring_addr(index, &data)?;
        self.frontend.set_vring_call(index, &call)?;
        self.frontend.set_vring_kick(index, &kick)?;
        Ok(RingSignals { kick: owned(kick), call: owned(call) })
    }
}

fn read_cid(frontend: &mut Frontend) -> Result<u32, FrontendError> {
    let flags = VhostUserConfigFlags::empty();
    let (_, space) = frontend.get_config(0, 8, flags, &[0; 8])?;
    let cid = space.first_chunk().copied().map_or(0, u64::from_le_bytes);
    // 0 to 2 mean hypervisor, local and host; the highest means any.
    match u32::try_from(cid) {
        Ok(cid) if cid > 2 && cid != u32::MAX => Ok(cid),
        Ok(_) | Err(_) => Err(FrontendError::BadCid(cid)),
    }
}

/// Connects, waiting no longer than `timeout` for room in the listener's queue.
fn connect_within(path: &Path, timeout: Duration) -> Result<UnixStream, FrontendError> {
    let open = || {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        set_socket_timeout(&socket, Timeout::Send, None)?;
        Ok(UnixStream::from(socket))
    };
    open().map_err(|error: io::Error| {
        let is_late = error.kind() == io::ErrorKind::WouldBlock;
        if is_late { FrontendError::TimedOut } else { FrontendError::Connect(error) }
    })
}

/// Does `work`; if it is not done after `timeout`, shuts `socket` down so that it ends. Returns its result and whether
/// it was late.
fn within<T>(timeout: Duration, socket: &UnixStream, work: impl FnOnce() -> T) -> (T, bool) {
    std::thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let watch = scope.spawn(move || {
            let is_late = is_done.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout);
            if is_late {
                // Fails only if it is no longer connected, which is just as well.
                let _ = socket.shutdown(Shutdown::Both);
            }
            is_late
        });
        let result = work();
        drop(done);
        (result, watch.join().unwrap_or(false))
    })
}
