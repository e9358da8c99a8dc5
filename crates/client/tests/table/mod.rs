//! Sockets and calls, each with a name, and what a call does to a socket in words.
#![allow(clippy::unwrap_used, reason = "what cannot be made here is a failure of the test")]
#![allow(dead_code, reason = "each test uses its part")]

use vsock_client::calls::{
    Connect, Destination, Direction, HeldConnect, Listen, OwnName, Shutdown, Wait, accept,
    accepted, after_failure, after_silence, after_success, bind, bound, local_cid, peer_name,
    queue_len, take_error,
};
use vsock_client::options::{SetLowWater, SetOption, Setting, Tell, set_zerocopy};
use vsock_client::transfer::{MSG_ERRQUEUE, MSG_OOB, MSG_WAITALL, Receive, Send};
use vsock_client::wire::{Reply, Request, op};
use vsock_client::{Address, Errno, Flags, Options, Socket, State};

const TICK: u64 = 4000;
const PEER: Address = Address { cid: 3, port: 5000 };
const OPTIONS: Options = Options::DEFAULT;

/// Sockets in every state, made by the calls that lead there.
pub(crate) fn sockets() -> Vec<(&'static str, Socket)> {
    let bound = bound(Socket::STREAM.with(Flags::ATTACHED));
    let listening = Listen::new(bound, 5).unwrap().next;
    let attempt = |socket| HeldConnect::new(socket, PEER, &OPTIONS, TICK, false).next;
    let connecting = attempt(bound).with(Flags::BEGUN);
    let connected = after_success(connecting);
    let failed = |socket, errno| after_failure(socket, true).with_error(errno);
    let messages = Reply { theirs: PEER, peer_buffer: 8192, ..Reply::ok(op::ACCEPT, PEER) };
    let shut = |socket, direction| Shutdown::new(socket, direction).unwrap().next;
    let socket = vec![
        ("fresh", Socket::STREAM),
        ("zerocopy", set_zerocopy(Socket::STREAM, 1).unwrap()),
        ("bound", bound),
        ("refused", failed(connecting, Errno::CONNRESET)),
        ("timed-out", failed(connecting, Errno::TIMEDOUT)),
        ("listening", listening),
        ("starting", attempt(bound)),
        ("connecting", connecting),
        ("connected", connected),
        ("messages", accepted(Socket::SEQPACKET.in_state(State::Listening), &messages)),
        ("shut-rd", shut(connected, Direction::Receiving)),
        ("shut-wr", shut(connected, Direction::Sending)),
        ("shut-both", shut(connected, Direction::Both)),
        ("given-up", shut(connecting, Direction::Both)),
        ("silent", after_silence(connecting)),
        ("device", Socket::DEVICE),
    ];
    let states: Vec<State> = socket.iter().map(|(_, socket)| socket.state).collect();
    assert!(State::ALL.iter().all(|state| states.contains(state)), "a state has no socket");
    socket
}

/// What a call does: an errno or other words, and the socket afterwards.
pub(crate) type Call = fn(Socket) -> (String, Socket);

/// All calls.
pub(crate) const CALLS: &[(&str, Call)] = &[
    ("bind", |socket| {
        done(socket, bind(socket, PEER).map(|request| (sent(&request), bound(socket))))
    }),
    ("listen", |socket| {
        let listen = Listen::new(socket, 7).map(|listen| {
            (if listen.is_answered { "LISTEN" } else { "LISTEN unanswered" }, listen.next)
        });
        done(socket, listen)
    }),
    ("connect", |socket| done(socket, connect(socket, false))),
    ("connect non-blocking", |socket| done(socket, connect(socket, true))),
    ("connect waits", |socket| match Wait::new(socket) {
        Wait::GoOn => ("waits".into(), socket),
        Wait::Pause => ("pauses".into(), socket),
        Wait::Return(Ok(()), next) => ("returns".into(), next),
        Wait::Return(Err(error), next) => (name(error), next),
    }),
    ("accept", |socket| done(socket, accept(socket).map(|()| ("takes", socket)))),
    ("recv", |socket| receive(socket, 0, 100)),
    ("recv nothing", |socket| receive(socket, 0, 0)),
    ("recv MSG_OOB", |socket| receive(socket, MSG_OOB, 100)),
    ("recv MSG_ERRQUEUE", |socket| receive(socket, MSG_ERRQUEUE, 100)),
    ("recv MSG_WAITALL of the buffer", |socket| receive(socket, MSG_WAITALL, 262_144)),
    ("send", |socket| send(socket, 0, false, 100)),
    ("send nothing", |socket| send(socket, 0, false, 0)),
    ("send MSG_OOB", |socket| send(socket, MSG_OOB, false, 100)),
    ("send more than fits", |socket| send(socket, 0, false, 262_145)),
    ("send more than is known to fit", |socket| send(socket, 0, false, 8193)),
    ("sendto", |socket| send(socket, 0, true, 100)),
    ("getsockname", |socket| {
        let words = match OwnName::new(socket, None) {
            OwnName::Known(Address::ANY) => "any",
            OwnName::Known(address) => unreachable!("{address:?} for a socket without a name"),
            OwnName::Ask => "FLOW",
        };
        (words.into(), socket)
    }),
    ("getpeername", |socket| done(socket, peer_name(socket).map(|()| ("the peer's", socket)))),
    ("shutdown SHUT_RD", |socket| done(socket, shut_down(socket, 0))),
    ("shutdown SHUT_WR", |socket| done(socket, shut_down(socket, 1))),
    ("shutdown SHUT_RDWR", |socket| done(socket, shut_down(socket, 2))),
    ("shutdown 3", |socket| done(socket, shut_down(socket, 3))),
    ("SO_ERROR", |socket| match take_error(socket) {
        (Errno(0), next) => ("0".into(), next),
        (error, next) => (name(error), next),
    }),
    ("SO_ZEROCOPY 1", |socket| done(socket, set_zerocopy(socket, 1).map(|next| ("", next)))),
    ("SO_ZEROCOPY 2", |socket| done(socket, set_zerocopy(socket, 2).map(|next| ("", next)))),
    ("SO_RCVLOWAT 1", |socket| done(socket, low_water(socket, 1))),
    ("SO_RCVLOWAT 2", |socket| done(socket, low_water(socket, 2))),
    ("SO_RCVLOWAT -1", |socket| done(socket, low_water(socket, -1))),
    ("SO_RCVLOWAT above the buffer", |socket| done(socket, low_water(socket, 262_145))),
    ("SO_VM_SOCKETS_BUFFER_SIZE 4096", |socket| {
        let set = SetOption::new(socket, OPTIONS, Setting::Size(4096), TICK).map(|set| {
            let told = match set.tell {
                Tell::Nothing => "",
                Tell::Listener => "LISTEN unanswered",
                Tell::Connection(_) => "FLOW",
            };
            (told, socket.with_options(&set.options))
        });
        done(socket, set)
    }),
    ("SIOCINQ", |socket| done(socket, queue_len(socket).map(|()| ("descriptor", socket)))),
    ("IOCTL_VM_SOCKETS_GET_LOCAL_CID", |socket| {
        done(socket, local_cid(socket).map(|()| ("LOCAL_CID", socket)))
    }),
];

type Does = Result<(&'static str, Socket), Errno>;

fn connect(socket: Socket, is_nonblocking: bool) -> Does {
    let destination = Destination { address: PEER, to_host: false };
    let not_asked = || unreachable!("only with VMADDR_FLAG_TO_HOST");
    Ok(match Connect::new(socket, is_nonblocking)? {
        Connect::Wait => ("waits", socket),
        Connect::Report(Errno::CONNRESET, next) => ("ECONNRESET", next),
        Connect::Report(error, _) => unreachable!("{error:?} is not in the table"),
        Connect::Begin(begun) => {
            let begun = destination.of(begun, not_asked)?;
            let attempt = HeldConnect::new(begun, PEER, &OPTIONS, TICK, is_nonblocking);
            (sent(&attempt.request), attempt.next)
        }
    })
}

fn receive(socket: Socket, flags: i32, len: usize) -> (String, Socket) {
    let receive = Receive::new(socket, flags, len, || 1, || OPTIONS.size);
    let words = receive.map(|receive| match receive {
        Receive::Nothing => "0",
        Receive::Descriptor => "descriptor",
    });
    done(socket, words.map(|words| (words, socket)))
}

fn send(socket: Socket, flags: i32, has_address: bool, len: usize) -> (String, Socket) {
    let send = Send::new(socket, flags, has_address, len, || OPTIONS.size);
    let words = send.map(|send| match send {
        Send::Nothing => "0",
        Send::Descriptor => "descriptor",
        Send::Broken => "descriptor: EPIPE",
        Send::AskPeerBuffer => "FLOW",
    });
    done(socket, words.map(|words| (words, socket)))
}

fn shut_down(socket: Socket, how: i32) -> Does {
    let shutdown = Shutdown::new(socket, Direction::new(how)?)?;
    assert_eq!(shutdown.ends_connect, socket.state == State::Connecting);
    let words = match (shutdown.descriptor, shutdown.tells_node) {
        (Direction::Receiving, true) => "SHUT_RD FLOW",
        (Direction::Sending, false) => "SHUT_WR",
        (Direction::Both, false) => "SHUT_RDWR",
        other => unreachable!("{other:?}"),
    };
    Ok((words, shutdown.next))
}

fn low_water(socket: Socket, bytes: i32) -> Does {
    Ok(match SetLowWater::new(socket, bytes, || OPTIONS.size)? {
        SetLowWater::Descriptor(next) => ("descriptor", next),
        SetLowWater::Flag(next) => ("", next),
    })
}

fn sent(request: &Request) -> &'static str {
    match request.op() {
        op::BIND => "BIND",
        op::CONNECT => "CONNECT",
        other => unreachable!("operation {other}"),
    }
}

fn done(before: Socket, does: Does) -> (String, Socket) {
    does.map_or_else(|error| (name(error), before), |(words, next)| (words.into(), next))
}

/// The name of an errno.
pub(crate) fn name(error: Errno) -> String {
    let named = Errno::NAMED.iter().find(|(_, known)| *known == error);
    named.map(|(name, _)| (*name).into()).expect("every errno of ours has a name")
}

/// What is new about a socket after a call.
pub(crate) fn changes(before: Socket, after: Socket) -> String {
    let mut words: Vec<String> = Vec::new();
    if after.state != before.state {
        words.push(state(after.state).into());
    }
    for (name, flag) in FLAGS {
        match (before.flags.has(*flag), after.flags.has(*flag)) {
            (false, true) => words.push(format!("+{name}")),
            (true, false) => words.push(format!("-{name}")),
            (false, false) | (true, true) => {}
        }
    }
    if after.error() != before.error() {
        words.push("forgets its error".into());
    }
    words.join(" ")
}

/// All flags, by name.
pub(crate) const FLAGS: &[(&str, Flags)] = &[
    ("ATTACHED", Flags::ATTACHED),
    ("BEGUN", Flags::BEGUN),
    ("STREAM", Flags::STREAM),
    ("MESSAGES", Flags::MESSAGES),
    ("NO_RECEIVING", Flags::NO_RECEIVING),
    ("ZEROCOPY", Flags::ZEROCOPY),
    ("LOW_WATER", Flags::LOW_WATER),
    ("NO_SENDING", Flags::NO_SENDING),
    ("TO_HOST", Flags::TO_HOST),
    ("OPTIONS", Flags::OPTIONS),
    ("END_TOLD", Flags::END_TOLD),
];

/// The name of a state.
pub(crate) fn state(state: State) -> &'static str {
    match state {
        State::Fresh => "FRESH",
        State::Bound => "BOUND",
        State::Listening => "LISTENING",
        State::Connecting => "CONNECTING",
        State::Connected => "CONNECTED",
        State::ShutDown => "SHUT_DOWN",
        State::Device => "DEVICE",
    }
}
