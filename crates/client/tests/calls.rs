//! Every call on a socket in every state, against a table: what is sent or returned, and what the socket is afterwards.

mod table;

use std::collections::{BTreeMap, BTreeSet};

use vsock_client::Socket;

/// Sockets that are neither connected nor about to be.
const UNUSED: &str = "fresh zerocopy bound refused timed-out listening";
const CONNECTING: &str = "starting connecting";
const CONNECTED: &str = "connected messages";
/// Connections that their program has shut down.
const SHUT: &str = "shut-rd shut-wr shut-both";
/// Those that it has shut down, or that were spent, before there was a connection.
const SPENT: &str = "given-up silent";
const ALL: &str = "fresh zerocopy bound refused timed-out listening starting connecting connected \
                   messages shut-rd shut-wr shut-both given-up silent device";

/// What a call does, and to which sockets.
type Groups = &'static [(&'static str, &'static [&'static str])];

/// All calls.
const EXPECTED: &[(&str, Groups)] = &[
    (
        "bind",
        &[
            ("BIND → BOUND", &["fresh zerocopy"]),
            (
                "EINVAL",
                &["bound refused timed-out listening device", CONNECTING, CONNECTED, SHUT, SPENT],
            ),
        ],
    ),
    (
        "listen",
        &[
            ("LISTEN → LISTENING", &["bound refused timed-out"]),
            ("LISTEN unanswered", &["listening"]),
            ("EINVAL", &["fresh zerocopy device", CONNECTING, CONNECTED, SHUT, SPENT]),
        ],
    ),
    (
        "connect",
        &[
            ("CONNECT → CONNECTING", &["fresh bound"]),
            ("CONNECT → CONNECTING forgets its error", &["timed-out"]),
            ("ECONNRESET → forgets its error", &["refused"]),
            ("EOPNOTSUPP", &["zerocopy"]),
            ("waits", &[CONNECTING]),
            ("EISCONN", &[CONNECTED]),
            ("EINVAL", &["listening device", SHUT, SPENT]),
        ],
    ),
    (
        "connect non-blocking",
        &[
            ("CONNECT → CONNECTING", &["fresh bound"]),
            ("CONNECT → CONNECTING forgets its error", &["timed-out"]),
            ("ECONNRESET → forgets its error", &["refused"]),
            ("EOPNOTSUPP", &["zerocopy"]),
            ("EALREADY", &[CONNECTING]),
            ("EISCONN", &[CONNECTED]),
            ("EINVAL", &["listening device", SHUT, SPENT]),
        ],
    ),
    (
        "connect waits",
        &[
            ("waits", &["connecting"]),
            ("pauses", &["starting"]),
            ("returns", &[CONNECTED, SHUT, SPENT]),
            ("ECONNRESET → forgets its error", &["refused"]),
            ("ETIMEDOUT → forgets its error", &["timed-out"]),
            ("ECONNRESET", &["fresh zerocopy bound listening device"]),
        ],
    ),
    (
        "accept",
        &[
            ("takes", &["listening"]),
            (
                "EINVAL",
                &[
                    "fresh zerocopy bound refused timed-out device",
                    CONNECTING,
                    CONNECTED,
                    SHUT,
                    SPENT,
                ],
            ),
        ],
    ),
    (
        "recv",
        &[
            ("descriptor", &[CONNECTED, "shut-wr"]),
            ("0", &["shut-rd shut-both"]),
            ("ENOTCONN", &[UNUSED, CONNECTING, SPENT]),
            ("EINVAL", &["device"]),
        ],
    ),
    (
        "recv nothing",
        &[
            ("0", &[CONNECTED, SHUT]),
            ("ENOTCONN", &[UNUSED, CONNECTING, SPENT]),
            ("EINVAL", &["device"]),
        ],
    ),
    (
        "recv MSG_OOB",
        &[
            ("EOPNOTSUPP", &[CONNECTED, SHUT]),
            ("ENOTCONN", &[UNUSED, CONNECTING, SPENT]),
            ("EINVAL", &["device"]),
        ],
    ),
    ("recv MSG_ERRQUEUE", &[("EAGAIN", &[ALL])]),
    (
        "recv MSG_WAITALL of the buffer",
        &[
            ("ENOMEM", &["connected shut-wr"]),
            ("descriptor", &["messages"]),
            ("0", &["shut-rd shut-both"]),
            ("ENOTCONN", &[UNUSED, CONNECTING, SPENT]),
            ("EINVAL", &["device"]),
        ],
    ),
    (
        "send",
        &[
            ("descriptor", &[CONNECTED, "shut-rd"]),
            ("descriptor: EPIPE", &["shut-wr shut-both given-up"]),
            ("ENOTCONN", &[UNUSED, CONNECTING, "silent"]),
            ("EINVAL", &["device"]),
        ],
    ),
    (
        "send nothing",
        &[
            ("descriptor", &["connected shut-rd"]),
            ("0", &["messages"]),
            ("descriptor: EPIPE", &["shut-wr shut-both given-up"]),
            ("ENOTCONN", &[UNUSED, CONNECTING, "silent"]),
            ("EINVAL", &["device"]),
        ],
    ),
    ("send MSG_OOB", &[("EOPNOTSUPP", &[ALL])]),
    (
        "send more than fits",
        &[
            ("descriptor", &["connected shut-rd"]),
            ("EMSGSIZE", &["messages"]),
            ("descriptor: EPIPE", &["shut-wr shut-both given-up"]),
            ("ENOTCONN", &[UNUSED, CONNECTING, "silent"]),
            ("EINVAL", &["device"]),
        ],
    ),
    (
        "send more than is known to fit",
        &[
            ("descriptor", &["connected shut-rd"]),
            ("FLOW", &["messages"]),
            ("descriptor: EPIPE", &["shut-wr shut-both given-up"]),
            ("ENOTCONN", &[UNUSED, CONNECTING, "silent"]),
            ("EINVAL", &["device"]),
        ],
    ),
    (
        "sendto",
        &[("EISCONN", &[CONNECTED, SHUT]), ("EOPNOTSUPP", &[UNUSED, CONNECTING, SPENT, "device"])],
    ),
    (
        "getsockname",
        &[("FLOW", &[CONNECTED, SHUT]), ("any", &[UNUSED, CONNECTING, SPENT, "device"])],
    ),
    (
        "getpeername",
        &[("the peer's", &[CONNECTED]), ("ENOTCONN", &[UNUSED, CONNECTING, SHUT, SPENT, "device"])],
    ),
    (
        "shutdown SHUT_RD",
        &[
            ("SHUT_RD FLOW → SHUT_DOWN +NO_RECEIVING", &[CONNECTED]),
            ("SHUT_RD FLOW → +NO_RECEIVING", &["shut-wr"]),
            ("SHUT_RD FLOW", &["shut-rd shut-both"]),
            ("SHUT_RDWR → SHUT_DOWN +NO_RECEIVING", &[CONNECTING]),
            ("ENOTCONN", &[UNUSED, SPENT, "device"]),
        ],
    ),
    (
        "shutdown SHUT_WR",
        &[
            ("SHUT_WR → SHUT_DOWN +NO_SENDING", &[CONNECTED]),
            ("SHUT_WR → +NO_SENDING", &["shut-rd"]),
            ("SHUT_WR", &["shut-wr shut-both"]),
            ("SHUT_RDWR → SHUT_DOWN +NO_SENDING", &[CONNECTING]),
            ("ENOTCONN", &[UNUSED, SPENT, "device"]),
        ],
    ),
    (
        "shutdown SHUT_RDWR",
        &[
            ("SHUT_RDWR → SHUT_DOWN +NO_RECEIVING +NO_SENDING", &[CONNECTED, CONNECTING]),
            ("SHUT_RDWR → +NO_SENDING", &["shut-rd"]),
            ("SHUT_RDWR → +NO_RECEIVING", &["shut-wr"]),
            ("SHUT_RDWR", &["shut-both"]),
            ("ENOTCONN", &[UNUSED, SPENT, "device"]),
        ],
    ),
    ("shutdown 3", &[("EINVAL", &[ALL])]),
    (
        "SO_ERROR",
        &[
            ("ECONNRESET → forgets its error", &["refused"]),
            ("ETIMEDOUT → forgets its error", &["timed-out"]),
            ("0", &["fresh zerocopy bound listening device", CONNECTING, CONNECTED, SHUT, SPENT]),
        ],
    ),
    (
        "SO_ZEROCOPY 1",
        &[
            ("→ +ZEROCOPY", &["fresh bound refused timed-out listening device", CONNECTING, SPENT]),
            ("", &["zerocopy"]),
            ("EOPNOTSUPP", &[CONNECTED, SHUT]),
        ],
    ),
    ("SO_ZEROCOPY 2", &[("EINVAL", &[ALL])]),
    (
        "SO_RCVLOWAT 1",
        &[("descriptor", &[UNUSED, CONNECTED, SHUT, SPENT, "device"]), ("", &[CONNECTING])],
    ),
    ("SO_RCVLOWAT 2", &[("descriptor → +LOW_WATER", &[ALL])]),
    (
        "SO_RCVLOWAT -1",
        &[
            ("descriptor → +LOW_WATER", &["messages"]),
            ("EINVAL", &[UNUSED, CONNECTING, "connected", SHUT, SPENT, "device"]),
        ],
    ),
    (
        "SO_RCVLOWAT above the buffer",
        &[
            ("descriptor → +LOW_WATER", &["messages"]),
            ("EINVAL", &[UNUSED, CONNECTING, "connected", SHUT, SPENT, "device"]),
        ],
    ),
    (
        "SO_VM_SOCKETS_BUFFER_SIZE 4096",
        &[
            ("→ +OPTIONS", &["fresh zerocopy bound refused timed-out device", CONNECTING, SPENT]),
            ("LISTEN unanswered → +OPTIONS", &["listening"]),
            ("FLOW → +OPTIONS", &[CONNECTED, SHUT]),
        ],
    ),
    (
        "SIOCINQ",
        &[
            ("descriptor", &[CONNECTED, SHUT]),
            ("EOPNOTSUPP", &[UNUSED, CONNECTING, SPENT, "device"]),
        ],
    ),
    (
        "IOCTL_VM_SOCKETS_GET_LOCAL_CID",
        &[("LOCAL_CID", &["device"]), ("ENOTTY", &[UNUSED, CONNECTING, CONNECTED, SHUT, SPENT])],
    ),
];

#[test]
fn every_call_does_to_every_socket_what_the_table_says() {
    let calls: BTreeSet<&str> = table::CALLS.iter().map(|(call, _)| *call).collect();
    assert_eq!(calls, EXPECTED.iter().map(|(call, _)| *call).collect());
    for (call, does) in table::CALLS {
        let (_, groups) = EXPECTED.iter().find(|(name, _)| name == call).unwrap();
        let mut expected = BTreeMap::new();
        for (words, sockets) in *groups {
            for socket in sockets.iter().flat_map(|group| group.split(' ')) {
                assert_eq!(expected.insert(socket, *words), None, "{call}: {socket} stands twice");
            }
        }
        let sockets = table::sockets();
        let done: BTreeMap<&str, String> =
            sockets.iter().map(|(name, socket)| (*name, describe(*socket, *does))).collect();
        let done: BTreeMap<&str, &str> =
            done.iter().map(|(name, words)| (*name, words.as_str())).collect();
        assert_eq!(done, expected, "{call}");
    }
}

/// What a call does, and after an arrow what is new about the socket.
fn describe(socket: Socket, call: table::Call) -> String {
    let (words, next) = call(socket);
    let changes = table::changes(socket, next);
    let arrow = if changes.is_empty() { "" } else { "→ " };
    format!("{words} {arrow}{changes}").trim().into()
}
