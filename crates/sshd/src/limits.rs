//! How much of each thing there may be: of what a peer causes, nothing grows without bound.

use std::time::Duration;

/// Connections at once.
pub(crate) const CONNECTIONS: usize = 32;

/// Connections at once that have not logged in.
pub(crate) const LOGINS: usize = 8;

/// How long logging in may take, from the first byte on. An emulated guest computes for seconds.
pub(crate) const LOGIN_TIME: Duration = Duration::from_secs(60);

/// Refused keys and other failed attempts in one login.
pub(crate) const LOGIN_ATTEMPTS: usize = 10;

/// Channels of a connection at once; each has at most one process.
pub(crate) const CHANNELS: usize = 64;

/// Ports and sockets of a connection at once on which the server listens for the client (`ssh -R`, agents).
pub(crate) const LISTENERS: usize = 16;

/// Variables that a client may set for a process, and their bytes.
pub(crate) const VARIABLES: usize = 64;
pub(crate) const VARIABLE_BYTES: usize = 64 << 10;

/// Bytes that a client may send on a channel before it is told to go on.
pub(crate) const WINDOW: u32 = 512 << 10;

/// The largest packet of a channel.
pub(crate) const PACKET: u32 = 32 << 10;

/// Bytes of a connection that nobody has read yet, until no more are received: see `backlog.rs`.
pub(crate) const BACKLOG: usize = 1 << 20;

/// The same while output waits for the client.
pub(crate) const BACKLOG_WHILE_OUTPUT_WAITS: usize = 8 << 20;

/// How long to wait when this process or the guest has no descriptors or memory for a connection.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// How long a connection to a service of the guest may take to open.
pub(crate) const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Bytes of output that are sent after the end of a process: the most that an unprivileged program can have in a pipe
/// (pipe(7)).
pub(crate) const LAST_OUTPUT: usize = 1 << 20;

/// How long a program or a service of the guest may take for the input that a client sent before it closed the channel.
pub(crate) const LAST_INPUT_TIME: Duration = Duration::from_secs(10);

/// How often it is looked whether a program has read its last input.
pub(crate) const LOOK_TIME: Duration = Duration::from_millis(10);

/// How long a process may go on when its channel has been closed: to read what is in its pipe, after the end of its
/// input, and after SIGHUP.
pub(crate) const GRACE_TIME: Duration = Duration::from_secs(2);

/// Bytes of a file of keys.
pub(crate) const KEY_FILE_BYTES: u64 = 256 << 10;
