//! Front ends that break the rules: each attachment ends with its own reason, and the next front end gets on well.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "these are tests")]

mod vhost_user_support;

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use vhost::vhost_user::message::FrontendReq;
use vhost_user_support::{
    ACK, Call, Device, GUEST, LEN, PLAIN, Speaker, USER, addresses, event, memory, pair, table,
    words,
};
use vsock_guest_memory::MemoryPolicy;
use vsock_virtio::spec::{F_EVENT_IDX, F_VERSION_1};
use vsock_virtio::vhost_user::{BackendOptions, Detach};

/// VERSION_1, EVENT_IDX and the vhost-user bit 30.
const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | 1 << 30;

/// Lets a front end speak, and returns why it was sent away once another has been served in its place.
fn fate(speak: impl FnOnce(&mut Speaker)) -> Detach {
    fate_at(&Device::new(), speak)
}

fn fate_at(device: &Device, speak: impl FnOnce(&mut Speaker)) -> Detach {
    let mut speaker = Speaker::connect(&device.path);
    speak(&mut speaker);
    speaker.expect_hang_up();
    let reason = device.detach();
    let mut next = Speaker::connect(&device.path);
    next.negotiate(FEATURES);
    next.give_memory();
    next.set_up(0, 128, 0);
    next.enable(0, true);
    drop(next);
    assert_eq!(device.detach(), Detach::Disconnected);
    reason
}

/// As [`fate`], after negotiation and with guest memory.
fn fate_when_ready(speak: impl FnOnce(&mut Speaker)) -> Detach {
    fate(|speaker| {
        speaker.negotiate(FEATURES);
        speaker.give_memory();
        speak(speaker);
    })
}

fn malformed(reason: &Detach, expected: FrontendReq) -> bool {
    reason.counter() == "malformed_message"
        && matches!(reason, Detach::Malformed { request, .. } if *request == expected as u32)
}

fn wrong_fds(reason: &Detach, expected: FrontendReq) -> bool {
    reason.counter() == "wrong_fds"
        && matches!(reason, Detach::WrongFds { request, .. } if *request == expected as u32)
}

#[test]
fn message_with_a_body_of_a_wrong_size_is_malformed() {
    for size in [0, 1, 7, 9, 4096] {
        let body = vec![0; size];
        let reason = fate(|front| front.say(FrontendReq::SET_FEATURES, &body, &[]));
        assert!(malformed(&reason, FrontendReq::SET_FEATURES), "{size}: {reason}");
    }
    let reason = fate(|front| front.say(FrontendReq::GET_FEATURES, &[0], &[]));
    assert!(malformed(&reason, FrontendReq::GET_FEATURES), "{reason}");
}

#[test]
fn message_with_a_bad_header_is_malformed() {
    for (flags, size) in
        [(PLAIN, 4097), (PLAIN, u32::MAX), (0, 0), (2, 0), (PLAIN | 4, 0), (PLAIN | 16, 0)]
    {
        let reason = fate(|front| {
            let header = [FrontendReq::SET_OWNER as u32, flags, size];
            let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
            front.send_bytes(&header, &[]);
        });
        assert!(malformed(&reason, FrontendReq::SET_OWNER), "{flags} {size}: {reason}");
    }
}

#[test]
fn message_cut_short_by_the_end_is_truncated() {
    for length in [1, 11, 12, 15] {
        let reason = fate(|front| {
            let mut bytes = words(&[FrontendReq::SET_FEATURES as u64 | 1 << 32]);
            bytes.extend(8u32.to_ne_bytes());
            bytes.extend([0; 7]);
            front.send_bytes(&bytes[..length], &[]);
            front.socket.shutdown(std::net::Shutdown::Write).unwrap();
        });
        assert_eq!(reason, Detach::Truncated, "{length}");
    }
}

#[test]
fn message_that_arrives_byte_by_byte_is_served() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    for byte in words(&[FrontendReq::GET_QUEUE_NUM as u64 | 1 << 32]).iter().chain(&[0; 4]) {
        front.socket.write_all(&[*byte]).unwrap();
    }
    assert_eq!(front.reply(FrontendReq::GET_QUEUE_NUM), words(&[3]));
}

#[test]
fn stalled_front_end_does_not_keep_the_device_from_stopping() {
    let mut device = Device::new();
    let front = Speaker::connect(&device.path);
    front.send_bytes(&[1, 0, 0], &[]);
    assert!(matches!(device.call(), vhost_user_support::Call::Attached(_)));
    device.stop();
    assert_eq!(device.detach(), Detach::Stopped);
}

#[test]
fn request_that_is_not_served_is_unsupported() {
    let unserved = [
        0,
        FrontendReq::SET_LOG_BASE as u32,
        FrontendReq::SET_LOG_FD as u32,
        FrontendReq::SET_CONFIG as u32,
        FrontendReq::IOTLB_MSG as u32,
        FrontendReq::GET_INFLIGHT_FD as u32,
        FrontendReq::VRING_KICK as u32,
        FrontendReq::GET_STATUS as u32,
        FrontendReq::SET_STATUS as u32,
        45,
        u32::MAX,
    ];
    for request in unserved {
        let reason = fate(|front| front.send(request, ACK, &[], &[]));
        assert_eq!(reason, Detach::Unsupported(request));
    }
}

#[test]
fn refused_request_is_answered_with_an_error_before_the_end() {
    fate_when_ready(|front| {
        front.send(FrontendReq::SET_VRING_NUM as u32, ACK, &pair(0, 3), &[]);
        assert_eq!(front.reply(FrontendReq::SET_VRING_NUM), words(&[1]));
    });
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let packed = 1 << 34;
    let reason = fate(|front| front.say(FrontendReq::SET_FEATURES, &words(&[packed]), &[]));
    assert_eq!(reason, Detach::UnofferedFeatures(packed));
    let status = 1 << 16;
    let reason =
        fate(|front| front.say(FrontendReq::SET_PROTOCOL_FEATURES, &words(&[status | 8]), &[]));
    assert_eq!(reason, Detach::UnofferedFeatures(status));
}

#[test]
fn message_without_its_fd_is_refused() {
    let with_fd =
        [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR];
    for request in with_fd {
        let reason = fate_when_ready(|front| front.say(request, &words(&[0]), &[]));
        assert!(wrong_fds(&reason, request), "{reason}");
    }
    let reason = fate(|front| front.say(FrontendReq::SET_BACKEND_REQ_FD, &[], &[]));
    assert!(wrong_fds(&reason, FrontendReq::SET_BACKEND_REQ_FD), "{reason}");
    let body = table(&[[GUEST, LEN, USER, 0]]);
    let reason = fate(|front| front.say(FrontendReq::SET_MEM_TABLE, &body, &[]));
    assert!(wrong_fds(&reason, FrontendReq::SET_MEM_TABLE), "{reason}");
}

#[test]
fn message_with_too_many_fds_is_refused() {
    let fd = event();
    let ring = words(&[0]);
    for count in [2, 32, 33, 253] {
        let fds: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); count];
        let reason = fate_when_ready(|front| front.say(FrontendReq::SET_VRING_CALL, &ring, &fds));
        assert!(wrong_fds(&reason, FrontendReq::SET_VRING_CALL), "{count}: {reason}");
    }
    let reason = fate(|front| front.say(FrontendReq::GET_FEATURES, &[], &[fd.as_fd()]));
    assert!(wrong_fds(&reason, FrontendReq::GET_FEATURES), "{reason}");
    let no_fd = words(&[1 << 8]);
    let reason =
        fate_when_ready(|front| front.say(FrontendReq::SET_VRING_CALL, &no_fd, &[fd.as_fd()]));
    assert!(wrong_fds(&reason, FrontendReq::SET_VRING_CALL), "{reason}");
}

#[test]
fn full_memory_table_is_taken_and_one_fd_more_is_refused() {
    let file = memory(32 * 4096);
    let regions: Vec<_> = (0..32).map(|at| at * 4096).collect();
    let regions: Vec<_> = regions.iter().map(|at| [GUEST + at, 4096, USER + at, *at]).collect();
    let body = table(&regions);
    let reason = fate(|front| {
        front.negotiate(FEATURES);
        front.tell(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd(); 32]);
        front.say(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd(); 33]);
    });
    assert!(wrong_fds(&reason, FrontendReq::SET_MEM_TABLE), "{reason}");
}

#[test]
fn channel_that_is_no_unix_stream_is_refused() {
    let reason = fate(|front| front.say(FrontendReq::SET_BACKEND_REQ_FD, &[], &[event().as_fd()]));
    assert!(wrong_fds(&reason, FrontendReq::SET_BACKEND_REQ_FD), "{reason}");
}

#[test]
fn ring_without_a_kick_eventfd_is_refused() {
    let reason =
        fate_when_ready(|front| front.say(FrontendReq::SET_VRING_KICK, &words(&[1 << 8]), &[]));
    assert!(wrong_fds(&reason, FrontendReq::SET_VRING_KICK), "{reason}");
}

#[test]
fn ring_with_a_file_to_signal_on_is_refused() {
    let file = memory(LEN);
    for request in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL] {
        let reason = fate_when_ready(|front| front.say(request, &words(&[0]), &[file.as_fd()]));
        assert!(wrong_fds(&reason, request), "{reason}");
    }
}

/// S3: poll(2) of an epoll set looks into the set, whose lock its owner may hold; a pipe and a socket have locks too.
#[test]
fn ring_whose_kick_is_no_eventfd_is_refused() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    for fd in [reader.as_fd(), writer.as_fd(), socket.as_fd(), epoll.as_fd()] {
        let request = FrontendReq::SET_VRING_KICK;
        let reason = fate_when_ready(|front| front.say(request, &words(&[0]), &[fd]));
        assert!(wrong_fds(&reason, request), "{reason}");
    }
}

/// S24: bytes from a process with the switch's rights go to nobody but a front end.
#[test]
fn ring_whose_call_is_another_socket_or_anonymous_file_is_refused() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let unconnected = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    for fd in [tcp.as_fd(), datagrams.as_fd(), epoll.as_fd(), unconnected.as_fd()] {
        let request = FrontendReq::SET_VRING_CALL;
        let reason = fate_when_ready(|front| front.say(request, &words(&[0]), &[fd]));
        assert!(wrong_fds(&reason, request), "{reason}");
    }
}

/// The control thread finds out that nobody reads any more.
#[test]
fn signal_that_nobody_can_receive_ends_the_attachment() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(FEATURES);
    front.give_memory();
    front.set_up(0, 128, 0);
    let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
    front.tell(FrontendReq::SET_VRING_CALL, &words(&[0]), &[socket.as_fd()]);
    front.enable(0, true);
    drop((socket, other));
    device.signal(0);
    front.expect_hang_up();
    assert_eq!(device.detach(), Detach::Socket(std::io::ErrorKind::BrokenPipe));
}

#[test]
fn memory_larger_than_its_file_is_refused() {
    let file = memory(LEN);
    for (len, offset) in [(LEN + 4096, 0), (LEN, 4096), (u64::MAX - USER, 0)] {
        let body = table(&[[GUEST, len, USER, offset]]);
        let reason = fate(|front| front.say(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd()]));
        assert_eq!(reason.counter(), "bad_memory", "{len:#x} at {offset:#x}: {reason}");
    }
}

#[test]
fn memory_that_is_no_file_is_refused() {
    let body = table(&[[GUEST, LEN, USER, 0]]);
    let reason = fate(|front| front.say(FrontendReq::SET_MEM_TABLE, &body, &[event().as_fd()]));
    assert_eq!(reason.counter(), "bad_memory", "{reason}");
}

#[test]
fn memory_regions_that_overlap_are_refused() {
    let file = memory(LEN);
    let body = table(&[[GUEST, LEN, USER, 0], [GUEST + LEN - 4096, LEN, USER + LEN, 0]]);
    let fds = [file.as_fd(), file.as_fd()];
    let reason = fate(|front| front.say(FrontendReq::SET_MEM_TABLE, &body, &fds));
    assert_eq!(reason.counter(), "bad_memory", "{reason}");
}

#[test]
fn memory_table_that_lies_about_itself_is_malformed() {
    let file = memory(LEN);
    let wrong_tables = [
        table(&[]),
        table(&[[GUEST, LEN, USER, 0], [0; 4]])[..40].to_vec(),
        table(&[[GUEST, 0, USER, 0]]),
        table(&[[u64::MAX, LEN, USER, 0]]),
        table(&[[GUEST, LEN, u64::MAX, 0]]),
        [pair(33, 0), vec![0; 33 * 32]].concat(),
        [pair(1, 1), words(&[GUEST, LEN, USER, 0])].concat(),
    ];
    for body in wrong_tables {
        let reason = fate(|front| front.say(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd()]));
        assert!(malformed(&reason, FrontendReq::SET_MEM_TABLE), "{body:?}: {reason}");
    }
}

#[test]
fn memory_that_can_shrink_is_refused_where_seals_are_required() {
    let mut options = BackendOptions::new(42);
    options.memory_policy = MemoryPolicy::RequireSeals;
    let device = Device::with(options);
    let mut front = Speaker::connect(&device.path);
    let body = table(&[[GUEST, LEN, USER, 0]]);
    front.say(FrontendReq::SET_MEM_TABLE, &body, &[memory(LEN).as_fd()]);
    front.expect_hang_up();
    assert_eq!(device.detach().counter(), "bad_memory");
}

/// A device whose front end may add and remove regions.
fn with_slots() -> Device {
    Device::with(BackendOptions { memory_slots: true, ..BackendOptions::new(42) })
}

#[test]
fn region_that_is_not_there_cannot_be_removed() {
    let body = words(&[0, GUEST, LEN - 4096, USER, 0]);
    let reason = fate_at(&with_slots(), |front| {
        front.negotiate(FEATURES);
        front.give_memory();
        front.say(FrontendReq::REM_MEM_REG, &body, &[]);
    });
    assert_eq!(reason.counter(), "bad_memory", "{reason}");
    let reason = fate_at(&with_slots(), |front| front.say(FrontendReq::REM_MEM_REG, &body, &[]));
    assert_eq!(reason.counter(), "bad_memory", "{reason}");
}

/// S11: 509 regions are for guests that were given memory slots.
#[test]
fn regions_come_and_go_one_by_one_only_where_that_was_negotiated() {
    let body = words(&[0, GUEST, LEN, USER, 0]);
    for request in [FrontendReq::ADD_MEM_REG, FrontendReq::REM_MEM_REG] {
        let reason = fate(|front| {
            front.negotiate(FEATURES);
            front.say(request, &body, &[memory(LEN).as_fd()]);
        });
        assert_eq!(reason, Detach::Unsupported(request as u32));
        let reason = fate_at(&with_slots(), |front| {
            front.ask_number(FrontendReq::GET_FEATURES);
            front.say(request, &body, &[memory(LEN).as_fd()]);
        });
        assert_eq!(reason, Detach::Unsupported(request as u32));
    }
}

/// S5: the first look at a page of another file system may take as long as that pleases: a FUSE server need not answer.
#[test]
fn memory_in_a_file_that_is_no_memory_is_refused_unless_the_guest_may() {
    // A file of procfs says whatever it likes about its size, as FUSE does.
    let file = std::fs::File::open("/proc/self/maps").unwrap();
    let body = table(&[[GUEST, LEN, USER, 0]]);
    let reason = fate(|front| front.say(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd()]));
    assert_eq!(reason.counter(), "bad_memory");
    let text = reason.to_string();
    assert!(text.contains("memory-backend-memfd") && text.contains("file_memory = true"), "{text}");
    let trusting = BackendOptions { file_memory: true, ..BackendOptions::new(42) };
    let reason = fate_at(&Device::with(trusting), |front| {
        front.say(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd()]);
    });
    assert!(reason.to_string().contains("needs 1048576 bytes of a file of 0"), "{reason}");
}

/// S11: a file of any size costs nothing.
#[test]
fn memory_above_the_limit_is_refused_at_once_or_region_by_region() {
    let limit = BackendOptions::new(42).memory_limit;
    let file = memory(2 * limit);
    let body = table(&[[0, limit, USER, 0], [limit, 4096, USER + limit, limit]]);
    let reason = fate(|front| {
        front.say(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd(), file.as_fd()]);
    });
    assert_eq!(reason.counter(), "bad_memory");
    assert!(reason.to_string().contains("memory_limit_gib"), "{reason}");
    let reason = fate_at(&with_slots(), |front| {
        front.negotiate(FEATURES);
        let half = |at: u64| words(&[0, at, limit / 2, USER + at, at]);
        front.tell(FrontendReq::ADD_MEM_REG, &half(0), &[file.as_fd()]);
        front.tell(FrontendReq::ADD_MEM_REG, &half(limit / 2), &[file.as_fd()]);
        front.say(FrontendReq::ADD_MEM_REG, &half(limit), &[file.as_fd()]);
    });
    assert!(reason.to_string().contains("memory_limit_gib"), "{reason}");
}

#[test]
fn ring_outside_memory_is_refused() {
    for user in [0, USER - 4096, USER + LEN - 0x2000 - 64, USER + LEN, !0xffff] {
        let reason = fate_when_ready(|front| {
            front.set_up(1, 128, 0);
            // The last entry of the used ring is what sticks out in the middle case.
            front.tell(FrontendReq::SET_VRING_ADDR, &addresses_at(1, user), &[]);
            front.say(FrontendReq::SET_VRING_ENABLE, &pair(1, 1), &[]);
        });
        assert_eq!(reason, Detach::RingOutsideMemory(1), "{user:#x}");
    }
}

/// SET_VRING_ADDR with all three parts inside the 0x4000 bytes from `user` on, wherever that is.
fn addresses_at(index: u32, user: u64) -> Vec<u8> {
    let mut body = pair(index, 0);
    body.extend(words(&[user, user.wrapping_add(0x2000), user.wrapping_add(0x1000), 0]));
    body
}

#[test]
fn ring_without_any_memory_is_refused() {
    let reason = fate(|front| {
        front.negotiate(FEATURES);
        front.set_up(0, 128, 0);
        front.say(FrontendReq::SET_VRING_ENABLE, &pair(0, 1), &[]);
    });
    assert_eq!(reason, Detach::RingOutsideMemory(0));
}

#[test]
fn misaligned_ring_is_malformed() {
    for [desc, used, avail] in [[8, 0, 0], [0, 2, 0], [0, 0, 1]] {
        let mut body = pair(0, 0);
        body.extend(words(&[USER + desc, USER + 0x2000 + used, USER + 0x1000 + avail, 0]));
        let reason = fate_when_ready(|front| front.say(FrontendReq::SET_VRING_ADDR, &body, &[]));
        assert!(malformed(&reason, FrontendReq::SET_VRING_ADDR), "{reason}");
    }
}

#[test]
fn ring_of_an_impossible_size_is_refused() {
    for size in [0, 3, 127, 1025, 0x7fff, 0x8001, 0x1_0000, 0x1_0080, u32::MAX] {
        let body = pair(1, size);
        let reason = fate(|front| front.say(FrontendReq::SET_VRING_NUM, &body, &[]));
        assert_eq!(reason, Detach::RingSize { index: 1, size });
    }
}

#[test]
fn ring_that_does_not_exist_is_refused() {
    let by_pair = [
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_BASE,
        FrontendReq::GET_VRING_BASE,
        FrontendReq::SET_VRING_ENABLE,
    ];
    for index in [3, 255, u32::MAX] {
        for request in by_pair {
            let reason = fate(|front| front.say(request, &pair(index, 1), &[]));
            assert_eq!(reason, Detach::RingIndex(index), "{request:?}");
        }
        let body = addresses(index & 0xff, USER);
        let reason = fate(|front| front.say(FrontendReq::SET_VRING_ADDR, &body, &[]));
        assert_eq!(reason, Detach::RingIndex(index & 0xff));
    }
    for request in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL] {
        let reason = fate(|front| front.say(request, &words(&[3]), &[event().as_fd()]));
        assert_eq!(reason, Detach::RingIndex(3), "{request:?}");
    }
}

#[test]
fn ring_with_an_impossible_base_or_enable_is_malformed() {
    let reason = fate(|front| front.say(FrontendReq::SET_VRING_BASE, &pair(0, 0x1_0000), &[]));
    assert!(malformed(&reason, FrontendReq::SET_VRING_BASE), "{reason}");
    let reason = fate(|front| front.say(FrontendReq::SET_VRING_ENABLE, &pair(0, 2), &[]));
    assert!(malformed(&reason, FrontendReq::SET_VRING_ENABLE), "{reason}");
}

#[test]
fn running_ring_cannot_be_changed() {
    let changes: [(FrontendReq, Vec<u8>); 3] = [
        (FrontendReq::SET_VRING_NUM, pair(0, 64)),
        (FrontendReq::SET_VRING_BASE, pair(0, 1)),
        (FrontendReq::SET_VRING_ADDR, addresses(0, USER + 0x4000)),
    ];
    for (request, body) in changes {
        let reason = fate_when_ready(|front| {
            front.set_up(0, 128, 0);
            front.enable(0, true);
            front.say(request, &body, &[]);
        });
        assert_eq!(reason, Detach::RingRunning(0), "{request:?}");
    }
}

#[test]
fn front_end_that_reads_no_replies_is_sent_away() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.socket.set_write_timeout(Some(vhost_user_support::PATIENCE)).unwrap();
    let question: Vec<u8> = [FrontendReq::GET_FEATURES as u32, PLAIN, 0]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    // Ends when the device hangs up; were it to wait instead, the write would time out.
    let error = std::iter::repeat_with(|| front.socket.write_all(&question)).find_map(Result::err);
    assert_ne!(error.unwrap().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(device.detach(), Detach::NotReading);
}

/// S18: each of these costs the worker two orders. What is counted is orders for the time that they took, by the clock that the
/// device has, so a slow machine only makes them fewer.
#[test]
fn front_end_that_asks_without_end_is_paced() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(FEATURES);
    front.give_memory();
    front.set_up(0, 128, 0);
    let start = std::time::Instant::now();
    for _ in 0..400 {
        front.enable(0, true);
        front.enable(0, false);
    }
    // 800 orders are 3200 units and 800 messages are 800, of which 2048 were there; one comes back in half a millisecond.
    let least = std::time::Duration::from_micros(500) * (4000 - 2048);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    assert_eq!(device.calls().iter().filter(|call| matches!(call, Call::Stop(0))).count(), 400);
}

#[test]
fn random_bytes_never_stop_the_next_front_end() {
    let device = Device::new();
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = || {
        // xorshift64: any seed will do, but the same one each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut front = Speaker::connect(&device.path);
        front.say(FrontendReq::SET_OWNER, &[], &[]);
        for _ in 0..3 {
            let size = random() % 64;
            let body: Vec<u8> = (0..size).map(|_| (random() % 4) as u8).collect();
            let request = u32::try_from(random() % 48).unwrap();
            front.try_send(request, &body);
        }
        front.socket.shutdown(std::net::Shutdown::Write).unwrap();
        front.expect_hang_up();
        let reason = device.detach();
        assert!(!matches!(reason, Detach::Internal | Detach::Stopped), "round {round}: {reason}");
    }
    assert_eq!(fate_at(&device, |front| front.send(0, PLAIN, &[], &[])), Detach::Unsupported(0));
}
