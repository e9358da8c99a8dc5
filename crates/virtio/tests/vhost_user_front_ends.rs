//! What real front ends say, in their order (QEMU 7.2 and User-Mode Linux as seen in logs).

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "these are tests")]

mod vhost_user_support;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use vhost::vhost_user::message::FrontendReq;
use vhost_user_support::{
    ACK, BACKEND_REQ, CID, CONFIG, Call, Device, GUEST, LEN, PLAIN, REPLY_ACK, STOPPED_AT, Speaker,
    USER, addresses, config, event, expect, memory, myself, pair, settle, table, words,
};
use vsock_virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_RESET, F_SEQPACKET, F_VERSION_1};
use vsock_virtio::vhost_user::{BackendOptions, Detach};

const BIT_30: u64 = 1 << 30;
/// What QEMU 7.2 acknowledges.
const QEMU: u64 = F_VERSION_1 | F_RING_RESET | F_EVENT_IDX | F_INDIRECT_DESC | F_SEQPACKET | BIT_30;
/// What User-Mode Linux acknowledges.
const UML: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_SEQPACKET | BIT_30;

/// The body of a GET_CONFIG.
fn config_request(offset: u32, size: u32) -> Vec<u8> {
    let head = [offset, size, 0].map(u32::to_ne_bytes).concat();
    [head, vec![0; size.min(4096) as usize]].concat()
}

/// The config bytes in the answer to a GET_CONFIG.
fn read_config(front: &mut Speaker, offset: u32, size: u32) -> Vec<u8> {
    let reply = front.ask(FrontendReq::GET_CONFIG, &config_request(offset, size));
    let (head, bytes) = reply.split_at(12);
    let length = u32::try_from(bytes.len()).unwrap();
    assert_eq!(head, [offset, length, 0].map(u32::to_ne_bytes).concat());
    bytes.to_vec()
}

fn cid_bytes(cid: u32) -> Vec<u8> {
    u64::from(cid).to_le_bytes().to_vec()
}

fn start(index: u64, size: u16, base: u16) -> Call {
    start_in(LEN, index, size, base)
}

/// The start of a ring in so many bytes of memory.
fn start_in(memory: u64, index: u64, size: u16, base: u16) -> Call {
    let config = config(index, size, base, true);
    Call::Start { index: usize::try_from(index).unwrap(), memory, config, has_call: true }
}

fn disconnected(running: &[usize]) -> Call {
    Call::Detached(Detach::Disconnected, running.to_vec())
}

/// QEMU when the device is realized; returns the protocol features it took.
fn qemu_realize(front: &mut Speaker) -> u64 {
    front.ask_number(FrontendReq::GET_FEATURES);
    let protocol = front.ask_number(FrontendReq::GET_PROTOCOL_FEATURES);
    front.say(FrontendReq::SET_PROTOCOL_FEATURES, &words(&[protocol]), &[]);
    assert_eq!(front.ask_number(FrontendReq::GET_QUEUE_NUM), 3);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    front.tell(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    front.say(FrontendReq::SET_OWNER, &[], &[]);
    assert_eq!(front.ask_number(FrontendReq::GET_FEATURES) & QEMU, QEMU);
    for ring in [0, 1] {
        front.say(FrontendReq::SET_VRING_CALL, &words(&[ring]), &[event().as_fd()]);
        front.say(FrontendReq::SET_VRING_ERR, &words(&[ring]), &[event().as_fd()]);
    }
    assert_eq!(read_config(front, 0, 8), cid_bytes(CID));
    protocol
}

/// QEMU when the guest's driver is ready. It asks for an acknowledgement of the memory only.
fn qemu_start(front: &mut Speaker, bases: [u16; 2]) {
    for ring in [1, 0] {
        front.say(FrontendReq::SET_VRING_CALL, &words(&[ring]), &[event().as_fd()]);
    }
    front.say(FrontendReq::SET_FEATURES, &words(&[QEMU]), &[]);
    front.give_memory();
    for (ring, base) in [0, 1].into_iter().zip(bases) {
        front.say(FrontendReq::SET_VRING_NUM, &pair(ring, 128), &[]);
        front.say(FrontendReq::SET_VRING_BASE, &pair(ring, base.into()), &[]);
        front.say(FrontendReq::SET_VRING_ADDR, &addresses(ring, USER), &[]);
        front.say(FrontendReq::SET_VRING_KICK, &words(&[ring.into()]), &[event().as_fd()]);
    }
    for ring in [0, 1] {
        front.say(FrontendReq::SET_VRING_ENABLE, &pair(ring, 1), &[]);
    }
    for ring in [0, 1] {
        front.say(FrontendReq::SET_VRING_CALL, &words(&[ring]), &[event().as_fd()]);
    }
}

/// QEMU at stop, reset and unbind.
fn qemu_stop(front: &mut Speaker) {
    for ring in [0, 1] {
        front.say(FrontendReq::SET_VRING_ENABLE, &pair(ring, 0), &[]);
    }
    for ring in [0, 1] {
        assert_eq!(front.base(ring), pair(ring, STOPPED_AT.into()));
    }
    for ring in [0, 1] {
        front.say(FrontendReq::SET_VRING_CALL, &words(&[ring]), &[event().as_fd()]);
    }
}

/// What the attachment is told by [`qemu_start`].
fn qemu_started(bases: [u16; 2]) -> Vec<Call> {
    vec![
        Call::Features(QEMU & !BIT_30),
        start(0, 128, bases[0]),
        start(1, 128, bases[1]),
        Call::NewSignal { index: 0, has_call: true },
        Call::NewSignal { index: 1, has_call: true },
    ]
}

#[test]
fn qemu_boots_stops_continues_and_reboots() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    let protocol = qemu_realize(&mut front);
    let slots = 1 << 15;
    assert_eq!(protocol & (REPLY_ACK | BACKEND_REQ | CONFIG | slots), protocol & !slots & 0x228);
    settle(&mut front);
    expect(&device, &[Call::Attached(myself())]);
    // Boot, then QMP stop and cont, then reboot with the rings at 0.
    for bases in [[0, 0], [STOPPED_AT, STOPPED_AT], [0, 0]] {
        qemu_start(&mut front, bases);
        settle(&mut front);
        expect(&device, &qemu_started(bases));
        qemu_stop(&mut front);
        settle(&mut front);
        expect(&device, &[Call::Stop(0), Call::Stop(1)]);
    }
    drop(front);
    expect(&device, &[disconnected(&[])]);
}

#[test]
fn qemu_that_goes_away_while_running_has_its_rings_stopped() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    qemu_realize(&mut front);
    qemu_start(&mut front, [0, 0]);
    settle(&mut front);
    device.calls();
    drop(front);
    expect(&device, &[disconnected(&[0, 1])]);
}

#[test]
fn qemu_that_reconnects_to_a_restarted_back_end_is_served_without_negotiation() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    // The guest's driver is bound again: QEMU first stops what it thinks is running.
    for ring in [0, 1] {
        front.say(FrontendReq::SET_VRING_ENABLE, &pair(ring, 0), &[]);
    }
    for ring in [0, 1] {
        assert_eq!(front.base(ring), pair(ring, 0));
    }
    // give_memory in here waits for an acknowledgement that was never negotiated with this back end.
    qemu_start(&mut front, [0, 0]);
    settle(&mut front);
    assert_eq!(device.call(), Call::Attached(myself()));
    expect(&device, &qemu_started([0, 0]));
}

#[test]
fn uml_boots_and_powers_off() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    // One region in a message with room for two.
    let body = [table(&[[GUEST, LEN, USER, 0]]), vec![0; 32]].concat();
    front.tell(FrontendReq::SET_MEM_TABLE, &body, &[memory(LEN).as_fd()]);
    (0..3).for_each(|ring| front.set_up(ring, 256, 0));
    (0..3).for_each(|ring| front.enable(ring, true));
    assert_eq!(read_config(&mut front, 0, 8), cid_bytes(CID));
    assert_eq!(device.call(), Call::Attached(myself()));
    let features = Call::Features(UML & !BIT_30);
    expect(&device, &[features, start(0, 256, 0), start(1, 256, 0), start(2, 256, 0)]);
    (0..3).for_each(|ring| front.enable(ring, false));
    settle(&mut front);
    expect(&device, &[Call::Stop(0), Call::Stop(1), Call::Stop(2)]);
    drop(front);
    expect(&device, &[disconnected(&[])]);
}

#[test]
fn disabled_ring_goes_on_where_it_stopped_when_enabled() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    front.give_memory();
    front.set_up(0, 256, 3);
    front.enable(0, true);
    front.enable(0, false);
    device.stopped_at.store(99, Ordering::SeqCst);
    front.enable(0, true);
    front.enable(0, true);
    assert_eq!(front.base(0), pair(0, 99));
    front.enable(0, true);
    settle(&mut front);
    let calls: Vec<_> = device.calls().into_iter().skip(2).collect();
    // The last enable starts nothing: GET_VRING_BASE stopped the ring until its next kick eventfd.
    assert_eq!(calls, [start(0, 256, 3), Call::Stop(0), start(0, 256, 7), Call::Stop(0)]);
}

#[test]
fn front_end_without_protocol_features_has_its_rings_running_at_once() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.ask_number(FrontendReq::GET_FEATURES);
    front.say(FrontendReq::SET_FEATURES, &words(&[F_VERSION_1 | F_EVENT_IDX]), &[]);
    let file = memory(LEN);
    front.say(FrontendReq::SET_MEM_TABLE, &table(&[[GUEST, LEN, USER, 0]]), &[file.as_fd()]);
    front.say(FrontendReq::SET_VRING_NUM, &pair(1, 64), &[]);
    front.say(FrontendReq::SET_VRING_ADDR, &addresses(1, USER), &[]);
    front.say(FrontendReq::SET_VRING_KICK, &words(&[1]), &[event().as_fd()]);
    // An acknowledgement that was not negotiated is not given.
    front.send(FrontendReq::SET_VRING_CALL as u32, ACK, &words(&[1 << 8 | 1]), &[]);
    settle(&mut front);
    let config = config(1, 64, 0, true);
    let started = Call::Start { index: 1, memory: LEN, config, has_call: false };
    let calls: Vec<_> = device.calls().into_iter().skip(2).collect();
    assert_eq!(calls, [started, Call::NewSignal { index: 1, has_call: false }]);
}

#[test]
fn running_rings_are_stopped_and_started_again_around_a_memory_change() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    front.give_memory();
    front.set_up(0, 256, 0);
    front.enable(0, true);
    device.calls();
    // The same user addresses now mean other guest addresses.
    let file = memory(2 * LEN);
    let body = table(&[[GUEST + LEN, 2 * LEN, USER, 0]]);
    front.tell(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd()]);
    let mut moved = config(0, 256, STOPPED_AT, true);
    for address in [&mut moved.desc, &mut moved.avail, &mut moved.used] {
        *address += LEN;
    }
    let moved = Call::Start { index: 0, memory: 2 * LEN, config: moved, has_call: true };
    expect(&device, &[Call::Stop(0), moved]);
    // A table without the ring cannot be meant.
    let body = table(&[[GUEST, LEN, USER + 4 * LEN, 0]]);
    front.say(FrontendReq::SET_MEM_TABLE, &body, &[memory(LEN).as_fd()]);
    assert_eq!(device.detach(), Detach::RingOutsideMemory(0));
}

#[test]
fn running_rings_are_stopped_and_started_again_around_a_change_of_features() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    front.give_memory();
    front.set_up(0, 256, 0);
    front.enable(0, true);
    device.calls();
    let fewer = UML & !F_EVENT_IDX;
    front.tell(FrontendReq::SET_FEATURES, &words(&[fewer]), &[]);
    let config = config(0, 256, STOPPED_AT, false);
    let again = Call::Start { index: 0, memory: LEN, config, has_call: true };
    expect(&device, &[Call::Stop(0), Call::Features(fewer & !BIT_30), again]);
}

#[test]
fn memory_slots_are_added_and_removed_one_by_one() {
    let options = BackendOptions { memory_slots: true, ..BackendOptions::new(CID) };
    let device = Device::with(options);
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    assert_eq!(front.ask_number(FrontendReq::GET_MAX_MEM_SLOTS), 509);
    let first = words(&[0, GUEST, LEN, USER, 0]);
    let second = words(&[0, GUEST + LEN, LEN, USER + LEN, LEN]);
    front.tell(FrontendReq::ADD_MEM_REG, &first, &[memory(LEN).as_fd()]);
    front.set_up(0, 256, 0);
    front.enable(0, true);
    front.tell(FrontendReq::ADD_MEM_REG, &second, &[memory(2 * LEN).as_fd()]);
    // The ring's own region goes and comes back, as when QEMU splits or joins regions.
    front.tell(FrontendReq::REM_MEM_REG, &first, &[]);
    front.tell(FrontendReq::ADD_MEM_REG, &first, &[memory(LEN).as_fd()]);
    let calls: Vec<_> = device.calls().into_iter().skip(2).collect();
    let expected = [
        start(0, 256, 0),
        Call::Stop(0),
        start_in(2 * LEN, 0, 256, STOPPED_AT),
        Call::Stop(0),
        start_in(2 * LEN, 0, 256, STOPPED_AT),
    ];
    assert_eq!(calls, expected);
}

#[test]
fn memory_slots_are_offered_only_when_asked_for() {
    let slots = |device: &Device| {
        let mut front = Speaker::connect(&device.path);
        front.ask_number(FrontendReq::GET_PROTOCOL_FEATURES) >> 15 & 1
    };
    assert_eq!(slots(&Device::new()), 0);
    let options = BackendOptions { memory_slots: true, ..BackendOptions::new(CID) };
    assert_eq!(slots(&Device::with(options)), 1);
}

#[test]
fn reset_device_stops_everything_but_keeps_front_end_and_memory() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    front.give_memory();
    front.set_up(0, 256, 0);
    front.enable(0, true);
    device.calls();
    front.tell(FrontendReq::RESET_DEVICE, &[], &[]);
    let gone = Call::Detached(Detach::Reset, vec![0]);
    expect(&device, &[gone, Call::Attached(myself())]);
    front.tell(FrontendReq::SET_FEATURES, &words(&[UML]), &[]);
    front.set_up(0, 256, 0);
    front.enable(0, true);
    expect(&device, &[Call::Features(UML & !BIT_30), start(0, 256, 0)]);
}

#[test]
fn config_space_is_read_in_parts_and_not_beyond() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    let cid = cid_bytes(CID);
    assert_eq!(read_config(&mut front, 0, 4), cid[..4]);
    assert_eq!(read_config(&mut front, 4, 4), cid[4..]);
    assert_eq!(read_config(&mut front, 7, 1), cid[7..]);
    for (offset, size) in [(0, 9), (8, 1), (4, 5), (4000, 96)] {
        let reply = front.ask(FrontendReq::GET_CONFIG, &config_request(offset, size));
        assert_eq!(reply, [offset, 0, 0].map(u32::to_ne_bytes).concat());
    }
    for (offset, size) in [(0, 0), (4000, 97), (u32::MAX, 1)] {
        let device = Device::new();
        let mut front = Speaker::connect(&device.path);
        front.say(FrontendReq::GET_CONFIG, &config_request(offset, size), &[]);
        front.expect_hang_up();
        assert_eq!(device.detach().counter(), "malformed_message");
    }
}

#[test]
fn cid_change_is_announced_where_the_front_end_listens() {
    let device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(UML);
    assert!(!device.handle().set_cid(50).unwrap());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(vhost_user_support::PATIENCE)).unwrap();
    front.tell(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    drop(theirs);
    assert!(device.handle().set_cid(51).unwrap());
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    assert_eq!(message[..], [2u32, PLAIN, 0].map(u32::to_ne_bytes).concat());
    assert_eq!(read_config(&mut front, 0, 8), cid_bytes(51));
    drop(front);
    device.detach();
    // The channel went with its front end.
    assert_eq!(ours.read(&mut message).unwrap(), 0);
    assert!(!device.handle().set_cid(52).unwrap());
    let mut next = Speaker::connect(&device.path);
    assert_eq!(read_config(&mut next, 0, 8), cid_bytes(52));
}

#[test]
fn stopped_device_has_left_its_attachment_and_its_thread() {
    let mut device = Device::new();
    let mut front = Speaker::connect(&device.path);
    qemu_realize(&mut front);
    qemu_start(&mut front, [0, 0]);
    settle(&mut front);
    device.calls();
    device.stop();
    // Nothing is waited for here: stop() returns after the attachment has been told.
    let calls = device.calls();
    assert_eq!(calls, [Call::Detached(Detach::Stopped, vec![0, 1])]);
    front.expect_hang_up();
    UnixStream::connect(&device.path).unwrap_err();
}
