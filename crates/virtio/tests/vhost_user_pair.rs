//! Our front end against our back end over a real socket.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "these are tests")]

mod vhost_user_support;

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vhost_user_support::{CID, Call, Device, GUEST, LEN, config, memory, myself};
use vsock_guest_memory::SharedRegion;
use vsock_virtio::queue::QueueConfig;
use vsock_virtio::spec::{F_DGRAM, F_EVENT_IDX, F_INDIRECT_DESC, F_SEQPACKET, F_VERSION_1};
use vsock_virtio::vhost_user::{
    Attached, BackendControl, BackendHandle, BackendOptions, Detach, FrontendError,
    FrontendOptions, attach,
};

fn rings(count: u64) -> Vec<QueueConfig> {
    (0..count).map(|index| config(index, 128, 0, true)).collect()
}

fn attach_to(device: &Device, rings: &[QueueConfig]) -> Result<Attached, FrontendError> {
    let file = memory(LEN);
    let region = SharedRegion { file: file.as_fd(), guest: GUEST, len: LEN };
    attach(&device.path, region, rings, FrontendOptions::default())
}

#[test]
fn both_ends_can_move_to_other_threads() {
    fn can_move<T: Send>() {}
    can_move::<Attached>();
    can_move::<BackendHandle>();
    can_move::<BackendControl>();
}

#[test]
fn device_gets_a_front_end_and_knows_all_its_rings() {
    let device = Device::new();
    let attached = attach_to(&device, &rings(3)).unwrap();
    let features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_SEQPACKET | F_DGRAM;
    assert_eq!((attached.cid, attached.features, attached.rings.len()), (CID, features, 3));
    assert_eq!(device.call(), Call::Attached(myself()));
    assert_eq!(device.call(), Call::Features(features));
    for index in 0..3 {
        let config = config(index as u64, 128, 0, true);
        assert_eq!(device.call(), Call::Start { index, memory: LEN, config, has_call: true });
    }
}

#[test]
fn attached_front_end_when_dropped_takes_its_rings_back_and_leaves() {
    let device = Device::new();
    drop(attach_to(&device, &rings(2)).unwrap());
    let calls: Vec<_> = std::iter::from_fn(|| Some(device.call()))
        .skip_while(|call| !matches!(call, Call::Stop(_)))
        .take(3)
        .collect();
    let gone = Call::Detached(Detach::Disconnected, vec![]);
    let expected = [Call::Stop(0), Call::Stop(1), gone];
    assert_eq!(calls, expected);
}

#[test]
fn attached_front_end_whose_signals_are_in_use_when_dropped_has_its_rings_back() {
    let device = Device::new();
    let mut attached = attach_to(&device, &rings(2)).unwrap();
    let _signals: Vec<_> = attached.rings.drain(..).collect();
    device.calls();
    drop(attached);
    // They stop before the drop is over, which is what the memory has to wait for. (The end of the socket stops them, too.)
    assert_eq!(device.calls()[..2], [Call::Stop(0), Call::Stop(1)]);
}

#[test]
fn attached_front_end_sees_the_device_stop() {
    let mut device = Device::new();
    let attached = attach_to(&device, &rings(2)).unwrap();
    device.stop();
    let mut fds = [PollFd::new(&attached, PollFlags::IN)];
    poll(&mut fds, None).unwrap();
    assert!(fds[0].revents().intersects(PollFlags::IN | PollFlags::HUP));
    assert_eq!(device.detach(), Detach::Stopped);
}

#[test]
fn device_without_seqpacket_does_not_give_it() {
    let mut options = BackendOptions::new(CID);
    options.seqpacket = false;
    let device = Device::with(options);
    let attached = attach_to(&device, &rings(2)).unwrap();
    assert_eq!(attached.features, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC);
}

#[test]
fn front_end_that_wants_little_gets_little() {
    let device = Device::new();
    let file = memory(LEN);
    let region = SharedRegion { file: file.as_fd(), guest: GUEST, len: LEN };
    let timeout = Duration::from_secs(10);
    let options = FrontendOptions { event_idx: false, indirect: false, seqpacket: false, timeout };
    let attached = attach(&device.path, region, &rings(2), options).unwrap();
    assert_eq!(attached.features, F_VERSION_1);
    let start = std::iter::from_fn(|| Some(device.call()))
        .find(|call| matches!(call, Call::Start { .. }))
        .unwrap();
    let config = config(0, 128, 0, false);
    assert_eq!(start, Call::Start { index: 0, memory: LEN, config, has_call: true });
}

#[test]
fn front_end_with_a_ring_outside_its_memory_is_refused_by_the_device() {
    let device = Device::new();
    let mut rings = rings(2);
    rings[1].used = GUEST + LEN - 64;
    let error = attach_to(&device, &rings).err().unwrap();
    assert!(matches!(error, FrontendError::Protocol(_)), "{error}");
    assert_eq!(device.detach(), Detach::RingOutsideMemory(1));
    attach_to(&device, &self::rings(2)).unwrap();
}

#[test]
fn device_with_an_impossible_cid_is_not_joined() {
    for cid in [0, 1, 2, u32::MAX] {
        let device = Device::with(BackendOptions::new(cid));
        let error = attach_to(&device, &rings(2)).err().unwrap();
        assert!(matches!(error, FrontendError::BadCid(bad) if bad == u64::from(cid)), "{error}");
    }
}

#[test]
fn silent_device_is_left_at_the_deadline() {
    let path = vhost_user_support::temporary_path();
    let _listener = UnixListener::bind(&path).unwrap();
    let file = memory(LEN);
    let region = SharedRegion { file: file.as_fd(), guest: GUEST, len: LEN };
    let timeout = Duration::from_millis(50);
    let options = FrontendOptions { timeout, ..FrontendOptions::default() };
    let error = attach(&path, region, &rings(2), options).err().unwrap();
    assert!(matches!(error, FrontendError::TimedOut), "{error}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn absent_device_is_an_error_at_once() {
    let file = memory(LEN);
    let region = SharedRegion { file: file.as_fd(), guest: GUEST, len: LEN };
    let path = vhost_user_support::temporary_path();
    let error = attach(&path, region, &rings(2), FrontendOptions::default()).err().unwrap();
    let kind = std::io::ErrorKind::NotFound;
    assert!(matches!(&error, FrontendError::Connect(cause) if cause.kind() == kind), "{error}");
}

#[test]
fn next_front_end_attaches_after_the_last_has_left_any_number_of_times() {
    let device = Device::new();
    for _ in 0..5 {
        drop(attach_to(&device, &rings(2)).unwrap());
        assert_eq!(device.detach(), Detach::Disconnected);
    }
}
