//! Snapshots as Python dictionaries, and events as frozen objects.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use pyo3::prelude::*;
use vsock_core::Cid;
use vsock_node::journal::Record;
use vsock_node::snapshot;

use crate::options::Options;

/// The word for a socket type.
fn type_name(kind: vsock_core::SocketType) -> &'static str {
    match kind {
        vsock_core::SocketType::Stream => "stream",
        vsock_core::SocketType::SeqPacket => "seqpacket",
        vsock_core::SocketType::Datagram => "dgram",
    }
}

/// One thing that happened.
#[pyclass(frozen, get_all, module = "vsock._native")]
pub(crate) struct Event {
    kind: &'static str,
    cid: u32,
    detail: String,
    time: f64,
}

impl From<Record> for Event {
    fn from(record: Record) -> Self {
        let time = record.at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let kind = record.event.kind().word();
        let cid = record.about.unwrap_or(Cid::ANY).0;
        Self { kind, cid, detail: record.to_string(), time }
    }
}

/// Declares a record as Python gets it, a dictionary, and the value of each field from the data plane's own record.
macro_rules! record {
    ($(#[$about:meta])* $name:ident($it:ident: $from:ty) { $($field:ident: $kind:ty = $value:expr,)* }) => {
        $(#[$about])*
        #[derive(IntoPyObject)]
        pub(crate) struct $name {
            $($field: $kind,)*
        }

        impl From<$from> for $name {
            fn from($it: $from) -> Self {
                Self { $($field: $value,)* }
            }
        }
    };
}

record! {
    /// One guest.
    GuestInfo(guest: snapshot::GuestInfo) {
        cid: u32 = guest.cid,
        options: Options = guest.options.into(),
        state: &'static str = match guest.state {
            snapshot::GuestState::Waiting => "waiting",
            snapshot::GuestState::Attached => "attached",
            snapshot::GuestState::Running => "running",
        },
        front_end_pid: u32 = guest.front_end_pid,
        features: u64 = guest.features,
        connections: u64 = guest.connections,
        bytes_in: u64 = guest.bytes_in,
        bytes_out: u64 = guest.bytes_out,
        packets_in: u64 = guest.packets_in,
        packets_out: u64 = guest.packets_out,
        errors: u64 = guest.errors,
        counters: HashMap<&'static str, u64> = guest.counters.into_iter().collect(),
    }
}

record! {
    /// One listening program.
    ListenerInfo(listener: snapshot::ListenerInfo) {
        cid: u32 = listener.address.cid.0,
        port: u32 = listener.address.port.0,
        r#type: &'static str = type_name(listener.kind),
        backlog: u32 = listener.backlog,
        waiting: u32 = listener.waiting,
        pid: u32 = listener.pid,
        uid: u32 = listener.uid,
    }
}

record! {
    /// One datagram socket.
    DatagramInfo(socket: snapshot::DatagramInfo) {
        cid: u32 = socket.address.cid.0,
        port: u32 = socket.address.port.0,
        sent: u64 = socket.sent,
        received: u64 = socket.received,
        dropped: u64 = socket.dropped,
        pid: u32 = socket.pid,
        uid: u32 = socket.uid,
    }
}

record! {
    /// One connection.
    FlowInfo(flow: snapshot::FlowInfo) {
        id: u64 = flow.id,
        r#type: &'static str = type_name(flow.kind),
        source: (u32, u32) = (flow.source.cid.0, flow.source.port.0),
        destination: (u32, u32) = (flow.destination.cid.0, flow.destination.port.0),
        state: &'static str = flow.state,
        bytes_out: u64 = flow.bytes_out,
        bytes_in: u64 = flow.bytes_in,
        age: f64 = flow.age.as_secs_f64(),
        pid: u32 = flow.pid,
    }
}

record! {
    /// A node and everything in it, at one moment.
    Snapshot(taken: snapshot::Snapshot) {
        guests: Vec<GuestInfo> = taken.guests.into_iter().map(GuestInfo::from).collect(),
        listeners: Vec<ListenerInfo> = taken.listeners.into_iter().map(ListenerInfo::from).collect(),
        datagrams: Vec<DatagramInfo> = taken.datagrams.into_iter().map(DatagramInfo::from).collect(),
        flows: Vec<FlowInfo> = taken.flows.into_iter().map(FlowInfo::from).collect(),
        sandbox: String = taken.sandbox,
        counters: HashMap<&'static str, u64> = taken.counters.into_iter().collect(),
    }
}
