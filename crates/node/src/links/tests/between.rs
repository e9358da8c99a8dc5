//! Packets of other guests, which have to share the ring of the guest that they are for.

use vsock_core::RawHeader;

use super::*;

/// A guest with as few buffers as this, who takes packets by hand.
struct Receiver {
    ends: Ends,
    slices: Slices,
}

impl Receiver {
    fn new(rx_buffers: u16) -> Self {
        let options = DriverOptions { rx_buffers, rx_payload: 1000, ..DriverOptions::default() };
        Self { ends: Ends::with(&options), slices: Slices::new() }
    }

    /// A packet of the guest `sender`.
    fn forward(&mut self, sender: u32, port: u32, op: Op, fwd_cnt: u32) {
        let key = FlowKey { ours: at(Cid(sender), port), theirs: at(GUEST, 22) };
        let mut header = Header::outbound(key, SocketType::Stream, op);
        header.fwd_cnt = fwd_cnt;
        let Ends { host, guest, scratch, .. } = &mut self.ends;
        self.slices.truncate(0);
        let packet =
            Foreign { header: &header, slices: &self.slices, payload: 0..0, link: guest.link() };
        assert!(host.forward(&header, &packet, true, scratch).unwrap());
        scratch.clear();
        host.publish().unwrap();
    }

    /// What is in the ring; its buffers are free afterwards.
    fn take(&mut self) -> Vec<RawHeader> {
        let mut taken = Vec::new();
        let link = self.ends.guest.link_mut();
        while let Some(inbound) = link.next_inbound(&mut self.slices).unwrap() {
            taken.push(RawHeader::parse(&inbound.header));
            link.finish_inbound(inbound.token);
            self.slices.truncate(0);
        }
        link.publish().unwrap();
        taken
    }

    /// So many packets, and the others that come with the last one.
    fn take_some(&mut self, count: usize) -> Vec<RawHeader> {
        let mut taken = self.take();
        while taken.len() < count {
            let before = taken.len();
            self.ends.host_sends();
            taken.extend(self.take());
            assert!(taken.len() > before, "no progress");
        }
        taken
    }

    /// All that is in the ring or waits for room there, as it comes.
    fn take_all(&mut self) -> Vec<RawHeader> {
        let mut taken = self.take();
        while !self.ends.host.is_idle() {
            let before = taken.len();
            self.ends.host_sends();
            taken.extend(self.take());
            assert!(taken.len() > before, "no progress");
        }
        taken
    }
}

#[test]
fn packet_of_a_guest_is_out_soon_whatever_another_has_queued() {
    let mut receiver = Receiver::new(16);
    for port in 0..20_000 {
        receiver.forward(4, port, Op::Rst, 0);
    }
    receiver.forward(5, 1, Op::Rst, 0);
    let taken = receiver.take_all();
    assert_eq!(taken.len(), 20_001);
    let before = taken.iter().position(|header| header.src_cid == 5).unwrap();
    assert!((16..16 + 18).contains(&before), "{before}: what was in the ring, and one turn");
}

#[test]
fn guest_with_nothing_queued_takes_no_room_from_those_that_wait() {
    let mut receiver = Receiver::new(4);
    for port in 0..50 {
        receiver.forward(4, port, Op::Rst, 0);
    }
    assert_eq!(receiver.take().len(), 4);
    // The ring is empty now, but it is the first guest's turn.
    receiver.forward(5, 1, Op::Rst, 0);
    assert_eq!(receiver.take(), []);
    let from: Vec<u64> = receiver.take_all().iter().map(|header| header.src_cid).collect();
    assert_eq!((from.len(), from[0]), (47, 4));
    assert_eq!(from.iter().position(|&sender| sender == 5), Some(17));
}

#[test]
fn flood_of_credit_updates_waits_in_one_packet() {
    let mut receiver = Receiver::new(4);
    for fwd_cnt in 0..100_000 {
        receiver.forward(4, 1, Op::CreditUpdate, fwd_cnt);
    }
    assert!(receiver.ends.host.stored_bytes() < 1000);
    receiver.ends.hand_over();
    receiver.forward(4, 1, Op::CreditUpdate, 100_000);
    let told: Vec<u32> = receiver.take_all().iter().map(|header| header.fwd_cnt).collect();
    assert_eq!(told, [0, 1, 2, 3, 100_000]);
}

#[test]
fn end_of_a_flow_goes_behind_what_waits_of_it() {
    let mut receiver = Receiver::new(4);
    for port in 0..5 {
        receiver.forward(4, port, Op::Request, 0);
    }
    let key = FlowKey { ours: at(Cid(4), 4), theirs: at(GUEST, 22) };
    let reset = Header::outbound(key, SocketType::Stream, Op::Rst);
    assert!(receiver.ends.host.store_reset(Some(reset)));
    let last = receiver.take_all().pop().unwrap();
    assert_eq!((last.op, last.src_port), (Op::Rst.to_wire(), 4));
}

/// A connection of the host with bytes to send, whatever room the guest has.
fn with_connection(receiver: &mut Receiver) {
    let (ours, _) = receiver.ends.open(SocketType::Stream, 1024);
    receiver.take();
    receiver.ends.on_host.to_send.insert(ours, data(20_000));
    receiver.ends.host.update(NOW, ours, Update::sends(Sends::More));
}

#[test]
fn connection_has_its_turn_in_a_ring_that_packets_of_a_guest_could_fill() {
    let mut receiver = Receiver::new(4);
    with_connection(&mut receiver);
    for port in 0..500 {
        receiver.forward(4, port, Op::Rst, 0);
    }
    let taken = receiver.take_some(60);
    let ours = taken.iter().filter(|header| header.src_cid == 2).count();
    assert!((20..40).contains(&ours), "{ours} of {}", taken.len());
}

#[test]
fn packet_of_a_guest_takes_no_room_for_which_a_connection_has_waited() {
    let mut receiver = Receiver::new(4);
    with_connection(&mut receiver);
    assert_eq!(receiver.ends.host_sends(), Sent::Full);
    assert_eq!(receiver.take().len(), 4);
    receiver.forward(4, 1, Op::Rst, 0);
    assert_eq!(receiver.take(), []);
    receiver.ends.host_sends();
    let from: Vec<u64> = receiver.take().iter().map(|header| header.src_cid).collect();
    assert!(from.contains(&2), "{from:?}");
}
