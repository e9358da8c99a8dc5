//! Snapshots and events as frozen Python objects.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use pyo3::prelude::*;
use vsock_virtio::journal::Record;
use vsock_virtio::snapshot;

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
        Self { kind: record.kind, cid: record.cid, detail: record.detail, time }
    }
}

/// One guest.
#[pyclass(frozen, get_all, module = "vsock._native")]
pub(crate) struct GuestInfo {
    cid: u32,
    options: Options,
    state: &'static str,
    front_end_pid: u32,
    features: u64,
    connections: u64,
    bytes_in: u64,
    bytes_out: u64,
    packets_in: u64,
    packets_out: u64,
    errors: u64,
    counters: HashMap<&'static str, u64>,
}

impl From<snapshot::GuestInfo> for GuestInfo {
    fn from(guest: snapshot::GuestInfo) -> Self {
        let counters: HashMap<_, _> = guest.counters.into_iter().collect();
        let count = |name| counters.get(name).copied().unwrap_or(0);
        Self {
            cid: guest.cid,
            options: guest.options.into(),
            state: match guest.state {
                snapshot::GuestState::Waiting => "waiting",
                snapshot::GuestState::Attached => "attached",
                snapshot::GuestState::Running => "running",
            },
            front_end_pid: guest.front_end_pid,
            features: guest.features,
            connections: guest.connections,
            bytes_in: count("bytes_in"),
            bytes_out: count("bytes_out"),
            packets_in: count("packets_in"),
            packets_out: count("packets_out"),
            errors: ["malformed", "spoofed", "overflows", "faults"].map(count).iter().sum(),
            counters,
        }
    }
}

/// One listening program.
#[pyclass(frozen, get_all, module = "vsock._native")]
pub(crate) struct ListenerInfo {
    cid: u32,
    port: u32,
    r#type: &'static str,
    backlog: u32,
    waiting: u32,
    pid: u32,
    uid: u32,
}

impl From<snapshot::ListenerInfo> for ListenerInfo {
    fn from(listener: snapshot::ListenerInfo) -> Self {
        Self {
            cid: listener.address.cid.0,
            port: listener.address.port.0,
            r#type: type_name(listener.kind),
            backlog: listener.backlog,
            waiting: listener.waiting,
            pid: listener.pid,
            uid: listener.uid,
        }
    }
}

/// One datagram socket.
#[pyclass(frozen, get_all, module = "vsock._native")]
pub(crate) struct DatagramInfo {
    cid: u32,
    port: u32,
    sent: u64,
    received: u64,
    dropped: u64,
    pid: u32,
    uid: u32,
}

impl From<snapshot::DatagramInfo> for DatagramInfo {
    fn from(socket: snapshot::DatagramInfo) -> Self {
        Self {
            cid: socket.address.cid.0,
            port: socket.address.port.0,
            sent: socket.sent,
            received: socket.received,
            dropped: socket.dropped,
            pid: socket.pid,
            uid: socket.uid,
        }
    }
}

/// One connection.
#[pyclass(frozen, get_all, module = "vsock._native")]
pub(crate) struct FlowInfo {
    id: u64,
    r#type: &'static str,
    source: (u32, u32),
    destination: (u32, u32),
    state: &'static str,
    bytes_out: u64,
    bytes_in: u64,
    age: f64,
    pid: u32,
}

impl From<snapshot::FlowInfo> for FlowInfo {
    fn from(flow: snapshot::FlowInfo) -> Self {
        Self {
            id: flow.id,
            r#type: type_name(flow.kind),
            source: (flow.source.cid.0, flow.source.port.0),
            destination: (flow.destination.cid.0, flow.destination.port.0),
            state: flow.state,
            bytes_out: flow.bytes_out,
            bytes_in: flow.bytes_in,
            age: flow.age.as_secs_f64(),
            pid: flow.pid,
        }
    }
}

/// A node and everything in it, at one moment.
#[pyclass(frozen, get_all, module = "vsock._native")]
pub(crate) struct Snapshot {
    guests: Vec<Py<GuestInfo>>,
    listeners: Vec<Py<ListenerInfo>>,
    datagrams: Vec<Py<DatagramInfo>>,
    flows: Vec<Py<FlowInfo>>,
    counters: HashMap<&'static str, u64>,
}

impl Snapshot {
    /// The Python form of a snapshot.
    pub(crate) fn new(py: Python<'_>, taken: snapshot::Snapshot) -> PyResult<Self> {
        let guests = taken.guests.into_iter().map(|item| Py::new(py, GuestInfo::from(item)));
        let listeners =
            taken.listeners.into_iter().map(|item| Py::new(py, ListenerInfo::from(item)));
        let datagrams =
            taken.datagrams.into_iter().map(|item| Py::new(py, DatagramInfo::from(item)));
        let flows = taken.flows.into_iter().map(|item| Py::new(py, FlowInfo::from(item)));
        Ok(Self {
            guests: guests.collect::<PyResult<_>>()?,
            listeners: listeners.collect::<PyResult<_>>()?,
            datagrams: datagrams.collect::<PyResult<_>>()?,
            flows: flows.collect::<PyResult<_>>()?,
            counters: taken.counters.into_iter().collect(),
        })
    }
}
