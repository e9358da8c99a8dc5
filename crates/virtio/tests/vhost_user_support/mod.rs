//! A device on a socket of its own with an attachment that writes down what it is told, and a front end that says
//! exactly what a test makes it say.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq;
use vsock_core::saved::Unfit;
use vsock_guest_memory::GuestMemory;
use vsock_sandbox::{Profile, Sandbox};
use vsock_virtio::queue::QueueConfig;
use vsock_virtio::saved::{Fds, SavedFds};
use vsock_virtio::starter::Starter;
use vsock_virtio::sys::PeerCredentials;
use vsock_virtio::vhost_user::{
    Attachment, BackendHandle, BackendOptions, Change, Detach, Paused, QueueStart, SavedBackend,
    spawn,
};

/// Longer than anything here takes on a loaded machine: reached only when a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The CID of the device under test.
pub(crate) const CID: u32 = 42;

/// Starts control threads as a node does.
pub(crate) fn starter() -> Starter {
    Starter::new(Sandbox::default(), Profile::Control, "starter").unwrap()
}

/// One call of the attachment.
#[derive(Debug, PartialEq)]
pub(crate) enum Call {
    Attached(PeerCredentials),
    Refused(PeerCredentials),
    Features(u64),
    /// With the length of all memory that the ring may use.
    Start {
        index: usize,
        memory: u64,
        config: QueueConfig,
        has_call: bool,
    },
    NewSignal {
        index: usize,
        has_call: bool,
    },
    Stop(usize),
    /// With the rings that ran.
    Detached(Detach, Vec<usize>),
}

/// The index at which rings say they stopped, unless a test sets another.
pub(crate) const STOPPED_AT: u16 = 7;

#[derive(Clone)]
struct Recorder {
    calls: Sender<Call>,
    base: Arc<AtomicU16>,
    /// The rings that run, and the memory they hold.
    running: Arc<Mutex<BTreeMap<usize, Arc<GuestMemory>>>>,
    signals: Signals,
}

/// What each ring is to be signalled on.
type Signals = Arc<Mutex<BTreeMap<usize, OwnedFd>>>;

impl Recorder {
    fn note(&self, call: Call) {
        // The test may be over while the device is still stopping.
        let _ = self.calls.send(call);
    }
}

/// The bytes of all regions, which are multiples of [`LEN`] at [`GUEST`] and behind it.
fn total_len(memory: &GuestMemory) -> u64 {
    (0..8).filter(|n| memory.check_area(GUEST + n * LEN, LEN, 1).is_ok()).map(|_| LEN).sum()
}

impl Attachment for Recorder {
    fn apply(&mut self, change: Change) {
        let mut running = self.running.lock().unwrap();
        let call = match change {
            Change::Attached(peer) => Call::Attached(peer),
            Change::Refused(peer) => Call::Refused(peer),
            Change::WithoutMemory => return,
            Change::Features(features) => {
                assert!(running.is_empty(), "features of a running ring");
                Call::Features(features)
            }
            Change::StartQueue(QueueStart { index, memory, config, call, .. }) => {
                let len = total_len(&memory);
                if let Some(call) = &call {
                    self.signals.lock().unwrap().insert(index, call.try_clone().unwrap());
                }
                assert!(running.insert(index, memory).is_none(), "ring {index} ran");
                Call::Start { index, memory: len, config, has_call: call.is_some() }
            }
            Change::SetCall { index, call } => {
                assert!(running.contains_key(&index), "ring {index} did not run");
                Call::NewSignal { index, has_call: call.is_some() }
            }
            Change::Detached(reason) => {
                Call::Detached(reason, std::mem::take(&mut *running).into_keys().collect())
            }
        };
        self.note(call);
    }

    fn stop_queue(&mut self, index: usize) -> u16 {
        assert!(self.running.lock().unwrap().remove(&index).is_some(), "ring {index} did not run");
        self.note(Call::Stop(index));
        self.base.load(Ordering::SeqCst)
    }
}

/// A device that serves front ends on a socket of its own.
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) handle: Option<BackendHandle>,
    pub(crate) stopped_at: Arc<AtomicU16>,
    calls: Receiver<Call>,
    recorder: Recorder,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self::with(BackendOptions::new(CID))
    }

    pub(crate) fn with(options: BackendOptions) -> Self {
        let path = temporary_path();
        let listener = UnixListener::bind(&path).unwrap();
        let (sender, calls) = channel();
        let stopped_at = Arc::new(AtomicU16::new(STOPPED_AT));
        let base = Arc::clone(&stopped_at);
        let (running, signals) = (Arc::default(), Arc::default());
        let recorder = Recorder { calls: sender, base, running, signals };
        let handle = spawn(listener, options, Box::new(recorder.clone()), &starter()).unwrap();
        Self { path, handle: Some(handle), stopped_at, calls, recorder }
    }

    /// Stops the control thread between two messages.
    pub(crate) fn pause(&mut self) -> Paused {
        self.handle.take().unwrap().pause().ok().unwrap()
    }

    /// What goes on where `paused` was, after `spoil` has changed what is saved of it.
    pub(crate) fn restore(
        &self,
        paused: &Paused,
        spoil: impl FnOnce(&mut SavedBackend),
    ) -> Result<Paused, Unfit> {
        let mut list = SavedFds::new();
        let mut saved = paused.save(&mut list);
        let mut fds = Fds::new(list.duplicate().unwrap());
        spoil(&mut saved);
        let restored = Paused::restore(saved, Box::new(self.recorder.clone()), &mut fds)?;
        fds.finish()?;
        Ok(restored)
    }

    /// Saves the control thread, and goes on with another.
    pub(crate) fn hand_over(&mut self) {
        let paused = self.pause();
        let restored = self.restore(&paused, |_| {}).unwrap();
        drop(paused);
        self.handle = Some(restored.resume(&starter()).unwrap());
    }

    pub(crate) fn handle(&self) -> &BackendHandle {
        self.handle.as_ref().unwrap()
    }

    /// The next call, waiting for it.
    pub(crate) fn call(&self) -> Call {
        self.calls.recv_timeout(PATIENCE).expect("the attachment should have been told something")
    }

    /// The calls so far that nobody has looked at.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.try_iter().collect()
    }

    /// Stops the device, which takes no time.
    pub(crate) fn stop(&mut self) {
        assert!(self.handle.take().unwrap().stop(Instant::now() + PATIENCE));
    }

    /// Signals the driver of a ring, as the worker does.
    pub(crate) fn signal(&self, index: usize) {
        let signals = self.recorder.signals.lock().unwrap();
        rustix::io::write(&signals[&index], &1_u64.to_ne_bytes()).unwrap();
    }

    /// Lets calls pass until the end of the attachment, and returns its reason.
    pub(crate) fn detach(&self) -> Detach {
        loop {
            if let Call::Detached(reason, _) = self.call() {
                return reason;
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.handle = None;
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A path for a socket that nothing else uses.
pub(crate) fn temporary_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    std::env::temp_dir().join(format!("vsock-{}-{number}.sock", std::process::id()))
}

/// A memfd of `len` bytes.
pub(crate) fn memory(len: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// This process, as the device sees it.
pub(crate) fn myself() -> PeerCredentials {
    let (one, _other) = UnixStream::pair().unwrap();
    PeerCredentials::of(one.as_fd()).unwrap()
}

/// Message flags: version 1, and version 1 with an acknowledgement wanted.
pub(crate) const PLAIN: u32 = 1;
pub(crate) const ACK: u32 = 1 | 8;

/// Protocol features.
pub(crate) const REPLY_ACK: u64 = 1 << 3;
pub(crate) const BACKEND_REQ: u64 = 1 << 5;
pub(crate) const CONFIG: u64 = 1 << 9;
pub(crate) const MEM_SLOTS: u64 = 1 << 15;

/// Guest and user address of the one region that [`Speaker::give_memory`] gives.
pub(crate) const GUEST: u64 = 0x10_0000;
pub(crate) const USER: u64 = 0x7f00_0000_0000;
pub(crate) const LEN: u64 = 0x10_0000;

/// The three parts of ring `index` as offsets from the start of memory.
fn parts(index: u64) -> (u64, u64, u64) {
    let start = index * 0x4000;
    (start, start + 0x1000, start + 0x2000)
}

/// What the worker should be given for ring `index`.
pub(crate) fn config(index: u64, size: u16, base: u16, event_idx: bool) -> QueueConfig {
    let (desc, avail, used) = parts(index);
    QueueConfig {
        size,
        desc: GUEST + desc,
        avail: GUEST + avail,
        used: GUEST + used,
        base,
        event_idx,
    }
}

/// A body made of 64-bit numbers.
pub(crate) fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// A body of two 32-bit numbers, as for most ring messages.
pub(crate) fn pair(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// The body of SET_MEM_TABLE for regions of (guest, length, user, offset).
pub(crate) fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap();
    let mut body = pair(count, 0);
    regions.iter().for_each(|region| body.extend(words(region)));
    body
}

/// A front end that says what it is told to.
pub(crate) struct Speaker {
    pub(crate) socket: UnixStream,
}

impl Speaker {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    /// Sends any bytes with any fds.
    pub(crate) fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![std::mem::MaybeUninit::uninit(); 4096];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// Sends a request whose header tells the truth about the body.
    pub(crate) fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let size = u32::try_from(body.len()).unwrap();
        let mut bytes: Vec<u8> =
            [request, flags, size].iter().flat_map(|number| number.to_ne_bytes()).collect();
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes, fds);
    }

    /// Sends a request to a device that may have hung up by now.
    pub(crate) fn try_send(&self, request: u32, body: &[u8]) {
        let size = u32::try_from(body.len()).unwrap();
        let header = [request, PLAIN, size].map(u32::to_ne_bytes).concat();
        let _ = (&self.socket).write_all(&[header, body.to_vec()].concat());
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn tell(&mut self, request: FrontendReq, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send(request as u32, ACK, body, fds);
        assert_eq!(self.reply(request), words(&[0]), "{request:?} was not acknowledged with 0");
    }

    /// Sends a request without asking for an acknowledgement.
    pub(crate) fn say(&self, request: FrontendReq, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send(request as u32, PLAIN, body, fds);
    }

    /// Sends a question and returns the body of the answer.
    pub(crate) fn ask(&mut self, request: FrontendReq, body: &[u8]) -> Vec<u8> {
        self.say(request, body, &[]);
        self.reply(request)
    }

    /// Asks for a 64-bit number.
    pub(crate) fn ask_number(&mut self, request: FrontendReq) -> u64 {
        u64::from_ne_bytes(self.ask(request, &[]).try_into().unwrap())
    }

    /// Receives a reply to `request`.
    pub(crate) fn reply(&mut self, request: FrontendReq) -> Vec<u8> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((number(0), number(4)), (request as u32, 1 | 4));
        let mut body = vec![0; number(8) as usize];
        self.socket.read_exact(&mut body).unwrap();
        body
    }

    /// Asserts that the device hangs up, having said nothing more than perhaps a refusal.
    pub(crate) fn expect_hang_up(&mut self) {
        let mut rest = Vec::new();
        // Closing with unread bytes of ours resets the connection instead of ending it.
        if let Err(error) = self.socket.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }

    /// The usual beginning, with acknowledgements.
    pub(crate) fn negotiate(&mut self, features: u64) {
        self.ask_number(FrontendReq::GET_FEATURES);
        let protocol = self.ask_number(FrontendReq::GET_PROTOCOL_FEATURES);
        let wanted = protocol & (REPLY_ACK | BACKEND_REQ | CONFIG | MEM_SLOTS);
        self.say(FrontendReq::SET_PROTOCOL_FEATURES, &words(&[wanted]), &[]);
        self.tell(FrontendReq::SET_OWNER, &[], &[]);
        self.tell(FrontendReq::SET_FEATURES, &words(&[features]), &[]);
    }

    /// One region of [`LEN`] bytes.
    pub(crate) fn give_memory(&mut self) {
        let file = memory(LEN);
        let body = table(&[[GUEST, LEN, USER, 0]]);
        self.tell(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd()]);
    }

    /// SET_VRING_NUM, BASE, ADDR, CALL and KICK of ring `index`.
    pub(crate) fn set_up(&mut self, index: u32, size: u16, base: u16) {
        self.tell(FrontendReq::SET_VRING_NUM, &pair(index, size.into()), &[]);
        self.tell(FrontendReq::SET_VRING_BASE, &pair(index, base.into()), &[]);
        self.tell(FrontendReq::SET_VRING_ADDR, &addresses(index, USER), &[]);
        let ring = words(&[index.into()]);
        self.tell(FrontendReq::SET_VRING_CALL, &ring, &[event().as_fd()]);
        self.tell(FrontendReq::SET_VRING_KICK, &ring, &[event().as_fd()]);
    }

    pub(crate) fn enable(&mut self, index: u32, enable: bool) {
        self.tell(FrontendReq::SET_VRING_ENABLE, &pair(index, enable.into()), &[]);
    }

    /// GET_VRING_BASE.
    pub(crate) fn base(&mut self, index: u32) -> Vec<u8> {
        self.ask(FrontendReq::GET_VRING_BASE, &pair(index, 0))
    }
}

/// The body of SET_VRING_ADDR for ring `index` in memory that starts at user address `user`.
pub(crate) fn addresses(index: u32, user: u64) -> Vec<u8> {
    let (desc, avail, used) = parts(index.into());
    let mut body = pair(index, 0);
    body.extend(words(&[user + desc, user + used, user + avail, 0]));
    body
}

/// Asserts that the attachment is told exactly `calls` next.
pub(crate) fn expect(device: &Device, calls: &[Call]) {
    for call in calls {
        assert_eq!(device.call(), *call);
    }
    assert_eq!(device.calls(), []);
}

/// Waits until the device has done all that was said.
pub(crate) fn settle(front: &mut Speaker) {
    front.ask_number(FrontendReq::GET_FEATURES);
}
