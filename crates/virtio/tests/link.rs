//! Driver against device over shared memory, in one process: packets both ways with every shape of buffers, the
//! signals they cost, rings that stop and start.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod queue_support;

use std::os::fd::AsFd;

use queue_support::pair::{Pair, header, receive, send};
use queue_support::{Random, eventfd, signals};
use rustix::fs::ftruncate;
use vsock_guest_memory::slice::{Slices, copy_out};
use vsock_guest_memory::{GuestMemory, MemoryPolicy, Region};
use vsock_virtio::link::device::DeviceLink;
use vsock_virtio::link::driver::{DriverLink, DriverOptions};
use vsock_virtio::link::{Link, LinkError};
use vsock_virtio::spec::{EVENT_QUEUE, QUEUE_COUNT, RX_QUEUE, TRANSPORT_RESET, TX_QUEUE};

/// Moves `count` packets of random size from one end to the other in random batches.
fn transfer(from: &mut Link, to: &mut Link, count: u32, largest: u64, random: &mut Random) {
    let (mut sent, mut received) = (Vec::new(), 0);
    while received < count as usize {
        for _ in 0..random.below(40) {
            if sent.len() == count as usize {
                break;
            }
            let payload = random.bytes(largest + 1);
            if !send(from, sent.len().try_into().unwrap(), &payload) {
                break;
            }
            sent.push(payload);
        }
        from.publish().unwrap();
        while random.below(20) > 0
            && let Some((number, payload)) = receive(to)
        {
            assert_eq!(number as usize, received);
            assert_eq!(payload, std::mem::take(&mut sent[received]));
            received += 1;
        }
        to.publish().unwrap();
    }
    assert_eq!(receive(to), None);
}

#[test]
fn packets_of_every_buffer_size_arrive_in_order() {
    let mut random = Random::new(1);
    for payload in [1, 43, 100, 3732, 4096, 65536] {
        for (split_header, event_idx) in [(false, true), (true, false)] {
            let options = DriverOptions {
                rx_buffers: 16,
                rx_payload: payload,
                tx_buffers: 8,
                tx_payload: payload,
                split_header,
            };
            let mut pair = Pair::new(&options, event_idx);
            let largest = u64::from(payload);
            transfer(&mut pair.device, &mut pair.driver, 100, largest, &mut random);
            transfer(&mut pair.driver, &mut pair.device, 100, largest, &mut random);
            assert_eq!(pair.device.stats().skipped + pair.driver.stats().skipped, 0);
        }
    }
}

#[test]
fn packets_arrive_past_the_wrap_of_the_indexes() {
    let mut random = Random::new(2);
    for event_idx in [true, false] {
        let mut pair = Pair::small(event_idx);
        transfer(&mut pair.device, &mut pair.driver, 70_000, 9, &mut random);
        transfer(&mut pair.driver, &mut pair.device, 70_000, 9, &mut random);
    }
}

#[test]
fn link_without_running_rings_is_quiet() {
    let mut link = Link::Device(DeviceLink::new());
    let mut slices = Slices::new();
    assert_eq!(link.next_inbound(&mut slices), Ok(None));
    assert_eq!(link.next_buffer(&mut slices), Ok(None));
    assert!(link.notify_fds().is_empty());
    link.publish().unwrap();
    assert!(!link.arm());
}

#[test]
fn batch_for_a_sleeper_costs_one_signal_and_none_while_busy() {
    for event_idx in [true, false] {
        let mut pair = Pair::small(event_idx);
        assert!(send(&mut pair.device, 0, b"first") && send(&mut pair.driver, 0, b"first"));
        pair.device.publish().unwrap();
        pair.driver.publish().unwrap();
        for _ in 0..3000 {
            while receive(&mut pair.driver).is_some() || receive(&mut pair.device).is_some() {}
            pair.driver.publish().unwrap();
            pair.device.publish().unwrap();
            pair.sleep();
            for n in 0..7 {
                assert!(send(&mut pair.device, n, b"to driver"));
                assert!(send(&mut pair.driver, n, b"to device"));
            }
            pair.device.publish().unwrap();
            pair.driver.publish().unwrap();
            assert_eq!(signals(&pair.calls[RX_QUEUE]), 1);
            assert_eq!(signals(&pair.kicks[TX_QUEUE]), 1);
            pair.device.disarm();
            pair.driver.disarm();
            for n in 0..7 {
                assert!(send(&mut pair.device, n, b"to driver"));
                assert!(send(&mut pair.driver, n, b"to device"));
                pair.device.publish().unwrap();
                pair.driver.publish().unwrap();
            }
            for fd in pair.calls.iter().chain(&pair.kicks) {
                assert_eq!(signals(fd), 0, "event_idx {event_idx}");
            }
        }
    }
}

#[test]
fn sleeper_without_space_is_signalled_when_there_is_some() {
    for event_idx in [true, false] {
        let mut pair = Pair::small(event_idx);
        let fill = |link: &mut Link| {
            while send(link, 0, b"packet") {}
            link.publish().unwrap();
        };
        fill(&mut pair.device);
        fill(&mut pair.driver);
        while receive(&mut pair.device).is_some() || receive(&mut pair.driver).is_some() {}
        pair.sleep();
        pair.device.publish().unwrap();
        pair.driver.publish().unwrap();
        assert_eq!(signals(&pair.calls[TX_QUEUE]), 1, "buffer for the driver");
        assert_eq!(signals(&pair.kicks[RX_QUEUE]), 1, "buffer for the device");
        assert!(pair.device.arm() && pair.driver.arm(), "there is buffer: do not sleep");
        assert!(send(&mut pair.device, 0, b"") && send(&mut pair.driver, 0, b""));
    }
}

#[test]
fn sleeper_that_takes_nothing_inbound_is_signalled_for_space_only() {
    for event_idx in [true, false] {
        let mut pair = Pair::small(event_idx);
        while send(&mut pair.device, 0, b"packet") {}
        while send(&mut pair.driver, 0, b"packet") {}
        pair.device.publish().unwrap();
        pair.driver.publish().unwrap();
        for link in [&mut pair.device, &mut pair.driver] {
            assert!(!link.arm_for_buffers(), "what is inbound is left");
        }
        for fd in pair.calls.iter().chain(&pair.kicks) {
            signals(fd);
        }
        let packet = Some((0, b"packet".to_vec()));
        assert_eq!(receive(&mut pair.device), packet);
        assert_eq!(receive(&mut pair.driver), packet);
        pair.device.publish().unwrap();
        pair.driver.publish().unwrap();
        assert_eq!(signals(&pair.calls[TX_QUEUE]), 1, "buffer for the driver");
        assert_eq!(signals(&pair.kicks[RX_QUEUE]), 1, "buffer for the device");
        assert!(send(&mut pair.device, 0, b"packet") && send(&mut pair.driver, 0, b"packet"));
        for link in [&mut pair.device, &mut pair.driver] {
            assert!(!link.arm_for_buffers());
            link.publish().unwrap();
        }
        assert_eq!(signals(&pair.calls[RX_QUEUE]), 0, "inbound is not asked for");
        assert_eq!(signals(&pair.kicks[TX_QUEUE]), 0, "inbound is not asked for");
    }
}

#[test]
fn space_that_is_returned_is_handed_out_again() {
    let mut pair = Pair::small(true);
    for link in [&mut pair.device, &mut pair.driver] {
        let mut slices = Slices::new();
        let buffers: Vec<_> =
            (0..5).map(|_| link.next_buffer(&mut slices).unwrap().unwrap()).collect();
        link.return_buffers(3);
        for buffer in &buffers[..2] {
            link.send(buffer, &slices, &header(7), 0);
        }
        assert_eq!(link.next_buffer(&mut slices).unwrap().unwrap().token, buffers[2].token);
        link.return_buffers(1);
        assert!(send(link, 8, b"next"));
        link.publish().unwrap();
    }
    for link in [&mut pair.driver, &mut pair.device] {
        let got: Vec<_> = std::iter::from_fn(|| receive(link)).map(|(n, _)| n).collect();
        assert_eq!(got, [7, 7, 8]);
    }
}

#[test]
fn restarted_ring_goes_on_where_it_was() {
    let mut pair = Pair::small(true);
    let mut random = Random::new(3);
    let mut slices = Slices::new();
    let mut expected = 0;
    for n in 0..2000 {
        assert!(send(&mut pair.driver, n, b"text"));
        pair.driver.publish().unwrap();
        if random.below(3) == 0 {
            // Packets that are taken and not finished come again.
            pair.device.next_inbound(&mut slices).unwrap().unwrap();
            pair.restart(TX_QUEUE);
        }
        while random.below(4) > 0
            && let Some((number, _)) = receive(&mut pair.device)
        {
            assert_eq!(number, expected);
            expected += 1;
        }
        while n + 1 - expected >= 60 {
            receive(&mut pair.device).unwrap();
            expected += 1;
        }
        pair.device.publish().unwrap();
    }
}

#[test]
fn token_of_a_stopped_ring_is_ignored() {
    let mut pair = Pair::small(true);
    assert!(send(&mut pair.driver, 1, b"text"));
    pair.driver.publish().unwrap();
    let mut slices = Slices::new();
    let inbound = pair.device.next_inbound(&mut slices).unwrap().unwrap();
    let buffer = pair.device.next_buffer(&mut slices).unwrap().unwrap();
    pair.restart(TX_QUEUE);
    pair.restart(RX_QUEUE);
    pair.device.finish_inbound(inbound.token);
    pair.device.send(&buffer, &slices, &header(9), 0);
    pair.device.publish().unwrap();
    assert_eq!(receive(&mut pair.driver), None);
    assert_eq!(receive(&mut pair.device), Some((1, b"text".to_vec())));
    assert_eq!(pair.device().stop_queue(RX_QUEUE), 0);
    pair.device.publish().unwrap();
    assert_eq!(pair.device().stop_queue(TX_QUEUE), 1);
    assert_eq!(pair.device().stop_queue(TX_QUEUE), 1, "of a stopped ring");
    assert!(!pair.device().is_running(TX_QUEUE));
}

#[test]
fn stopping_a_ring_makes_what_was_completed_visible() {
    let mut pair = Pair::small(true);
    assert!(send(&mut pair.device, 5, b"last words"));
    assert_eq!(pair.device().stop_queue(RX_QUEUE), 1);
    assert_eq!(signals(&pair.calls[RX_QUEUE]), 1);
    assert_eq!(receive(&mut pair.driver), Some((5, b"last words".to_vec())));
}

#[test]
fn event_arrives_and_its_buffer_is_offered_again() {
    let mut pair = Pair::small(true);
    for id in 0..100 {
        assert!(pair.device().send_event(TRANSPORT_RESET + id).unwrap());
        pair.device.publish().unwrap();
        assert_eq!(pair.driver().next_event(), Ok(Some(id)));
        assert_eq!(pair.driver().next_event(), Ok(None));
        pair.driver.publish().unwrap();
    }
    pair.device().stop_queue(EVENT_QUEUE);
    assert!(!pair.device().send_event(TRANSPORT_RESET).unwrap());
}

#[test]
fn sleeping_driver_is_signalled_for_an_event() {
    let mut pair = Pair::small(true);
    for _ in 0..3 {
        pair.sleep();
        assert!(pair.device().send_event(TRANSPORT_RESET).unwrap());
        pair.device.publish().unwrap();
        assert_eq!(signals(&pair.calls[EVENT_QUEUE]), 1);
        assert_eq!(pair.driver().next_event(), Ok(Some(TRANSPORT_RESET)));
    }
}

#[test]
fn new_call_fd_is_signalled_at_once() {
    let mut pair = Pair::small(true);
    let call = eventfd();
    pair.device().set_call(RX_QUEUE, Some(call.try_clone().unwrap()));
    assert_eq!(signals(&call), 1);
    pair.device().set_call(RX_QUEUE, None);
    assert!(send(&mut pair.device, 0, b"unheard"));
    pair.device.publish().unwrap();
    assert_eq!(signals(&call), 0);
}

/// S4: the front end may fill its eventfd whenever it likes. Nothing looks at the counter before it is signalled, so a full one
/// is what a signal meets at the worst moment, too.
#[test]
fn call_on_a_full_eventfd_does_not_block() {
    let mut pair = Pair::small(true);
    let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    for _ in 0..10_000 {
        pair.device().set_call(RX_QUEUE, Some(call.try_clone().unwrap()));
    }
    assert!(send(&mut pair.device, 0, b"heard"));
    pair.device.publish().unwrap();
}

/// S3: the lock of a pipe is held for as long as somebody's write to it lasts.
#[test]
fn call_on_a_pipe_is_an_error_and_the_pipe_is_not_touched() {
    let mut pair = Pair::small(true);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    pair.device().set_call(RX_QUEUE, Some(writer));
    assert!(send(&mut pair.device, 0, b"unheard"));
    assert_eq!(pair.device.publish().unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(rustix::io::ioctl_fionread(&reader).unwrap(), 0);
}

#[test]
fn memory_that_lost_its_file_ends_the_link() {
    let guest = queue_support::Guest::new(8, true);
    let file = queue_support::memfd(0x1_0000);
    let region = Region {
        guest: queue_support::RING_AT,
        user: 0,
        len: 0x1_0000,
        offset: 0,
        file: file.try_clone().unwrap(),
    };
    let memory = GuestMemory::map(vec![region], MemoryPolicy::RecordSeals).unwrap();
    let mut device = DeviceLink::new();
    device.start_queue(TX_QUEUE, &memory, &guest.config, eventfd(), None).unwrap();
    ftruncate(&file, 0).unwrap();
    let mut link = Link::Device(device);
    assert_eq!(link.next_inbound(&mut Slices::new()), Err(LinkError::MemoryDead));
    assert_eq!(link.publish().unwrap_err().raw_os_error(), Some(libc::EFAULT));
}

#[test]
fn watched_fds_are_those_of_the_other_sides_signals() {
    let pair = Pair::small(true);
    assert_eq!(pair.device.notify_fds().len(), QUEUE_COUNT);
    rustix::io::write(pair.kicks[TX_QUEUE].as_fd(), &1_u64.to_ne_bytes()).unwrap();
    rustix::io::write(pair.calls[RX_QUEUE].as_fd(), &2_u64.to_ne_bytes()).unwrap();
    let counts = |link: &Link| {
        (0..QUEUE_COUNT).map(|q| signals(&link.notify_fd(q).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(counts(&pair.device), [0, 1, 0]);
    assert_eq!(counts(&pair.driver), [2, 0, 0]);
}

#[test]
fn more_buffers_than_a_queue_can_hold_are_refused() {
    let with = |rx_buffers, split_header| {
        DriverLink::new(&DriverOptions {
            rx_buffers,
            rx_payload: 1,
            split_header,
            ..DriverOptions::default()
        })
    };
    assert!(with(1024, false).is_ok() && with(512, true).is_ok());
    assert!(with(0, false).is_err() && with(32769, false).is_err() && with(16385, true).is_err());
    for rx_payload in [0, 65537] {
        let options = DriverOptions { rx_payload, ..DriverOptions::default() };
        assert!(DriverLink::new(&options).is_err());
    }
}

#[test]
fn pieces_of_several_packets_stay_apart_in_one_list() {
    let mut pair = Pair::small(true);
    for n in 0..10 {
        assert!(send(&mut pair.driver, n, &[n as u8; 10]));
    }
    pair.driver.publish().unwrap();
    let mut slices = Slices::new();
    let batch: Vec<_> =
        std::iter::from_fn(|| pair.device.next_inbound(&mut slices).unwrap()).collect();
    assert_eq!(batch.len(), 10);
    for (n, inbound) in (0..).zip(batch) {
        let mut payload = [0; 10];
        copy_out(&slices[inbound.payload], &mut payload);
        assert_eq!(payload, [n; 10]);
        pair.device.finish_inbound(inbound.token);
    }
}
