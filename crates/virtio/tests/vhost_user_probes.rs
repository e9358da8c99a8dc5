//! Who gets to speak: silent connections, latecomers, and what follows an attachment that we ended.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod vhost_user_support;

use std::io::Read;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::FrontendReq;
use vhost_user_support::{Call, Device, Speaker, expect, myself, settle};
use vsock_virtio::spec::F_VERSION_1;
use vsock_virtio::vhost_user::Detach;

const BIT_30: u64 = 1 << 30;

#[test]
fn silent_connections_do_not_use_up_the_socket() {
    let device = Device::new();
    let silent: Vec<_> = (0..8).map(|_| UnixStream::connect(&device.path).unwrap()).collect();
    for _ in 0..100 {
        drop(UnixStream::connect(&device.path).unwrap());
    }
    let mut front = Speaker::connect(&device.path);
    settle(&mut front);
    expect(&device, &[Call::Attached(myself())]);
    drop(front);
    assert_eq!(device.detach(), Detach::Disconnected);
    // One that was silent may still speak.
    let mut late = Speaker { socket: silent.into_iter().next().unwrap() };
    settle(&mut late);
    expect(&device, &[Call::Attached(myself())]);
}

#[test]
fn oldest_silent_connection_goes_when_there_are_too_many() {
    let device = Device::new();
    let mut silent: Vec<_> = (0..40).map(|_| UnixStream::connect(&device.path).unwrap()).collect();
    silent[0].set_read_timeout(Some(vhost_user_support::PATIENCE)).unwrap();
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
    let mut newest = Speaker { socket: silent.pop().unwrap() };
    settle(&mut newest);
    expect(&device, &[Call::Attached(myself())]);
}

#[test]
fn second_front_end_that_speaks_is_refused_while_one_is_attached() {
    let device = Device::new();
    let mut first = Speaker::connect(&device.path);
    let silent = UnixStream::connect(&device.path).unwrap();
    settle(&mut first);
    let mut second = Speaker::connect(&device.path);
    second.say(FrontendReq::GET_FEATURES, &[], &[]);
    second.expect_hang_up();
    expect(&device, &[Call::Attached(myself()), Call::Refused(myself())]);
    settle(&mut first);
    drop(first);
    assert_eq!(device.detach(), Detach::Disconnected);
    let mut third = Speaker { socket: silent };
    settle(&mut third);
    expect(&device, &[Call::Attached(myself())]);
}

#[test]
fn attachment_ended_by_the_data_plane_makes_room_for_the_next() {
    let device = Device::new();
    let control = device.handle().control();
    for _ in 0..3 {
        // An order without an attachment is void, and does not hit the next one.
        control.detach(Detach::MemoryDead);
        let mut front = Speaker::connect(&device.path);
        front.negotiate(F_VERSION_1 | BIT_30);
        front.give_memory();
        front.set_up(0, 256, 0);
        front.enable(0, true);
        device.calls();
        let broken = Detach::RingBroken { index: 0, fault: "it loops".into() };
        control.detach(broken.clone());
        assert_eq!(device.call(), Call::Detached(broken, vec![0]));
        front.expect_hang_up();
    }
}
