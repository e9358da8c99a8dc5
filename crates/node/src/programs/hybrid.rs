//! Hybrid sockets of guests: where programs ask for connections to one guest, and where its own connections go. What is
//! said, and which path it is, is the affair of the socket's [`Handshake`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::net::{SendFlags, send};
use vsock_core::admission::Act;
use vsock_core::saved::{Unfit, check};
use vsock_core::{Address, FlowKey, Port, Refusal, SecondaryMap, SocketType};

use super::acceptors::{Acceptors, Speaks};
use super::connect::{Target, begin, start};
use super::{Asked, Parts};
use crate::admission::program;
use crate::context::Context;
use crate::events::{Event, NotOpened};
use crate::flow_log::FlowLog;
use crate::flows::{Flow, Greeting, Holdings, Parties};
use crate::helper::Helper;
use crate::host::directory::Directory;
use crate::host::handshake::{Handshake, NoConnection, Progress};
use crate::host::places::{Holder, Place};
use crate::host::program::Socket;
use crate::host::socket::{ProgramSocket, Sockets};
use crate::links::{Entry, LinkId, Links};
use crate::orders;
use crate::reactor::{Owner, SourceId};
use crate::saved::Restoring;
use vsock_virtio::saved::{SavedFd, SavedFds};
use vsock_virtio::sys::PeerCredentials;

/// A program on a hybrid socket that has not been connected yet.
#[derive(Debug)]
pub(super) struct HybridClient {
    pub(super) fd: ProgramSocket,
    pub(super) link: LinkId,
    pub(super) peer: PeerCredentials,
    pub(super) handshake: &'static Handshake,
}

/// The hybrid socket of a guest.
struct HybridSocket {
    path: PathBuf,
    /// Where it is, and where the programs are that take the guest's connections.
    directory: Directory,
    handshake: &'static Handshake,
    acceptor: SourceId,
    /// Connects to programs that take the guest's connections.
    helper: Helper<ToConnect, Connected>,
}

/// A connection that a guest asks for, the directory and name of the socket of the program that is to take it, and what it is
/// counted as.
type ToConnect = (Asked, &'static Handshake, (Directory, OsString), (Sockets, Place));

/// What became of that.
pub(crate) struct Connected {
    pub(crate) asked: Asked,
    pub(crate) handshake: &'static Handshake,
    /// The program's end, or that nobody is there.
    pub(crate) program: Result<ProgramSocket, Refusal>,
}

/// The hybrid sockets of all guests, and programs on them.
pub(super) struct Hybrids {
    sockets: SecondaryMap<Entry, HybridSocket>,
    clients: SecondaryMap<Owner, HybridClient>,
    /// Where the helpers answer.
    sender: Sender<Connected>,
    pub(super) connected: Receiver<Connected>,
    /// Requests that were none.
    pub(super) bad: u64,
}

impl Hybrids {
    /// No hybrid sockets.
    pub(super) fn new() -> Self {
        let (sockets, clients) = (SecondaryMap::new(), SecondaryMap::new());
        let (sender, connected) = channel();
        Self { sockets, clients, sender, connected, bad: 0 }
    }

    /// Gives a guest another hybrid socket, or none. Programs that have come by the old one stay.
    pub(super) fn set(
        &mut self,
        cx: &mut Context,
        acceptors: &mut Acceptors,
        link: LinkId,
        socket: Option<orders::HybridSocket>,
    ) -> std::io::Result<()> {
        let before = match socket {
            Some(orders::HybridSocket { path, directory, listener, handshake }) => {
                let speaks = Speaks::Handshake(link, handshake);
                let acceptor = acceptors.add(cx, listener, speaks)?;
                self.insert(link, (path, directory), handshake, acceptor)
            }
            None => self.sockets.remove(link),
        };
        if let Some(before) = before {
            acceptors.remove(cx, before.acceptor);
        }
        Ok(())
    }

    fn insert(
        &mut self,
        link: LinkId,
        (path, directory): (PathBuf, Directory),
        handshake: &'static Handshake,
        acceptor: SourceId,
    ) -> Option<HybridSocket> {
        let helper = Helper::new("vsock-hybrid", connect, self.sender.clone());
        self.sockets.insert(link, HybridSocket { path, directory, handshake, acceptor, helper })
    }

    /// Whether a guest has one.
    pub(super) fn has(&self, link: LinkId) -> bool {
        self.sockets.get(link).is_some()
    }

    pub(super) fn add(&mut self, id: SourceId, client: HybridClient) {
        self.clients.insert(id, client);
    }

    /// A program has written more of its request, or left.
    pub(super) fn read_request(&mut self, parts: &mut Parts<'_>, id: SourceId, ended: bool) {
        let Some(client) = self.clients.get(id) else { return };
        let HybridClient { link, peer, handshake, .. } = *client;
        let guest = parts.links.get(link).and_then(Entry::guest);
        match handshake.advance(&client.fd, ended) {
            Ok(Progress::Waiting) => {}
            Ok(Progress::Connect(port)) => {
                let Some(cid) = guest else { return self.leave(parts, id) };
                let to = Address { cid, port };
                if let Err(reason) = self.connect(parts, id, to) {
                    let refused = parts.cx.admission.refuse(reason);
                    let ours = Address { cid: parts.links.routes.local(), port: Port::ANY };
                    let key = FlowKey { ours, theirs: to };
                    let parties = Parties::outgoing(key, SocketType::Stream, peer);
                    let log = FlowLog { cx: parts.cx, links: parts.links };
                    log.denied(&parties, Some(handshake), refused);
                    self.refuse(parts, id, NoConnection::NotOpened(NotOpened::Refused(reason)));
                }
            }
            Ok(Progress::Bad) => {
                let Handshake { name: by, expected, .. } = *handshake;
                parts.cx.note(guest, Event::BadLine { pid: peer.pid, by, expected });
                self.bad += 1;
                self.refuse(parts, id, NoConnection::BadRequest);
            }
            Ok(Progress::Gone) | Err(_) => self.leave(parts, id),
        }
    }

    /// Starts the connection that a program's request asks for.
    fn connect(&mut self, parts: &mut Parts<'_>, id: SourceId, to: Address) -> Result<(), Refusal> {
        let Parts { cx, links, flows, services } = parts;
        let &HybridClient { link, peer, .. } = self.clients.get(id).ok_or(Refusal::GivenUp)?;
        let asked = links.attempt_of_program(program(peer), Act::Connect, to, SocketType::Stream);
        cx.admission.decide(&asked).limits()?;
        let bound = services.listeners.bind_ephemeral()?;
        let target = Target::new(to, 0, 0);
        let started = start(cx, links, (link, peer.uid), bound, target, SocketType::Stream);
        let (connection, key, attempt) =
            started.inspect_err(|_| services.listeners.release(Some(bound)))?;
        let interface = links.interface(link).ok_or(Refusal::NoRoute)?;
        let share = flows.share(interface, connection, 0);
        let client = self.clients.remove(id).ok_or(Refusal::GivenUp)?;
        services.silent.remove(id);
        let parties = Parties::outgoing(key, SocketType::Stream, client.peer);
        let socket = Socket { uid: client.peer.uid, cookie: 0 };
        let holdings = Holdings { binding: Some(bound), socket, share };
        let (at, greeting) = ((link, connection), Greeting::Handshake(client.handshake));
        let flow = Flow::connecting(at, parties, holdings, client.fd, greeting);
        begin(parts, id, flow.answered_in(attempt));
        Ok(())
    }

    /// Tells a program that it gets no connection, and ends its own to us.
    fn refuse(&mut self, parts: &mut Parts<'_>, id: SourceId, why: NoConnection) {
        if let Some(HybridClient { fd, handshake, .. }) = self.clients.get(id) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // Fails only when the program has gone already.
            let _ = send(fd, &(handshake.refused)(why), flags);
        }
        self.leave(parts, id);
    }

    fn leave(&mut self, parts: &mut Parts<'_>, id: SourceId) {
        parts.services.silent.remove(id);
        self.drop_client(parts.cx, id);
    }

    /// The program.
    pub(super) fn peer(&self, id: SourceId) -> Option<PeerCredentials> {
        self.clients.get(id).map(|it| it.peer)
    }

    /// Ends a program's connection: with something unread in it, a plain close would read as a reset.
    pub(super) fn drop_client(&mut self, cx: &mut Context, id: SourceId) {
        if let Some(client) = self.clients.remove(id) {
            client.fd.finish();
            cx.sources.remove(id);
        }
    }

    /// A guest is gone, and with it all that waits for it: these programs.
    pub(super) fn forget(
        &mut self,
        cx: &mut Context,
        acceptors: &mut Acceptors,
        link: LinkId,
    ) -> Vec<SourceId> {
        // Fails only for a new socket.
        let _ = self.set(cx, acceptors, link, None);
        let waiting: Vec<SourceId> =
            self.clients.iter().filter(|(_, it)| it.link == link).map(|(id, _)| id).collect();
        for &id in &waiting {
            self.clients.remove(id);
            cx.sources.remove(id);
        }
        waiting
    }

    /// Begins to connect to the program that takes connections of a guest to this port.
    ///
    /// A helper of the guest's own does it: looking up the name may take as long as the file system pleases.
    ///
    /// # Errors
    /// There is no such socket, or too many connections wait for the helper.
    pub(super) fn connect_to(
        &mut self,
        cx: &Context,
        asked: Asked,
        place: Place,
    ) -> Result<(), Refusal> {
        let HybridSocket { path, directory, handshake, helper, .. } =
            self.sockets.get_mut(asked.link).ok_or(Refusal::NoListener)?;
        let own = path.file_name().ok_or(Refusal::NoHybridSocket)?;
        let at = (directory.clone(), (handshake.name_at)(own, asked.key.ours.port));
        let task = (asked, *handshake, at, (cx.sockets.clone(), place));
        let is_given = helper.give(cx, task);
        if is_given { Ok(()) } else { Err(Refusal::NoHybridSocket) }
    }
}

fn connect((asked, handshake, (directory, name), (sockets, place)): ToConnect) -> Connected {
    let program = directory.connect(&name, &sockets).map(|socket| socket.counted(place));
    Connected { asked, handshake, program }
}

/// [`Hybrids`] as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedHybrids {
    /// The hybrid sockets of guests.
    pub sockets: Vec<SavedHybridSocket>,
    /// Programs that have not been connected yet.
    pub clients: Vec<SavedHybridClient>,
    /// Requests that were none.
    pub bad: u64,
}

/// A hybrid socket of a guest, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedHybridSocket {
    /// The guest's.
    pub link: LinkId,
    /// Its path.
    pub path: PathBuf,
    /// The directory that it is in.
    pub directory: SavedFd,
    /// The name of the socket on which programs connect.
    pub acceptor: SourceId,
}

/// A program on a hybrid socket, as plain data. What it has written of its request is still in its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedHybridClient {
    /// Its name.
    pub id: SourceId,
    /// Its socket.
    pub fd: SavedFd,
    /// The guest that it wants to connect to.
    pub link: LinkId,
    /// Who it is.
    pub peer: PeerCredentials,
    /// The name of the handshake that it speaks.
    pub handshake: String,
}

impl Hybrids {
    /// As plain data.
    pub(super) fn save<'a>(&'a self, fds: &mut SavedFds<'a>) -> SavedHybrids {
        let sockets = self.sockets.iter().map(|(link, it)| SavedHybridSocket {
            link,
            path: it.path.clone(),
            directory: fds.add(&it.directory),
            acceptor: it.acceptor,
        });
        let sockets = sockets.collect();
        let mut client = |(id, it): (SourceId, &'a HybridClient)| SavedHybridClient {
            id,
            fd: fds.add(&it.fd),
            link: it.link,
            peer: it.peer,
            handshake: it.handshake.name.to_owned(),
        };
        SavedHybrids {
            sockets,
            clients: self.clients.iter().map(&mut client).collect(),
            bad: self.bad,
        }
    }

    /// From plain data, with the acceptors and links that there are.
    pub(super) fn restore(
        saved: SavedHybrids,
        acceptors: &Acceptors,
        links: &Links,
        restoring: &mut Restoring,
    ) -> Result<Self, Unfit> {
        let mut hybrids = Self { bad: saved.bad, ..Self::new() };
        let has_guest = |link| links.get(link).is_some_and(|it| it.guest().is_some());
        for SavedHybridSocket { link, path, directory, acceptor } in saved.sockets {
            let Some(Speaks::Handshake(of, handshake)) = acceptors.speaks(acceptor) else {
                return Err(Unfit::State);
            };
            check(of == link && has_guest(link), Unfit::State)?;
            let directory = Directory::restore(restoring.fds.take(directory)?)?;
            let socket = (path, directory);
            check(hybrids.insert(link, socket, handshake, acceptor).is_none(), Unfit::State)?;
        }
        for SavedHybridClient { id, fd, link, peer, handshake } in saved.clients {
            check(has_guest(link), Unfit::State)?;
            let place = restoring.sockets.places.keep(Holder::User(peer.uid));
            let fd = restoring.claim_socket(fd, id, Owner::HybridClient)?.counted(place);
            let handshake = Handshake::named(&handshake)?;
            hybrids.add(id, HybridClient { fd, link, peer, handshake });
        }
        Ok(hybrids)
    }
}
