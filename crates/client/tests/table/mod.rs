//! Sockets and calls, each with a name, and what a call does to a socket in words.
#![allow(clippy::unwrap_used, reason = "what cannot be made here is a failure of the test")]
#![allow(dead_code, reason = "each test uses its part")]

use vsock_client::calls::{
    Attempt, Connect, Destination, Direction, Listen, OwnName, SetLowWater, SetOption, Shutdown,
    Tell, Wait, accept, accepted, after_failure, after_silence, after_success, bind, bound,
    local_cid, peer_name, queue_len, set_zerocopy, take_error,
};
use vsock_client::options::Setting;
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
    let attempt = |socket| Attempt::new(socket, PEER, &OPTIONS, TICK, false).next;
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

/// What a call does to a socket: an errno, or words and the socket afterwards.
pub(crate) type Call = fn(Socket) -> String;

/// All calls.
pub(crate) const CALLS: &[(&str, Call)] = &[
    ("bind", |socket| {
        told(bind(socket, PEER), |request| then(socket, sent(&request), bound(socket)))
    }),
    ("listen", |socket| {
        told(Listen::new(socket, 7), |listen| {
            let reply = if listen.is_answered { "LISTEN" } else { "LISTEN unanswered" };
            then(socket, reply, listen.next)
        })
    }),
    ("connect", |socket| connect(socket, false)),
    ("connect non-blocking", |socket| connect(socket, true)),
    ("connect waits", |socket| match Wait::new(socket) {
        Wait::GoOn => "waits".into(),
        Wait::Return(result, next) => {
            then(socket, &result.map_or_else(name, |()| "returns".into()), next)
        }
    }),
    ("accept", |socket| told(accept(socket), |()| "takes".into())),
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
    ("getsockname", |socket| match OwnName::new(socket, None) {
        OwnName::Known(Address::ANY) => "any".into(),
        OwnName::Known(address) => format!("{address:?}"),
        OwnName::Ask => "FLOW".into(),
    }),
    ("getpeername", |socket| told(peer_name(socket), |()| socket.peer_cid().to_string())),
    ("shutdown SHUT_RD", |socket| shut_down(socket, 0)),
    ("shutdown SHUT_WR", |socket| shut_down(socket, 1)),
    ("shutdown SHUT_RDWR", |socket| shut_down(socket, 2)),
    ("shutdown 3", |socket| shut_down(socket, 3)),
    ("SO_ERROR", |socket| {
        let (error, next) = take_error(socket);
        then(socket, &if error == Errno(0) { "0".into() } else { name(error) }, next)
    }),
    ("SO_ZEROCOPY 1", |socket| told(set_zerocopy(socket, 1), |next| then(socket, "", next))),
    ("SO_ZEROCOPY 2", |socket| told(set_zerocopy(socket, 2), |next| then(socket, "", next))),
    ("SO_RCVLOWAT 1", |socket| low_water(socket, 1)),
    ("SO_RCVLOWAT 2", |socket| low_water(socket, 2)),
    ("SO_RCVLOWAT -1", |socket| low_water(socket, -1)),
    ("SO_RCVLOWAT above the buffer", |socket| low_water(socket, 262_145)),
    ("SO_VM_SOCKETS_BUFFER_SIZE", |socket| {
        let set = SetOption::new(socket, OPTIONS, Setting::Size(4096), TICK);
        told(set, |set| {
            let told = match set.tell {
                Tell::Nothing => "",
                Tell::Listener => "LISTEN unanswered",
                Tell::Connection(_) => "FLOW",
            };
            then(socket, told, socket.with_options(&set.options))
        })
    }),
    ("SIOCINQ", |socket| told(queue_len(socket), |()| "descriptor".into())),
    ("IOCTL_VM_SOCKETS_GET_LOCAL_CID", |socket| told(local_cid(socket), |()| "LOCAL_CID".into())),
];

fn connect(socket: Socket, is_nonblocking: bool) -> String {
    let destination = Destination { address: PEER, to_host: false };
    told(Connect::new(socket, is_nonblocking), |connect| match connect {
        Connect::Wait => "waits".into(),
        Connect::Report(error, next) => then(socket, &name(error), next),
        Connect::Begin(begun) => {
            told(destination.of(begun, || unreachable!("only with VMADDR_FLAG_TO_HOST")), |begun| {
                let attempt = Attempt::new(begun, PEER, &OPTIONS, TICK, is_nonblocking);
                then(socket, sent(&attempt.request), attempt.next)
            })
        }
    })
}

fn receive(socket: Socket, flags: i32, len: usize) -> String {
    let checked = Receive::new(socket, flags, len, || 1, || OPTIONS.size);
    told(checked, |receive| match receive {
        Receive::Nothing => "0".into(),
        Receive::Descriptor => "descriptor".into(),
    })
}

fn send(socket: Socket, flags: i32, has_address: bool, len: usize) -> String {
    let checked = Send::new(socket, flags, has_address, len, || OPTIONS.size);
    told(checked, |send| match send {
        Send::Nothing => "0".into(),
        Send::Descriptor => "descriptor".into(),
        Send::Broken => "descriptor: EPIPE".into(),
        Send::AskPeerBuffer => "FLOW".into(),
    })
}

fn shut_down(socket: Socket, how: i32) -> String {
    let shutdown = Direction::new(how).and_then(|direction| Shutdown::new(socket, direction));
    told(shutdown, |shutdown| {
        let descriptor = match shutdown.descriptor {
            Direction::Receiving => "SHUT_RD",
            Direction::Sending => "SHUT_WR",
            Direction::Both => "SHUT_RDWR",
        };
        let told = if shutdown.tells_node { " FLOW" } else { "" };
        assert_eq!(shutdown.ends_connect, socket.state == State::Connecting);
        then(socket, &format!("{descriptor}{told}"), shutdown.next)
    })
}

fn low_water(socket: Socket, bytes: i32) -> String {
    told(SetLowWater::new(socket, bytes, || OPTIONS.size), |set| match set {
        SetLowWater::Descriptor(next) => then(socket, "descriptor", next),
        SetLowWater::Flag(next) => then(socket, "", next),
    })
}

fn sent(request: &Request) -> &'static str {
    match request.op() {
        op::BIND => "BIND",
        op::CONNECT => "CONNECT",
        other => unreachable!("operation {other}"),
    }
}

fn told<T>(result: Result<T, Errno>, words: impl FnOnce(T) -> String) -> String {
    result.map_or_else(name, words)
}

/// The name of an errno.
pub(crate) fn name(error: Errno) -> String {
    let named = Errno::NAMED.iter().find(|(_, known)| *known == error);
    named.map(|(name, _)| (*name).into()).expect("every errno of ours has a name")
}

/// What happens, and what is new about the socket afterwards.
fn then(before: Socket, what: &str, after: Socket) -> String {
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
    match (what, words.is_empty()) {
        (what, true) => what.into(),
        ("", false) => format!("→ {}", words.join(" ")),
        (what, false) => format!("{what} → {}", words.join(" ")),
    }
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
