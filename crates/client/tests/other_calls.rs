//! What calls do that depends on more than the socket: addresses, replies, outcomes and options.

use vsock_client::calls::{
    Beginning, Connect, Destination, Direction, HeldConnect, Listen, Outcome, OwnName, Seen,
    Shutdown, accepted, after_failure, after_success, bind, create, listen_message,
};
use vsock_client::options::{SetLowWater, SetOption, Setting, Tell};
use vsock_client::transfer::{MSG_WAITALL, Receive, Send, may_have_lost_data, needs_no_checks};
use vsock_client::wire::{INHERITED_LEN, MESSAGE_LEN, Reply, Report, Request, op};
use vsock_client::{ANY, Address, Errno, Flags, Options, Socket, State};

const TICK: u64 = 4000;
const PEER: Address = Address { cid: 3, port: 5000 };
const OURS: Address = Address { cid: ANY, port: 1234 };

fn connected() -> Socket {
    after_success(attempt(Socket::STREAM.with(Flags::ATTACHED)))
}

fn attempt(socket: Socket) -> Socket {
    HeldConnect::new(socket, PEER, &Options::DEFAULT, TICK, false).next
}

#[test]
fn socket_is_made_of_the_types_of_af_vsock_alone() {
    let table = [
        (1, 0, Ok(Socket::STREAM)),
        (1, 40, Ok(Socket::STREAM)),
        (5, 0, Ok(Socket::SEQPACKET)),
        (2, 0, Err(Errno::NODEV)),
        (3, 0, Err(Errno::SOCKTNOSUPPORT)),
        (0, 0, Err(Errno::SOCKTNOSUPPORT)),
        (11, 1, Err(Errno::INVAL)),
        (3, 1, Err(Errno::PROTONOSUPPORT)),
    ];
    for (kind, protocol, expected) in table {
        assert_eq!(create(kind, protocol), expected, "{kind} {protocol}");
    }
}

#[test]
fn bind_asks_for_the_address() {
    assert_eq!(bind(Socket::STREAM, PEER), Ok(Request::Bind(PEER)));
}

#[test]
fn listen_has_the_backlog_and_what_is_inherited() {
    let bound = Socket::STREAM.in_state(State::Bound);
    let options = Options { size: 1 << 40, ..Options::DEFAULT };
    for (backlog, expected) in [(0, 0), (7, 7), (4097, 4096), (-1, 4096)] {
        let listener = Listen::new(bound, backlog).unwrap().next;
        let message = listen_message(listener, &options, TICK);
        let (head, inherited) = message.split_first_chunk::<MESSAGE_LEN>().unwrap();
        let extra = u32::try_from(INHERITED_LEN).unwrap();
        let request = Request::Listen { backlog: expected, buffer: u32::MAX.into(), extra };
        assert_eq!(Request::decode(head), Ok(request));
        assert_eq!(inherited, options.to_inherited(TICK));
        assert_eq!(listener.backlog(), expected);
    }
}

#[test]
fn attempt_asks_with_timeout_and_buffer_and_is_prompt_if_the_socket_does_not_block() {
    let options = Options { size: 4096, connect_ticks: 1, ..Options::DEFAULT };
    for prompt in [false, true] {
        let attempt = HeldConnect::new(Socket::STREAM, PEER, &options, 3333, prompt);
        let expected = Request::Connect {
            to: PEER,
            is_named: false,
            timeout_ms: 4, // rounded up
            buffer: 4096,
            report: Report::Held { prompt },
            extra: 2016,
        };
        assert_eq!(attempt.request, expected);
        assert_eq!(attempt.next.peer(PEER.port), PEER);
        assert!(!attempt.next.awaits_outcome());
    }
}

#[test]
fn way_through_the_own_host_is_none_on_the_host() {
    let to = |cid, to_host| Destination { address: Address { cid, port: 1 }, to_host };
    let host = || Ok(2);
    let socket = to(3, true).of(Socket::STREAM, || Ok(7)).unwrap();
    assert!(socket.flags.has(Flags::TO_HOST));
    assert_eq!(to(3, true).of(Socket::STREAM, host), Err(Errno::NODEV));
    assert_eq!(to(3, true).of(Socket::STREAM, || Err(Errno::NODEV)), Err(Errno::NODEV));
    assert!(to(2, true).of(Socket::STREAM, || unreachable!("not asked")).is_ok());
    let plain = to(3, false).of(socket, || unreachable!("not asked")).unwrap();
    assert_eq!(plain, Socket::STREAM, "of the last connect's way nothing is left");
}

#[test]
fn prompt_attempt_has_begun_only_if_the_node_says_so() {
    let socket = attempt(Socket::STREAM);
    let reply = |errno| Reply::not_connected(errno, OURS, 7);
    let begun = Beginning::new(socket, &reply(Errno::INPROGRESS));
    assert_eq!(begun, Beginning::Begun(OURS, socket.with(Flags::BEGUN)));
    let failed = Beginning::new(socket, &reply(Errno::NODEV));
    assert_eq!(failed, Beginning::Failed(Errno::NODEV));
    let odd = Beginning::new(socket, &Reply::ok(op::CONNECT, OURS));
    assert_eq!(odd, Beginning::Failed(Errno::PROTO));
}

#[test]
fn connect_has_come_to_an_end_once_its_request_is_gone_or_a_refusal_is_there() {
    let refusal = Reply::not_connected(Errno::CONNRESET, OURS, 7);
    let failed = Outcome::Failed(Errno::CONNRESET, Some(refusal));
    let table = [
        (true, Seen::Other, Outcome::Pending),
        (false, Seen::Other, Outcome::Connected),
        (true, Seen::Refusal(refusal), failed),
        (false, Seen::Refusal(refusal), failed),
        (true, Seen::Closed, Outcome::Failed(Errno::NODEV, None)),
    ];
    for (is_unread, seen, expected) in table {
        assert_eq!(Outcome::new(is_unread, seen), expected, "{is_unread} {seen:?}");
    }
}

#[test]
fn failed_connect_leaves_what_the_socket_was_but_for_the_port() {
    let socket = attempt(Socket::STREAM).with(Flags::BEGUN);
    assert_eq!(after_failure(socket, false).state, State::Fresh);
    assert_eq!(after_failure(socket, true).state, State::Bound);
    assert!(!after_failure(socket, true).flags.has(Flags::BEGUN));
}

#[test]
fn connection_does_not_take_an_old_errno_for_the_size_of_messages() {
    let socket = after_success(attempt(Socket::SEQPACKET.with_error(Errno::CONNRESET)));
    assert!(!socket.is_known_to_fit(1));
}

#[test]
fn accepted_socket_has_the_type_of_its_listener_and_the_peer_of_the_reply() {
    let reply = Reply { theirs: PEER, peer_buffer: 4096, ..Reply::ok(op::ACCEPT, OURS) };
    for listener in [Socket::STREAM, Socket::SEQPACKET] {
        let socket = accepted(listener.in_state(State::Listening).with(Flags::ATTACHED), &reply);
        assert_eq!(socket.keeps_messages(), listener.keeps_messages());
        assert_eq!((socket.state, socket.peer(5000)), (State::Connected, PEER));
        assert!(socket.is_known_to_fit(4096) && !socket.is_known_to_fit(4097));
        assert!(!socket.flags.has(Flags::ATTACHED));
    }
}

#[test]
fn connection_made_here_that_leads_back_here_is_of_cid_1() {
    let name = |socket, cid| OwnName::new(socket, Some(Address { cid, port: 9 }));
    let known = |cid| OwnName::Known(Address { cid, port: 9 });
    let to = |cid| connected().with_peer_cid(cid);
    assert_eq!(name(to(3), 2), known(2));
    assert_eq!(name(to(2), 2), known(1));
    assert_eq!(name(to(1), 2), known(1));
    assert_eq!(name(to(1), ANY), known(ANY));
    assert_eq!(name(to(2).without(Flags::ATTACHED), 2), known(2), "an accepted one");
    assert_eq!(name(Socket::STREAM.with_peer_cid(1), 2), known(2), "no connection");
}

#[test]
fn direction_has_the_number_of_shutdown() {
    for how in 0..3 {
        assert_eq!(Direction::new(how).unwrap().how(), how);
    }
    assert_eq!(Direction::new(-1), Err(Errno::INVAL));
    let both = Shutdown::new(attempt(Socket::STREAM), Direction::Receiving).unwrap();
    assert_eq!(both.descriptor, Direction::Both, "a connect is given up in both directions");
}

#[test]
fn option_is_told_to_whom_it_concerns() {
    let set = |socket, setting| SetOption::new(socket, Options::DEFAULT, setting, TICK).unwrap();
    let resized = set(connected(), Setting::Size(0));
    assert_eq!((resized.options.size, resized.tell), (128, Tell::Connection(128)));
    assert_eq!(set(connected(), Setting::Min(1)).tell, Tell::Nothing);
    let listener = Listen::new(Socket::STREAM.in_state(State::Bound), 5).unwrap().next;
    let changed = set(listener, Setting::Min(1));
    assert_eq!(changed.tell, Tell::Listener);
    let message = listen_message(listener, &changed.options, TICK);
    let request = Request::decode(message.first_chunk().unwrap());
    assert_eq!(request, Ok(Request::Listen { backlog: 5, buffer: 262_144, extra: 32 }));
    assert_eq!(message[MESSAGE_LEN + 8], 1, "the new minimum is inherited");
}

#[test]
fn connection_has_no_buffer_above_32_bits_but_a_new_socket_may() {
    let before = Options { max: u64::MAX, ..Options::DEFAULT };
    let set = |socket| SetOption::new(socket, before, Setting::Size(1 << 40), TICK).unwrap();
    assert_eq!(set(Socket::STREAM).options.size, 1 << 40);
    let connection = set(connected());
    assert_eq!(connection.options.size, u32::MAX.into());
    assert_eq!(connection.tell, Tell::Connection(u32::MAX.into()));
}

#[test]
fn connection_without_a_buffer_is_told_as_one_of_a_byte() {
    let before = Options { min: 0, ..Options::DEFAULT };
    let set = SetOption::new(connected(), before, Setting::Size(0), TICK).unwrap();
    assert_eq!((set.options.size, set.tell), (0, Tell::Connection(1)));
}

#[test]
fn time_that_is_no_time_changes_nothing() {
    let setting = Setting::ConnectTimeout([-1, 0]);
    let set = SetOption::new(Socket::STREAM, Options::DEFAULT, setting, TICK);
    assert_eq!(set, Err(Errno::RANGE));
}

#[test]
fn low_water_stays_a_flag_while_its_field_holds_the_send_buffer() {
    let connecting = attempt(Socket::STREAM).with(Flags::LOW_WATER);
    let set = |bytes| SetLowWater::new(connecting, bytes, || 262_144);
    assert_eq!(set(1), Ok(SetLowWater::Flag(connecting.without(Flags::LOW_WATER))));
    assert_eq!(set(5), Ok(SetLowWater::Descriptor(connecting)));
}

#[test]
fn receive_reads_the_size_only_for_more_than_a_byte_or_where_there_are_options() {
    let unread = || unreachable!("not read");
    let receive = |socket, flags, len| Receive::new(socket, flags, len, unread, || unreachable!());
    assert_eq!(receive(connected(), 0, 1 << 20), Ok(Receive::Descriptor));
    assert_eq!(receive(connected(), MSG_WAITALL, 1), Ok(Receive::Descriptor));
    let messages = connected().with(Flags::MESSAGES);
    assert_eq!(receive(messages, MSG_WAITALL, 1 << 20), Ok(Receive::Descriptor));
    let low = connected().with(Flags::LOW_WATER);
    let receive = |flags, len, size| Receive::new(low, flags, len, || 5, || size);
    assert_eq!(receive(0, 100, 6), Ok(Receive::Descriptor));
    assert_eq!(receive(0, 100, 5), Err(Errno::NOMEM));
    assert_eq!(receive(0, 4, 5), Ok(Receive::Descriptor), "no more than was asked for");
    assert_eq!(receive(MSG_WAITALL, 100, 100), Err(Errno::NOMEM));
    let with_options = connected().with(Flags::OPTIONS);
    let tiny = Receive::new(with_options, 0, 100, || 1, || 1);
    assert_eq!(tiny, Err(Errno::NOMEM), "the buffer has to be larger than a byte");
}

#[test]
fn message_fits_if_it_is_no_longer_than_both_buffers() {
    let messages = connected().with(Flags::MESSAGES).with_peer_buffer(4096);
    let send = |len, size| Send::new(messages, 0, false, len, || size);
    assert_eq!(send(4096, 4096), Ok(Send::Descriptor));
    assert_eq!(send(4096, 4095), Err(Errno::MSGSIZE));
    assert_eq!(send(4097, 1 << 20), Ok(Send::AskPeerBuffer));
}

#[test]
fn end_of_a_connection_is_asked_about_once_and_only_by_who_still_receives() {
    assert!(may_have_lost_data(connected()));
    assert!(!may_have_lost_data(connected().with(Flags::END_TOLD)));
    assert!(!may_have_lost_data(connected().with(Flags::NO_RECEIVING)));
    assert!(!may_have_lost_data(Socket::STREAM));
}

#[test]
fn only_a_plain_connection_needs_no_checks() {
    assert!(needs_no_checks(connected()));
    assert!(needs_no_checks(connected().with(Flags::NO_SENDING)));
    assert!(!needs_no_checks(Socket::STREAM));
    for flag in [Flags::MESSAGES, Flags::NO_RECEIVING, Flags::LOW_WATER] {
        assert!(!needs_no_checks(connected().with(flag)));
    }
}

#[test]
fn connect_reports_an_errno_once() {
    let socket = Socket::STREAM.with_error(Errno::CONNRESET);
    let Ok(Connect::Report(Errno::CONNRESET, next)) = Connect::new(socket, false) else { panic!() };
    assert_eq!(Connect::new(next, false), Ok(Connect::Begin(Socket::STREAM)));
}
