//! What a node tells the control plane: each event a value with fields, and in this one place the words for them.
//!
//! A record of an event leaves the node with a stable word ([`Kind::word`]), the CID that it is about, and a text for people
//! ([`Display`](fmt::Display)). The worker only makes values; the thread that reads the records makes the texts.

use std::fmt;
use std::io;

use vsock_client::wire::BadRequest;
use vsock_core::{Address, Cid, CloseReason, Refusal, SocketType};

use crate::fault::LinkFault;
use vsock_virtio::sys::PeerCredentials;
use vsock_virtio::vhost_user::{Detach, FrontendError};

/// What a front end does whose memory is not shared: it gives up without a word.
const NO_MEMORY: &str = "its driver is up, but its hypervisor shares no memory with us: \
    QEMU needs the arguments that `vsock qemu-args` prints, share=on among them";

/// What sort of event; how many of one sort are written about one guest is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A front end has attached.
    Attached,
    /// A front end or a device has gone.
    Detached,
    /// The other side of a link did something wrong.
    Fault,
    /// Something was refused.
    Refused,
    /// A guest's memory is not shared.
    NoMemory,
    /// A guest's driver is up.
    Running,
    /// A userspace guest has another CID.
    Renumbered,
    /// A guest sent a packet under another's CID.
    Spoofed,
    /// A flow was reset as its program's socket failed.
    Reset,
    /// A program broke the rules of the protocol.
    BadRequest,
    /// A connection is open.
    Flow,
    /// A connection was asked for and did not come about.
    FlowRefused,
    /// Something failed here.
    Failed,
    /// Records were not read in time.
    Lost,
    /// The node has ended by itself.
    Ended,
}

impl Kind {
    /// The word for it, which is stable: programs may look for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Fault => "fault",
            Self::Refused => "refused",
            Self::NoMemory => "no-memory",
            Self::Running => "running",
            Self::Renumbered => "renumbered",
            Self::Spoofed => "spoofed",
            Self::Reset => "reset",
            Self::BadRequest => "bad-request",
            Self::Flow => "flow",
            Self::FlowRefused => "flow-refused",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Ended => "ended",
        }
    }
}

/// One thing that happened. Which guest it is about stands beside it, in the record.
#[derive(Debug)]
pub enum Event {
    /// A front end has attached.
    Attached(PeerCredentials),
    /// A front end has gone, or was sent away, for this reason.
    Detached(Detach),
    /// The link to a guest or device cannot go on.
    Fault(LinkFault),
    /// The device of a userspace guest has gone.
    DeviceLeft,
    /// A second front end came while one was attached.
    FrontEndRefused(PeerCredentials),
    /// The driver is up, and there is still no memory.
    NoMemory,
    /// The guest's driver is up.
    Running,
    /// The device has given a userspace guest another CID.
    Renumbered,
    /// A packet named a source CID that is not its sender's.
    Spoofed {
        /// What it named.
        source: u64,
    },
    /// A listening program could not be given a connection.
    NotHandedOver {
        /// Where it listens.
        at: Address,
        /// Why not.
        error: io::Error,
    },
    /// A flow was reset as its program's socket failed.
    FlowReset {
        /// The program's address.
        ours: Address,
        /// The other side's.
        theirs: Address,
        /// How the socket failed.
        error: io::Error,
    },
    /// A program broke the rules of the client protocol.
    BadRequest {
        /// Its number.
        pid: u32,
        /// Which rule.
        bad: BadRequest,
    },
    /// A program wrote to a hybrid socket what is no request.
    BadLine {
        /// Its number.
        pid: u32,
        /// The convention that is spoken there.
        by: &'static str,
        /// What a request is.
        expected: &'static str,
    },
    /// A connection is open.
    FlowOpened(Box<FlowRecord>),
    /// A connection was asked for and did not come about.
    FlowRefused(Box<FlowRecord>, NotOpened),
    /// Something failed here.
    Failed(Failure),
    /// Of one sort of event, so many were only counted.
    HeldBack {
        /// Which sort.
        kind: Kind,
        /// How many.
        count: u64,
    },
    /// So many records were not read in time.
    Lost(u64),
    /// The node has ended without being told to.
    Ended,
}

impl Event {
    /// What sort of event it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Attached(_) => Kind::Attached,
            // What a front end did wrong is a warning in the log; that it went away is not.
            Self::Detached(reason) if reason.is_fault() => Kind::Fault,
            Self::Detached(_) | Self::DeviceLeft => Kind::Detached,
            Self::Fault(_) => Kind::Fault,
            Self::FrontEndRefused(_) | Self::NotHandedOver { .. } => Kind::Refused,
            Self::NoMemory => Kind::NoMemory,
            Self::Running => Kind::Running,
            Self::Renumbered => Kind::Renumbered,
            Self::Spoofed { .. } => Kind::Spoofed,
            Self::FlowReset { .. } => Kind::Reset,
            Self::BadRequest { .. } | Self::BadLine { .. } => Kind::BadRequest,
            Self::FlowOpened(_) => Kind::Flow,
            Self::FlowRefused(..) => Kind::FlowRefused,
            Self::Failed(_) => Kind::Failed,
            Self::HeldBack { kind, .. } => *kind,
            Self::Lost(_) => Kind::Lost,
            Self::Ended => Kind::Ended,
        }
    }

    /// Finds out what the program of a connection calls itself. This reads a file, so the worker must not do it.
    pub(crate) fn name_program(&mut self) {
        if let Self::FlowOpened(record) | Self::FlowRefused(record, _) = self
            && let Some(program) = &mut record.program
        {
            program.name = name_of(program.pid);
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached(peer) => write!(f, "by pid {}", peer.pid),
            Self::Detached(reason) => reason.fmt(f),
            Self::Fault(fault) => fault.fmt(f),
            Self::DeviceLeft => f.write_str("the device hung up"),
            Self::FrontEndRefused(peer) => {
                write!(f, "pid {} also wants to be the front end", peer.pid)
            }
            Self::NoMemory => f.write_str(NO_MEMORY),
            Self::Running => f.write_str("its driver is up"),
            Self::Renumbered => f.write_str("the device says so"),
            Self::Spoofed { source } => {
                write!(f, "packet with source CID {source}, which is not its own")
            }
            Self::NotHandedOver { at, error } => write!(f, "{at}: {error}"),
            Self::FlowReset { ours, theirs, error } => write!(f, "{ours} -> {theirs}: {error}"),
            Self::BadRequest { pid, bad } => write!(f, "request of pid {pid}: {bad}"),
            Self::BadLine { pid, by, expected } => {
                write!(f, "{by} line of pid {pid}: not {expected}")
            }
            Self::FlowOpened(record) => record.fmt(f),
            Self::FlowRefused(record, why) => write!(f, "{record}: {why}"),
            Self::Failed(failure) => failure.fmt(f),
            Self::HeldBack { count, .. } => write!(f, "{count} more were not written"),
            Self::Lost(count) => write!(f, "{count} older records were not read in time"),
            Self::Ended => f.write_str("the node has ended by itself, and nothing works any more"),
        }
    }
}

/// What failed here.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel does not say what happened at descriptors.
    #[error("waiting for events: {0}")]
    Waiting(io::Error),
    /// A program could not be let in.
    #[error("accepting a program: {0}")]
    Accepting(io::Error),
    /// A user has as many connections as one may have.
    #[error(
        "user {0} has as many connections as one user may have; a program of it was not let in"
    )]
    OverShare(u32),
    /// A program's socket could not be listened to.
    #[error("epoll: {0}")]
    Watching(io::Error),
    /// A program's request could not be read.
    #[error("reading a request: {0}")]
    ReadingRequest(io::Error),
    /// A connection of a guest could not be listened to.
    #[error("new connection: {0}")]
    NewConnection(io::Error),
    /// The device does not say what our CID is.
    #[error("reading the CID: {0}")]
    ReadingCid(FrontendError),
    /// A front end could not be told that its guest has another CID.
    #[error("telling the front end of the CID: {0}")]
    TellingCid(io::Error),
    /// A fault in our own code, met on behalf of one program, which is let go.
    #[error("internal error while serving a program")]
    ServingProgram,
    /// The control thread of a guest that is removed does not end.
    #[error("its control thread is left behind: something that its front end sent makes it wait")]
    ThreadLeft,
    /// The worker does not end.
    #[error("the worker is left behind: it waits for something that does not come")]
    WorkerLeft,
    /// The kernel has no signals that do not wait.
    #[error(
        "guests are signalled by way of their control threads, which is slower: the kernel has no AIO for us \
         (io_setup: {0}), and the worker may not wait for a front end"
    )]
    Signals(io::Error),
    /// The link of the node to itself could not be made anew.
    #[error("connections to ourselves are over: {0}")]
    Loopback(io::Error),
}

/// A connection, or the attempt.
#[derive(Debug)]
pub struct FlowRecord {
    /// Who asked.
    pub source: Named,
    /// Who was asked.
    pub destination: Named,
    /// The type of socket.
    pub kind: SocketType,
    /// The program on this node, if there is one and it can be seen.
    pub program: Option<Program>,
    /// The convention of the hybrid socket over which it came, or would have come.
    pub by: Option<&'static str>,
}

impl fmt::Display for FlowRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SocketType::Stream => "stream",
            SocketType::SeqPacket => "seqpacket",
            SocketType::Datagram => "dgram",
        };
        write!(f, "from={} to={} type={kind}", self.source, self.destination)?;
        if let Some(Program { pid, uid, name }) = &self.program {
            write!(f, " pid={pid} uid={uid} program={name:?}")?;
        }
        self.by.map_or(Ok(()), |by| write!(f, " by={by}"))
    }
}

/// An address and the name of whose it is, such as `3:5000(alpha)`.
#[derive(Debug)]
pub struct Named {
    /// The address.
    pub address: Address,
    /// The guest's name, if it has this CID.
    pub guest: Option<String>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { cid, port } = self.address;
        match &self.guest {
            Some(name) => write!(f, "{}:{}({name})", cid.0, port.0),
            None if cid == Cid::HOST => write!(f, "{}:{}(host)", cid.0, port.0),
            None => write!(f, "{}:{}", cid.0, port.0),
        }
    }
}

/// A program on this node.
#[derive(Debug)]
pub struct Program {
    /// Its number.
    pub pid: u32,
    /// Whose it is.
    pub uid: u32,
    /// What it calls itself, which is no more than that; empty until the record is read, and if the program is gone then.
    pub name: String,
}

/// What a program calls itself.
fn name_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end_matches('\n').to_owned()
}

/// Why a connection did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// It was refused here.
    Refused(Refusal),
    /// The other side did not answer as it was asked to.
    Closed(CloseReason),
}

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(refusal) => refusal.text(),
            Self::Closed(CloseReason::Refused | CloseReason::Reset) => "nobody accepts there",
            Self::Closed(CloseReason::TimedOut) => "no answer in time",
            Self::Closed(CloseReason::LinkGone) => "the guest is gone",
            Self::Closed(CloseReason::ProtocolError | CloseReason::OverCredit) => {
                "the other side broke the protocol"
            }
            Self::Closed(CloseReason::Done) => "given up",
        })
    }
}

#[cfg(test)]
mod tests {
    use vsock_core::Port;

    use super::*;

    fn record(program: Option<Program>) -> Box<FlowRecord> {
        let at = |cid, port, guest: Option<&str>| Named {
            address: Address { cid: Cid(cid), port: Port(port) },
            guest: guest.map(str::to_owned),
        };
        let (source, destination) = (at(2, 7, None), at(3, 5000, Some("alpha")));
        let kind = SocketType::Stream;
        Box::new(FlowRecord { source, destination, kind, program, by: Some("hybrid") })
    }

    #[test]
    fn connection_is_told_with_names_program_and_why_not() {
        let program = Program { pid: 9, uid: 1000, name: "curl".to_owned() };
        let why = NotOpened::Closed(CloseReason::TimedOut);
        let event = Event::FlowRefused(record(Some(program)), why);
        let text = "from=2:7(host) to=3:5000(alpha) type=stream pid=9 uid=1000 program=\"curl\" \
            by=hybrid: no answer in time";
        assert_eq!((event.kind().word(), event.to_string().as_str()), ("flow-refused", text));
    }

    #[test]
    fn program_gets_its_name_when_the_record_is_read() {
        let name = String::new();
        let program = Program { pid: std::process::id(), uid: 0, name };
        let mut event = Event::FlowOpened(record(Some(program)));
        assert!(event.to_string().contains("program=\"\""));
        event.name_program();
        assert!(!event.to_string().contains("program=\"\""));
    }

    #[test]
    fn front_end_that_goes_away_is_no_fault() {
        assert_eq!(Event::Detached(Detach::Disconnected).kind(), Kind::Detached);
        assert_eq!(Event::Detached(Detach::Truncated).kind(), Kind::Fault);
    }
}
