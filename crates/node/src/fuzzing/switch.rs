//! A switch without threads: a fuzz target plays the front ends and guests of two links, and programs.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vsock_core::{Cid, RelayLimits, SocketType};
use vsock_sandbox::{Profile, Sandbox};
use vsock_virtio::link::loopback::LoopbackLink;
use vsock_virtio::starter::Starter;
use vsock_virtio::vhost_user::Change;

use crate::context::Context;
use crate::fabric::Fabric;
use crate::host::socket::{Sockets, prepare};
use crate::journal::Journal;
use crate::links::LinkId;
use crate::options::{GuestOptions, NodeOptions};
use crate::reactor::{Events, Sources};

/// CIDs of its guests.
const GUESTS: [u32; 2] = [3, 4];

/// Rounds after which it must have nothing left to do.
const ROUNDS: usize = 10_000;

/// What waits for one guest at most (`links/store.rs`), and is announced to it (`links/buffers.rs`).
const STORED: usize = 192 << 20;

/// A switch with two guests that may reach each other.
pub struct Switch {
    fabric: Fabric,
    links: [LinkId; 2],
    address: SocketAddr,
}

impl Switch {
    /// Nothing is attached.
    ///
    /// # Panics
    /// The kernel gives no descriptors, like all methods.
    #[must_use]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let starter = Starter::new(Sandbox::Disabled, Profile::Helper, "starter").expect("starts");
        let sources = Sources::new().expect("epoll");
        let sockets = Sockets::new(sources.reaper(starter.clone()), NodeOptions::default());
        let cx = Context::new(sources, sockets, Journal::new().expect("eventfd"), starter);
        let mut fabric = Fabric::new(cx, Cid::HOST, LoopbackLink::new().expect("memory"), 1);
        let links = GUESTS.map(|cid| {
            let (name, groups) = (format!("guest{cid}"), vec!["both".to_owned()]);
            let options = GuestOptions { cid, name, groups, ..GuestOptions::default() };
            fabric.add_guest(options, None, 1).expect("a new CID")
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vsock-fuzz-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let door = UnixListener::bind_addr(&address).expect("a name of our own");
        prepare(&door, SocketType::Stream, true).expect("a socket");
        let Fabric { cx, programs, .. } = &mut fabric;
        programs.add_acceptor(cx, door, SocketType::Stream).expect("epoll");
        Self { fabric, links, address }
    }

    /// A program that has said nothing yet.
    pub fn program(&mut self) -> UnixStream {
        let program = UnixStream::connect_addr(&self.address).expect("there is a place");
        program.set_nonblocking(true).expect("a socket");
        program
    }

    /// The front end of a guest says or does something.
    pub fn apply(&mut self, guest: usize, change: Change) {
        self.fabric.apply(self.links[guest], change);
    }

    /// The front end stops a ring.
    pub fn stop_queue(&mut self, guest: usize, queue: usize) -> u16 {
        self.fabric.stop_queue(self.links[guest], queue)
    }

    /// Hears what has happened, and serves everybody until nothing is left to be done; each guest is served once at least.
    pub fn serve(&mut self) {
        let Self { fabric, links, .. } = self;
        // A program is accepted, then read.
        for _ in 0..2 {
            let (mut events, mut happened) = (Events::new(), Vec::new());
            let wait = fabric.cx.sources.wait(Some(Duration::ZERO), &mut events, &mut happened);
            wait.expect("epoll");
            happened.into_iter().for_each(|ready| fabric.dispatch(ready));
            links.iter().for_each(|&link| fabric.links.activate(link));
            let mut rounds = 0;
            while fabric.has_work() {
                fabric.serve_round(Duration::ZERO);
                rounds += 1;
                assert!(rounds < ROUNDS, "work for ever");
            }
            fabric.take_answers();
            fabric.expire();
        }
        fabric.forwarder.release_memory();
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration) {
        self.fabric.cx.now = self.fabric.cx.now + time;
        self.fabric.expire();
    }

    /// The front end of a guest leaves for good, and with it all that belongs to the guest.
    pub fn remove(&mut self, guest: usize) {
        self.fabric.remove_guest(self.links[guest]);
    }

    /// Connections of all links, and flows between guests.
    #[must_use]
    pub fn connections(&self) -> usize {
        let Fabric { links, forwarder, .. } = &self.fabric;
        let interfaces = links.iter().filter_map(|(_, entry)| entry.interface());
        let of_links: usize = interfaces.map(|it| it.endpoint().connections().count()).sum();
        of_links + forwarder.relay().flows().count()
    }

    /// What must be true whenever nothing is left to be done.
    ///
    /// # Panics
    /// It is not.
    pub fn check(&mut self) {
        let Fabric { links, flows, forwarder, cx, .. } = &mut self.fabric;
        cx.journal.take();
        let relay = forwarder.relay();
        let most = RelayLimits::default().max_flows_per_guest * GUESTS.len();
        let relayed = relay.flows().count();
        assert!(relayed <= most, "{relayed} flows between guests");
        assert_eq!(relayed as u64, relay.stats().flows);
        let mut connections = 0;
        for (_, entry) in links.iter() {
            let interface = entry.interface().expect("no turn now");
            let endpoint = interface.endpoint();
            let count = endpoint.connections().count();
            assert_eq!(count as u64, endpoint.stats().connections);
            assert!(interface.stored_bytes() <= STORED, "{} bytes wait", interface.stored_bytes());
            for info in endpoint.connections() {
                assert!(info.unread <= info.buf_alloc.max(1 << 18), "{info:?}");
            }
            connections += count;
        }
        let flows = flows.iter().count();
        assert!(flows <= connections + MOST_DRAINING, "{flows} flows, {connections} connections");
    }
}

/// Flows whose connections are over, and whose programs have not read all.
const MOST_DRAINING: usize = 4096;

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}
