//! The virtio-vsock protocol without I/O: headers in, headers and events out.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`address`] | CIDs, ports, the key of a connection |
//! | [`ids`] | keys of what comes and goes, and the slots that hand them out |
//! | [`time`] | instants as plain numbers; nobody here asks a clock |
//! | [`timers`] | what is due next |
//! | [`packet`] | the 44 byte header: a raw view, and a checked value |
//! | [`credit`] | the two windows of a connection |
//! | [`state`] | state × input → state, effects; nothing else changes a state |
//! | [`connection`] | state, credit and deadlines of one connection |
//! | [`endpoint`] | all connections between our CID and the other side of one link |
//! | [`datagram`] | datagrams: split into packets, and put together again |
//! | [`ports`] | who is bound to which port |
//! | [`relay`] | connections that pass through between two guests |
//! | [`saved`] | all of this as plain data, for a successor |
//! | [`admission`] | who may begin what, and why not |
//!
//! The same code serves a device and a driver; they differ only in who fills which ring. The
//! crate handles lengths, never payload bytes. Every number that the other side chose is checked
//! in [`packet::RawHeader::check`] or bounded by one of ours before it is used.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod address;
pub mod admission;
pub mod connection;
pub mod credit;
pub mod datagram;
pub mod endpoint;
pub mod ids;
pub mod packet;
pub mod ports;
pub mod relay;
pub mod saved;
pub mod state;
mod table;
pub mod time;
pub mod timers;

pub use address::{Address, Cid, FlowKey, Port, SocketType};
pub use admission::{Admission, Attempt, Decision, Refusal, Refused};
pub use connection::ConnectionInfo;
pub use credit::{Position, Window};
pub use endpoint::{ConnectError, ConnectionId, Endpoint, EndpointStats, Event, Limits, Received};
pub use ids::{Key, SecondaryMap, Slots};
pub use packet::{EOM, EOR, HEADER_LEN, Header, MAX_PAYLOAD, Malformed, Op, RawHeader, Shutdown};
pub use ports::{BindError, Binding, ListenError, Listener, Ports};
pub use relay::{FlowId, FlowInfo, Relay, RelayLimits, RelayStats, Verdict};
pub use state::CloseReason;
pub use time::{Duration, Instant};
pub use timers::Timers;
