//! What a node looks like at one moment, as plain data: for listings, metrics and tests.

use std::time::Duration;

use vsock_core::{Address, SocketType};

use crate::options::GuestOptions;

/// A node and everything in it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Guests of a switch, by CID.
    pub guests: Vec<GuestInfo>,
    /// Ports on which programs listen.
    pub listeners: Vec<ListenerInfo>,
    /// Programs that are bound to datagram ports.
    pub datagrams: Vec<DatagramInfo>,
    /// Connections, those between guests included.
    pub flows: Vec<FlowInfo>,
    /// What the threads of the node have given up: on, partly or off, and why.
    pub sandbox: String,
    /// Counters of the node as a whole, by name.
    pub counters: Vec<(&'static str, u64)>,
}

/// How far a guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// No front end is attached.
    Waiting,
    /// A front end is attached; the guest's driver does not run.
    Attached,
    /// The guest's driver runs.
    Running,
}

/// One guest of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestInfo {
    /// Its CID.
    pub cid: u32,
    /// Its options.
    pub options: GuestOptions,
    /// How far it has come.
    pub state: GuestState,
    /// Process id of its front end (0: none, or not visible).
    pub front_end_pid: u32,
    /// Virtio features its driver took.
    pub features: u64,
    /// Connections with programs on this node, in any state.
    pub connections: u64,
    /// Payload bytes from the guest.
    pub bytes_in: u64,
    /// Payload bytes to the guest.
    pub bytes_out: u64,
    /// Packets from the guest.
    pub packets_in: u64,
    /// Packets to the guest.
    pub packets_out: u64,
    /// Malformed and spoofed packets, packets that found no room, and attachments that ended because of a fault.
    pub errors: u64,
    /// Counters, by name.
    pub counters: Vec<(&'static str, u64)>,
}

/// One listening program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerInfo {
    /// Where it listens.
    pub address: Address,
    /// Socket type.
    pub kind: SocketType,
    /// Its backlog.
    pub backlog: u32,
    /// Connections it has not taken yet.
    pub waiting: u32,
    /// The program.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// One datagram socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatagramInfo {
    /// What it is bound to.
    pub address: Address,
    /// Datagrams by it that left this node, or were received on it.
    pub sent: u64,
    /// Datagrams for it that it can receive, or has.
    pub received: u64,
    /// Datagrams for it that were lost because it did not receive.
    pub dropped: u64,
    /// The program.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Its number.
    pub id: u64,
    /// Socket type.
    pub kind: SocketType,
    /// Who asked for it.
    pub source: Address,
    /// Who was asked.
    pub destination: Address,
    /// Name of its state.
    pub state: &'static str,
    /// Payload bytes from source to destination.
    pub bytes_out: u64,
    /// Payload bytes from destination to source.
    pub bytes_in: u64,
    /// How long ago it was asked for.
    pub age: Duration,
    /// The program on this node (0: none, or not visible).
    pub pid: u32,
}
