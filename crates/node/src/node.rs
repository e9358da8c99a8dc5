//! A node as other threads hold it: start, add and remove guests, join a device, look, stop.
//!
//! The switch is a node with CID 2 and guests; a userspace guest is a node that has joined a device. Everything here
//! is rare and may block; the packets are the worker's (`worker.rs`).

mod saved;
mod sockets;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vsock_core::{Cid, SocketType};

pub use self::saved::RestoreError;
use self::sockets::{listen, unlink};
pub use crate::admission::Verdict;
use crate::context::Context;
use crate::events::{Event, Failure};
use crate::flows::record;
use crate::guest_port::GuestPort;
use crate::host::directory::{Access, Directory};
use crate::host::handshake::HYBRID;
use crate::host::socket::{Sockets, prepare};
use crate::journal::{Journal, Record};
use crate::links::{LinkId, NewUplink};
use crate::mailbox::{Mailbox, Stopped};
pub use crate::options::AddError;
pub use crate::options::{GuestOptions, NodeOptions};
pub use crate::orders::SaveError;
use crate::orders::{HybridSocket, Order};
use crate::reactor::Sources;
use crate::snapshot::Snapshot;
use crate::worker::Worker;
use vsock_sandbox::{Profile, Sandbox, State};
use vsock_virtio::joinable::Joinable;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::link::loopback::LoopbackLink;
use vsock_virtio::spec::F_EVENT_IDX;
use vsock_virtio::spec::QUEUE_COUNT;
use vsock_virtio::starter::Starter;
use vsock_virtio::sys::check_signals;
use vsock_virtio::vhost_user::{
    Attached, BackendHandle, BackendOptions, FrontendError, FrontendOptions, attach, spawn,
};

/// How long what programs have sent may take to leave a userspace guest that stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a guest that leaves may take to hear that its connections are over; all of them together when the node stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long the control thread of a guest may take to end after it was told to. A front end can make its guest's thread
/// wait for as long as it likes.
const THREAD_PATIENCE: Duration = Duration::from_secs(1);

/// How long the worker may take to end. What it does last is to end all streams, which takes no time on an idle machine.
const WORKER_PATIENCE: Duration = Duration::from_secs(10);

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It has been stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The guest cannot be added.
    #[error(transparent)]
    Add(#[from] AddError),
    /// There is no guest with this CID.
    #[error("there is no guest with CID {0}")]
    NoGuest(u32),
    /// The device could not be joined.
    #[error(transparent)]
    Join(#[from] FrontendError),
    /// The device gives another CID than was asked for.
    #[error("the device gives CID {given}, not {wanted}")]
    OtherCid {
        /// What the device says.
        given: u32,
        /// What the caller expects.
        wanted: u32,
    },
    /// The kernel said no, about this path if there is one.
    #[error("{}{error}", path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default())]
    Io {
        /// What it said.
        #[source]
        error: io::Error,
        /// What it said it about.
        path: Option<PathBuf>,
    },
}

impl From<io::Error> for NodeError {
    fn from(error: io::Error) -> Self {
        Self::Io { error, path: None }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> NodeError + '_ {
    |error| NodeError::Io { error, path: Some(path.to_owned()) }
}

struct Guest {
    link: LinkId,
    control: BackendHandle,
    /// Its front end's socket, then its hybrid socket if it has one.
    paths: Vec<PathBuf>,
}

#[derive(Default)]
struct Held {
    guests: HashMap<u32, Guest>,
    device: Option<Attached>,
    worker: Option<Joinable>,
    paths: Vec<PathBuf>,
}

/// A running node.
pub struct Node {
    options: NodeOptions,
    mailbox: Mailbox<Order>,
    journal: Journal,
    held: Mutex<Held>,
    /// Starts the control threads of guests.
    controls: Starter,
    /// What the threads have given up.
    state: State,
    /// Control threads that had not ended when their guests were removed.
    threads_left: AtomicU64,
}

impl Node {
    /// Starts a node with the local CID `cid` that serves programs in `directory` (which exists and is private). Its threads
    /// give up what they do not need.
    ///
    /// # Errors
    /// The kernel refuses a socket, an eventfd or a thread.
    pub fn start(cid: u32, directory: &Path) -> Result<Self, NodeError> {
        Self::start_with(cid, directory, NodeOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(cid: u32, directory: &Path, options: NodeOptions) -> Result<Self, NodeError> {
        raise_descriptor_limit();
        record::prepare()?;
        let sources = Sources::new()?;
        let mailbox = Mailbox::new(sources.waker());
        let journal = Journal::new()?;
        let loopback = LoopbackLink::new()?;
        let sandbox = options.sandbox;
        let (controls, helpers) = starters(sandbox)?;
        let others = controls.state().clone().and(helpers.state());
        let (its_journal, its_mailbox) = (journal.clone(), mailbox.clone());
        let sockets = Sockets::new(sources.reaper(helpers.clone()), options);
        let (thread, state) = spawn_worker(cid, sandbox, journal.clone(), move || {
            let cx = Context::new(sources, sockets, its_journal, helpers);
            Some(Worker::new(cx, Cid(cid), its_mailbox, loopback, random_seed()))
        })?;
        let held = Mutex::new(Held { worker: Some(thread), ..Held::default() });
        // From here on, dropping the node on an error ends the thread and removes the sockets.
        let (state, threads_left) = (state.and(&others), AtomicU64::new(0));
        let node = Self { options, mailbox, journal, held, controls, state, threads_left };
        let sockets = [
            ("stream", SocketType::Stream),
            ("seqpacket", SocketType::SeqPacket),
            ("dgram", SocketType::Datagram),
        ];
        for (name, kind) in sockets {
            let path = directory.join(name);
            let socket = node.listen(&path, kind, Access::default()).map_err(at(&path))?;
            node.held().paths.push(path);
            node.mailbox.call(|reply| Order::AddAcceptor { socket, kind, reply })??;
        }
        Ok(node)
    }

    /// A listening socket for programs.
    fn listen(&self, path: &Path, kind: SocketType, access: Access) -> io::Result<UnixListener> {
        let refuse = self.options.refuse_descriptors;
        listen(path, kind, access, |fd: &OwnedFd| prepare(fd, kind, refuse))
    }

    /// A listening hybrid socket, if the guest is to have one.
    fn hybrid_socket(&self, options: &GuestOptions) -> Result<Option<HybridSocket>, NodeError> {
        let Some(path) = options.hybrid.clone() else { return Ok(None) };
        let directory = Directory::of(&path).map_err(at(&path))?;
        let listener = self.listen(&path, SocketType::Stream, options.access());
        let listener = listener.map_err(at(&path))?;
        Ok(Some(HybridSocket { path, directory, listener, handshake: &HYBRID }))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a guest and listens for its front end.
    ///
    /// # Errors
    /// Name or CID are taken, or a socket could not be made.
    pub fn add_guest(&self, options: GuestOptions) -> Result<(), NodeError> {
        let cid = options.cid;
        let mut held = self.held();
        let socket = &options.socket;
        let access = options.access();
        let front_door =
            listen(socket, SocketType::Stream, access, |_| Ok(())).map_err(at(socket))?;
        let mut paths = vec![socket.clone()];
        let hybrid = self.hybrid_socket(&options).inspect_err(|_| unlink(&paths))?;
        paths.extend(options.hybrid.clone());
        let device = device_options(&options);
        let (options, seed) = (Box::new(options), random_seed());
        let added = self.mailbox.call(|reply| Order::AddGuest { options, hybrid, seed, reply });
        let link = added.map_err(NodeError::from).and_then(|link| Ok(link?)).inspect_err(|_| {
            unlink(&paths);
        })?;
        if let Err(error) = check_signals() {
            self.journal.write(Some(Cid(cid)), Event::Failed(Failure::Signals(error)));
        }
        let port = GuestPort::new(self.mailbox.clone(), link);
        let spawned = spawn(front_door, device, Box::new(port), &self.controls);
        let control = match spawned {
            Ok(control) => control,
            Err(error) => {
                unlink(&paths);
                self.mailbox.call(|reply| Order::RemoveGuest { link, reply })?;
                return Err(error.into());
            }
        };
        self.mailbox.post(Order::SetControl { link, control: control.control() })?;
        held.guests.insert(cid, Guest { link, control, paths });
        Ok(())
    }

    /// Removes a guest: its connections end, each with RST, and then its front end is disconnected. A guest that takes
    /// nothing is waited for a second.
    ///
    /// # Errors
    /// There is no such guest.
    pub fn remove_guest(&self, cid: u32) -> Result<(), NodeError> {
        let guest = self.held().guests.remove(&cid).ok_or(NodeError::NoGuest(cid))?;
        unlink(&guest.paths);
        let link = guest.link;
        let told = self.mailbox.ask(|told| Order::SayFarewell { link, told })?;
        // A guest that takes nothing has lost its connections all the same.
        let _ = told.recv_timeout(FAREWELL);
        self.stop_control(cid, guest.control, Instant::now() + THREAD_PATIENCE);
        Ok(self.mailbox.call(|reply| Order::RemoveGuest { link, reply })?)
    }

    /// Ends the control thread of a guest. One that does not end is counted: it can do no more harm, as its link is gone.
    fn stop_control(&self, cid: u32, control: BackendHandle, deadline: Instant) {
        if !control.stop(deadline) {
            self.threads_left.fetch_add(1, Ordering::Relaxed);
            self.journal.write(Some(Cid(cid)), Event::Failed(Failure::ThreadLeft));
        }
    }

    /// How long at most the node looks for packets before it sleeps (see [`Polling`](crate::polling::Polling)); nothing: it sleeps at once.
    ///
    /// # Errors
    /// The node has stopped.
    pub fn set_polling(&self, most: Duration) -> Result<(), NodeError> {
        Ok(self.mailbox.call(|reply| Order::SetPolling { most, reply })?)
    }

    /// How long what a program sent before it closed may wait for the other side to take some of it; then the connection is
    /// reset. Time during which the other side is paused does not count. Who waits already waits on as it was told.
    ///
    /// # Errors
    /// The node has stopped.
    pub fn set_linger_timeout(&self, most: Duration) -> Result<(), NodeError> {
        Ok(self.mailbox.call(|reply| Order::SetLingerTimeout { most, reply })?)
    }

    /// Gives a guest another CID while it runs. All its connections end; programs here keep their listeners, and what
    /// listens in the guest goes on at the new CID.
    ///
    /// # Errors
    /// There is no such guest, or the CID is another's.
    pub fn set_guest_cid(&self, cid: u32, new: u32) -> Result<(), NodeError> {
        let mut held = self.held();
        let guest = held.guests.get(&cid).ok_or(NodeError::NoGuest(cid))?;
        if cid == new {
            return Ok(());
        }
        let new_cid = Cid(new);
        self.mailbox.call(|reply| Order::CheckCid { cid: new_cid, reply })??;
        // Before the guest hears that there is something to read. A front end that cannot be told reads it all the same
        // when its driver begins anew.
        let told = guest.control.set_cid(new);
        let link = guest.link;
        self.mailbox.call(|reply| Order::ChangeCid { link, cid: new_cid, reply })??;
        if let Some(guest) = held.guests.remove(&cid) {
            held.guests.insert(new, guest);
        }
        if let Err(error) = told {
            let event = Event::Failed(Failure::TellingCid(error));
            self.journal.write(Some(new_cid), event);
        }
        Ok(())
    }

    /// Changes the options of a guest while it runs. A new CID has the effects of [`set_guest_cid`](Self::set_guest_cid).
    /// Connections over a hybrid socket that is replaced stay open. New groups and aliases apply to new connections.
    /// Name, socket, who may connect to it and the options about memory keep their values.
    ///
    /// # Errors
    /// There is no such guest, a CID is invalid or in use, or the hybrid socket could not be created. If so, nothing has
    /// changed.
    pub fn change_guest(&self, cid: u32, options: GuestOptions) -> Result<(), NodeError> {
        options.check()?;
        let link = self.link_of(cid)?;
        let new = Cid(options.cid);
        if new.0 != cid {
            self.mailbox.call(|reply| Order::CheckCid { cid: new, reply })??;
        }
        self.set_hybrid(cid, &options)?;
        self.set_guest_cid(cid, new.0)?;
        let options = Box::new(options);
        Ok(self.mailbox.call(|reply| Order::SetOptions { link, options, reply })?)
    }

    /// Gives a guest the hybrid socket that the options name, or none, in place of the one it has.
    fn set_hybrid(&self, cid: u32, options: &GuestOptions) -> Result<(), NodeError> {
        let mut held = self.held();
        let guest = held.guests.get_mut(&cid).ok_or(NodeError::NoGuest(cid))?;
        if guest.paths.get(1) == options.hybrid.as_ref() {
            return Ok(());
        }
        let hybrid = self.hybrid_socket(options)?;
        let added: Vec<_> = hybrid.iter().map(|it| it.path.clone()).collect();
        let link = guest.link;
        let set = self.mailbox.call(|reply| Order::SetHybrid { link, hybrid, reply });
        set.map_err(NodeError::from).and_then(|set| Ok(set?)).inspect_err(|_| unlink(&added))?;
        unlink(&guest.paths.split_off(1));
        guest.paths.extend(added);
        Ok(())
    }

    /// Waits until a guest has taken what there was to tell it (that it has another CID), `most` at most. False: it has
    /// not, as it is paused, for example. A guest that cannot be told is not waited for.
    ///
    /// # Errors
    /// There is no such guest.
    pub fn wait_told(&self, cid: u32, most: Duration) -> Result<bool, NodeError> {
        let link = self.link_of(cid)?;
        let told = self.mailbox.ask(|told| Order::AwaitTold { link, told })?;
        Ok(told.recv_timeout(most).is_ok())
    }

    fn link_of(&self, cid: u32) -> Result<LinkId, NodeError> {
        self.held().guests.get(&cid).map(|guest| guest.link).ok_or(NodeError::NoGuest(cid))
    }

    /// Becomes a guest of the vhost-user-vsock device at `socket`; returns our CID.
    ///
    /// # Errors
    /// The device is not there, does not answer in `timeout`, or gives another CID than `wanted`.
    pub fn join(
        &self,
        socket: &Path,
        wanted: Option<u32>,
        timeout: Duration,
    ) -> Result<u32, NodeError> {
        let mut held = self.held();
        let mut link = DriverLink::new(&DriverOptions::default())?;
        let rings: Vec<_> = (0..QUEUE_COUNT).filter_map(|queue| link.queue_config(queue)).collect();
        let options = FrontendOptions { timeout, ..FrontendOptions::default() };
        let mut device = attach(socket, link.region(), &rings, options)?;
        if let Some(wanted) = wanted
            && wanted != device.cid
        {
            return Err(NodeError::OtherCid { given: device.cid, wanted });
        }
        let (cid, features) = (device.cid, device.features);
        link.set_event_idx(features & F_EVENT_IDX != 0);
        for (queue, signals) in device.rings.drain(..).enumerate() {
            link.connect(queue, signals.kick, signals.call)?;
        }
        let uplink = NewUplink {
            link,
            cid: Cid(cid),
            features,
            device: device.as_fd().try_clone_to_owned()?,
            config: device.config_space()?,
            socket: socket.to_owned(),
            seed: random_seed(),
        };
        let uplink = Box::new(uplink);
        self.mailbox.call(|reply| Order::AddUplink { uplink, reply })??;
        held.device = Some(device);
        Ok(cid)
    }

    /// Whether the one with the CID `from` may connect to the one with the CID `to`, and which rule says so.
    ///
    /// # Errors
    /// The node has been stopped.
    pub fn explain(&self, from: u32, to: u32) -> Result<Verdict, NodeError> {
        let (from, to) = (Cid(from), Cid(to));
        Ok(self.mailbox.call(|reply| Order::Explain { from, to, reply })?)
    }

    /// How often the driver of a guest came up: another number says that the guest has booted since, or was reset.
    ///
    /// # Errors
    /// There is no such guest.
    pub fn driver_starts(&self, cid: u32) -> Result<u64, NodeError> {
        let starts = self.mailbox.call(|reply| Order::DriverStarts { guest: Cid(cid), reply })?;
        starts.ok_or(NodeError::NoGuest(cid))
    }

    /// Everything as it is now.
    ///
    /// # Errors
    /// The node has been stopped.
    pub fn snapshot(&self) -> Result<Snapshot, NodeError> {
        let mut snapshot = self.mailbox.call(|reply| Order::Snapshot { reply })?;
        let threads_left = self.threads_left.load(Ordering::Relaxed);
        snapshot.counters.push(("threads_left", threads_left));
        snapshot.sandbox = self.state.to_string();
        Ok(snapshot)
    }

    /// What has happened since the last call.
    pub fn events(&self) -> Vec<Record> {
        self.journal.take()
    }

    /// Whether single connections are events too, opened and refused ones; at first they are not.
    pub fn set_wants_flows(&self, wanted: bool) {
        self.journal.set_wants_flows(wanted);
    }

    /// Readable while there are events.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Ends everything: guests are disconnected, programs see the end of their streams. Harmless the second time.
    ///
    /// Guests of a switch are told first, and what programs of a userspace guest have sent goes out first; both wait a
    /// moment, and only for who takes something.
    pub fn stop(&self) {
        let mut held = self.held();
        let Held { guests, device, worker, paths } = std::mem::take(&mut *held);
        unlink(&paths);
        if device.is_some() {
            let sent = self.mailbox.ask(|sent| Order::EndSending { sent });
            // A reader who takes nothing has an end that is not a good one.
            let _ = sent.map(|sent| sent.recv_timeout(LAST_WORDS));
        }
        let farewell = |guest: &Guest| {
            let link = guest.link;
            self.mailbox.ask(|told| Order::SayFarewell { link, told })
        };
        // All of them first, as all wait together; a worker that is gone tells nobody anything.
        let told: Vec<_> = guests.values().flat_map(farewell).collect();
        let until = Instant::now() + FAREWELL;
        for told in told {
            // One that takes nothing has lost its connections all the same.
            let _ = told.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
        guests.values().for_each(|guest| guest.control.tell_to_stop());
        let until = Instant::now() + THREAD_PATIENCE;
        for (cid, guest) in guests {
            unlink(&guest.paths);
            self.stop_control(cid, guest.control, until);
        }
        // A worker that ended on its own has said why in the journal.
        let _ = self.mailbox.post(Order::Stop);
        if worker.is_some_and(|thread| !thread.join(Instant::now() + WORKER_PATIENCE)) {
            self.journal.write(None, Event::Failed(Failure::WorkerLeft));
        }
        // Last, as it gives the memory back that the worker used.
        drop(device);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a guest's device offers, and takes from its front end.
fn device_options(options: &GuestOptions) -> BackendOptions {
    let &GuestOptions { cid, memory_slots, file_memory, memory_limit_gib, .. } = options;
    let usual = BackendOptions::new(cid);
    let memory_limit = match memory_limit_gib {
        0 => usual.memory_limit,
        limit => u64::from(limit) << 30,
    };
    BackendOptions { memory_slots, file_memory, memory_limit, ..usual }
}

/// What starts the control threads of a node, and what starts its helper threads.
fn starters(sandbox: Sandbox) -> io::Result<(Starter, Starter)> {
    let controls = Starter::new(sandbox, Profile::Control, "vhost-controls")?;
    Ok((controls, Starter::new(sandbox, Profile::Helper, "vsock-helpers")?))
}

/// Starts the thread of a worker, which is made there, and tells what that thread has given up; if it is made, and ends
/// otherwise than by an order, it is said.
fn spawn_worker(
    cid: u32,
    sandbox: Sandbox,
    journal: Journal,
    make: impl FnOnce() -> Option<Worker> + Send + 'static,
) -> io::Result<(Joinable, State)> {
    let builder = std::thread::Builder::new().name(format!("vsock-{cid}"));
    Joinable::spawn_in((sandbox, Profile::Worker), builder, move || {
        // All that the worker has is dropped with it, whether it returns or panics; see docs/decisions/0013-panics.md.
        let ran = catch_unwind(AssertUnwindSafe(|| make().is_none_or(Worker::run)));
        if !matches!(ran, Ok(true)) {
            journal.write(None, Event::Ended);
        }
    })
}

/// A number that guests cannot guess, for hash tables and first ports.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

/// A descriptor per connection: take as many as we may have.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Not being allowed to is no fault: connections are refused when descriptors run out.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    /// An order that panics may have left anything half done, so nothing goes on; and nobody waits for ever.
    #[test]
    fn node_that_panics_ends_and_says_so() {
        let directory = std::env::temp_dir().join(format!("vsock-panic-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let node = Node::start(2, &directory).unwrap();
        let answer = node.mailbox.ask(|_: crate::mailbox::Reply<()>| Order::Panic).unwrap();
        assert!(answer.recv().is_err());
        poll(&mut [PollFd::new(node.journal(), PollFlags::IN)], None).unwrap();
        let kinds: Vec<_> = node.events().iter().map(|record| record.event.kind().word()).collect();
        assert_eq!(kinds, ["ended"]);
        assert!(matches!(node.snapshot(), Err(NodeError::Stopped(_))));
        node.stop();
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
