//! A control thread is saved and goes on elsewhere; its front end sees nothing of it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod vhost_user_support;

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::ftruncate;
use vhost::vhost_user::message::FrontendReq;
use vhost_user_support::{
    ACK, CID, Call, Device, GUEST, LEN, STOPPED_AT, Speaker, USER, config, expect, memory, myself,
    pair, settle, starter, table, words,
};
use vsock_core::saved::Unfit;
use vsock_virtio::saved::SavedFd;
use vsock_virtio::spec::{F_EVENT_IDX, F_VERSION_1};
use vsock_virtio::vhost_user::{Detach, F_PROTOCOL_FEATURES, SavedFrontEnd};

const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_PROTOCOL_FEATURES;

/// A front end of which ring 0 runs and ring 1 is set up.
fn running(device: &Device) -> Speaker {
    let mut front = Speaker::connect(&device.path);
    front.negotiate(FEATURES);
    front.give_memory();
    front.set_up(0, 128, 0);
    front.set_up(1, 64, 5);
    front.enable(0, true);
    device.calls();
    front
}

fn is_silent(front: &Speaker) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&front.socket, PollFlags::IN)], Some(&at_once)).unwrap() == 0
}

#[test]
fn front_end_goes_on_with_the_successor() {
    let mut device = Device::new();
    let mut front = running(&device);
    device.hand_over();
    assert!(is_silent(&front));
    // Ring 1 starts where it was set up before, in the memory that was shared before; ring 0 runs on and is stopped.
    front.enable(1, true);
    let config = config(1, 64, 5, true);
    let start = Call::Start { index: 1, memory: LEN, config, has_call: true };
    expect(&device, &[start]);
    assert_eq!(front.base(0), pair(0, STOPPED_AT.into()));
    expect(&device, &[Call::Stop(0)]);
    drop(front);
    assert_eq!(device.call(), Call::Detached(Detach::Disconnected, vec![1]));
    // The next one is served on the same socket.
    let mut next = Speaker::connect(&device.path);
    settle(&mut next);
    assert_eq!(device.call(), Call::Attached(myself()));
}

#[test]
fn message_that_has_come_in_part_is_taken_whole_by_the_successor() {
    let mut device = Device::new();
    let mut front = running(&device);
    let file = memory(LEN);
    let body = table(&[[GUEST, LEN, USER, 0]]);
    let header = [FrontendReq::SET_MEM_TABLE as u32, ACK, u32::try_from(body.len()).unwrap()];
    let bytes = [header.map(u32::to_ne_bytes).concat(), body].concat();
    front.send_bytes(&bytes[..20], &[file.as_fd()]);
    let paused = device.pause();
    let mut saved = None;
    let restored = device.restore(&paused, |it| saved.clone_from(&it.front_end)).unwrap();
    // Whether it has been read by then is a matter of luck; it is neither lost nor doubled.
    let SavedFrontEnd { bytes: read, fds, .. } = saved.unwrap();
    assert!(matches!((read.len(), fds.len()), (0, 0) | (12, 1) | (20, 1)), "{}", read.len());
    drop(paused);
    device.handle = Some(restored.resume(&starter()).unwrap());
    front.send_bytes(&bytes[20..], &[]);
    assert_eq!(front.reply(FrontendReq::SET_MEM_TABLE), words(&[0]));
    assert_eq!(device.call(), Call::Stop(0));
    assert!(matches!(device.call(), Call::Start { index: 0, memory: LEN, .. }));
}

#[test]
fn connection_that_is_silent_speaks_to_the_successor() {
    let mut device = Device::new();
    let mut silent = Speaker::connect(&device.path);
    // One that has spoken and left came later, so the silent one is known.
    drop(running(&device));
    device.detach();
    device.hand_over();
    settle(&mut silent);
    assert_eq!(device.call(), Call::Attached(myself()));
}

#[test]
fn announcement_of_a_cid_goes_where_the_front_end_listens() {
    let mut device = Device::new();
    let mut front = running(&device);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    front.tell(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    device.hand_over();
    assert!(device.handle().set_cid(CID + 1).unwrap());
    poll(&mut [PollFd::new(&ours, PollFlags::IN)], None).unwrap();
    device.hand_over();
    // Offset, size, flags, and room for the answer.
    let request = [pair(0, 8), 0u32.to_ne_bytes().to_vec(), words(&[0])].concat();
    let answer = front.ask(FrontendReq::GET_CONFIG, &request);
    assert_eq!(answer[12..], words(&[u64::from(CID) + 1]));
}

#[test]
fn detach_ordered_while_nothing_runs_is_carried_out_by_the_successor() {
    let mut device = Device::new();
    let mut front = running(&device);
    let paused = device.pause();
    paused.control().detach(Detach::MemoryDead);
    let restored = device.restore(&paused, |_| {}).unwrap();
    drop(paused);
    device.handle = Some(restored.resume(&starter()).unwrap());
    assert_eq!(device.call(), Call::Detached(Detach::MemoryDead, vec![0]));
    front.expect_hang_up();
}

#[test]
fn front_end_that_shrinks_its_memory_is_sent_away_and_nothing_else_happens() {
    let mut device = Device::new();
    let mut front = running(&device);
    let file = memory(LEN);
    let body = table(&[[GUEST, LEN, USER, 0]]);
    front.tell(FrontendReq::SET_MEM_TABLE, &body, &[file.as_fd()]);
    device.calls();
    let paused = device.pause();
    ftruncate(&file, 0).unwrap();
    let restored = device.restore(&paused, |_| {}).unwrap();
    assert!(restored.memory().is_none());
    drop(paused);
    device.handle = Some(restored.resume(&starter()).unwrap());
    assert!(matches!(device.detach(), Detach::Memory(_)));
    front.expect_hang_up();
}

#[test]
fn thread_that_was_paused_goes_on_itself_as_well() {
    let mut device = Device::new();
    let mut front = running(&device);
    let paused = device.pause();
    device.handle = Some(paused.resume(&starter()).unwrap());
    settle(&mut front);
    assert_eq!(device.calls(), []);
}

#[test]
fn control_thread_that_cannot_be_is_not_restored() {
    let mut device = Device::new();
    let _front = running(&device);
    let paused = device.pause();
    let spoiled = |spoil: &dyn Fn(&mut SavedFrontEnd)| {
        device.restore(&paused, |it| spoil(it.front_end.as_mut().unwrap())).err()
    };
    assert_eq!(spoiled(&|_| {}), None);
    let state = Some(Unfit::State);
    assert_eq!(spoiled(&|it| it.device.features = 1 << 63), state);
    assert_eq!(spoiled(&|it| it.device.protocol = 1 << 63), state);
    assert_eq!(spoiled(&|it| it.device.rings[1].running = true), None);
    assert_eq!(spoiled(&|it| it.device.rings[0].size = 0), state);
    assert_eq!(spoiled(&|it| it.device.rings[0].size = 3), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it.device.rings[2].running = true), state);
    assert_eq!(spoiled(&|it| it.bytes = vec![0; 13]), Some(Unfit::TooMany));
    assert_eq!(spoiled(&|it| it.bytes = vec![255; 5000]), Some(Unfit::TooMany));
    let descriptor = Some(Unfit::Descriptor);
    assert_eq!(spoiled(&|it| it.socket = SavedFd(99)), descriptor);
    assert_eq!(spoiled(&|it| it.device.memory = Some(vec![])), descriptor);
    assert_eq!(spoiled(&|it| it.device.rings[0].call = None), descriptor);
    assert_eq!(spoiled(&|it| it.channel = Some(SavedFd(0))), descriptor);
    let other = device.restore(&paused, |it| it.front_end = None).err();
    assert_eq!(other, descriptor);
}

/// What User-Mode Linux is signalled on is not what the worker signals, and goes along.
#[test]
fn signals_are_passed_on_to_a_socket_after_a_hand_over() {
    let mut device = Device::new();
    let mut front = Speaker::connect(&device.path);
    front.negotiate(FEATURES);
    front.give_memory();
    front.set_up(0, 128, 0);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    front.tell(FrontendReq::SET_VRING_CALL, &words(&[0]), &[theirs.as_fd()]);
    front.enable(0, true);
    device.hand_over();
    device.signal(0);
    ours.set_read_timeout(Some(vhost_user_support::PATIENCE)).unwrap();
    let mut signal = [0; 8];
    std::io::Read::read_exact(&mut &ours, &mut signal).unwrap();
    assert_eq!(u64::from_ne_bytes(signal), 1);
}
