//! One relay against packets made by hand. Between endpoints: `tests/two_endpoints.rs`.

mod credit;
mod grants;

use super::*;
use crate::address::SocketType;
use crate::packet::{EOM, EOR, Op};
use crate::state::CloseReason;

const A: Address = Address::new(3, 1024);
const B: Address = Address::new(4, 22);
const BUFFER: u32 = 262_144;
const T0: Instant = Instant(0);

/// A relay and the hands of its guests.
struct Bench {
    relay: Relay,
    now: Instant,
}

fn packet(src: Address, dst: Address, op: Op) -> Header {
    let key = FlowKey { ours: src, theirs: dst };
    Header { buf_alloc: BUFFER, ..Header::outbound(key, SocketType::Stream, op) }
}

fn from_a(op: Op) -> Header {
    packet(A, B, op)
}

fn from_b(op: Op) -> Header {
    packet(B, A, op)
}

fn rw(header: Header, len: u32) -> Header {
    Header { len, ..header }
}

fn shutdown(header: Header, flags: u32) -> Header {
    Header { flags, ..header }
}

impl Bench {
    fn new() -> Self {
        Self::with(RelayLimits::default())
    }

    fn with(limits: RelayLimits) -> Self {
        Self { relay: Relay::new(limits, 1), now: T0 }
    }

    fn open() -> Self {
        let mut bench = Self::new();
        bench.pass(from_a(Op::Request));
        bench.pass(from_b(Op::Response));
        bench
    }

    fn receive(&mut self, header: Header) -> Verdict {
        self.relay.receive(self.now, &header, || Ok(()))
    }

    fn pass(&mut self, header: Header) -> Header {
        match self.receive(header) {
            Verdict::Forward(forwarded) => forwarded,
            verdict @ (Verdict::Drop | Verdict::Refuse(_)) => panic!("{verdict:?}: {header:?}"),
        }
    }

    fn refuse(&mut self, request: Header) {
        assert_eq!(self.receive(request), Verdict::Refuse(Refusal::OverLimits));
    }

    fn drop(&mut self, header: Header) {
        assert_eq!(self.receive(header), Verdict::Drop);
    }

    fn wait(&mut self, wait: Duration) {
        self.now = self.now + wait;
        self.relay.expire(self.now);
    }

    fn packets(&mut self, to: Address) -> Vec<RawHeader> {
        core::iter::from_fn(|| self.relay.next_packet(to.cid)).collect()
    }

    /// Both guests are told that the flow is over, and it is forgotten.
    fn assert_reset_both(&mut self) {
        assert_eq!(self.packets(A), [Header { buf_alloc: 0, ..from_b(Op::Rst) }.raw()]);
        assert_eq!(self.packets(B), [Header { buf_alloc: 0, ..from_a(Op::Rst) }.raw()]);
        self.assert_forgotten();
    }

    fn assert_forgotten(&mut self) {
        assert_eq!(self.relay.flows().count(), 0);
        assert_eq!(self.relay.stats().flows, 0);
        assert!(self.relay.grants.granted.is_empty() && self.relay.grants.of_guest.is_empty());
        assert_eq!(self.relay.guests.flows(A.cid), 0);
        assert_eq!(self.relay.guests.half_open(A.cid), 0);
        self.wait(Duration::from_secs(3600));
        assert_eq!(self.relay.deadline(), None);
    }

    fn state(&self) -> &'static str {
        self.relay.flows().next().map_or("gone", |flow| flow.state)
    }
}

#[test]
fn open_flow_passes_packets_and_counts_them() {
    let mut bench = Bench::open();
    let data = rw(from_a(Op::Rw), 1000);
    assert_eq!(bench.pass(data), data);
    let back = Header { fwd_cnt: 1000, ..rw(from_b(Op::Rw), 10) };
    assert_eq!(bench.pass(back), back);
    let flow = bench.relay.flows().next().unwrap();
    assert_eq!((flow.source, flow.destination, flow.state), (A, B, "open"));
    assert_eq!(
        (flow.bytes_out, flow.packets_out, flow.bytes_in, flow.packets_in),
        (1000, 1, 10, 1)
    );
    assert_eq!(bench.packets(A), []);
    assert_eq!(bench.packets(B), []);
}

#[test]
fn open_idle_flow_stays() {
    let mut bench = Bench::open();
    bench.wait(Duration::from_secs(1 << 20));
    assert_eq!((bench.state(), bench.relay.deadline()), ("open", None));
}

#[test]
fn request_that_is_not_allowed_is_reset() {
    let mut bench = Bench::new();
    let refused = Refusal::NoSharedGroup;
    let verdict = bench.relay.receive(T0, &from_a(Op::Request), || Err(refused));
    assert_eq!(verdict, Verdict::Refuse(refused));
    assert_eq!(bench.packets(A), [from_a(Op::Request).raw().reset_reply().unwrap()]);
    assert_eq!(bench.packets(B), []);
    assert_eq!(bench.relay.stats().refused, 1);
    bench.assert_forgotten();
}

#[test]
fn what_became_of_a_request_is_told_once() {
    let asked = Asked { source: A, destination: B, kind: SocketType::Stream };
    let after = |act: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new();
        bench.pass(from_a(Op::Request));
        assert_eq!(bench.relay.next_event(), None, "nothing yet");
        act(&mut bench);
        let event = bench.relay.next_event();
        assert_eq!(bench.relay.next_event(), None, "once");
        event
    };
    let ends = |act: &dyn Fn(&mut Bench), reason| {
        assert_eq!(after(act), Some(RelayEvent::NotOpened(asked, reason)));
    };
    let passes = |header| move |bench: &mut Bench| assert_eq!(bench.pass(header).op, header.op);
    assert_eq!(after(&passes(from_b(Op::Response))), Some(RelayEvent::Opened(asked)));
    ends(&passes(from_b(Op::Rst)), CloseReason::Refused);
    ends(&passes(from_a(Op::Rst)), CloseReason::Done);
    ends(&|bench| bench.drop(rw(from_a(Op::Rw), 1)), CloseReason::ProtocolError);
    ends(&|bench| bench.relay.expire(T0.after(Duration::from_secs(3600))), CloseReason::TimedOut);
    ends(&|bench| bench.relay.remove_guest(B.cid, |_, _| false), CloseReason::LinkGone);
    ends(&|bench| assert!(bench.relay.reset_flow(&from_a(Op::Request))), CloseReason::Done);
}

#[test]
fn end_of_an_open_flow_is_no_answer_to_a_request() {
    let mut bench = Bench::open();
    assert!(bench.relay.next_event().is_some());
    bench.pass(from_b(Op::Rst));
    assert_eq!(bench.relay.next_event(), None);
}

#[test]
fn policy_is_asked_for_requests_only() {
    let mut bench = Bench::open();
    let never = || panic!("asked");
    assert!(matches!(bench.relay.receive(T0, &rw(from_a(Op::Rw), 1), never), Verdict::Forward(_)));
}

#[test]
fn trap_14_strays_are_reset_and_resets_are_not_answered() {
    let mut bench = Bench::new();
    for op in [Op::Response, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::Unknown] {
        bench.drop(from_a(op));
        assert_eq!(bench.packets(A), [from_a(op).raw().reset_reply().unwrap()]);
    }
    bench.drop(from_a(Op::Rst));
    assert_eq!(bench.packets(A), []);
    bench.drop(packet(A, A, Op::Request));
    assert_eq!(bench.packets(A).len(), 1, "nobody relays to itself");
}

#[test]
fn trap_14_other_type_is_reset_and_leaves_the_flow() {
    let mut bench = Bench::open();
    bench.drop(Header { kind: SocketType::SeqPacket, ..rw(from_b(Op::Rw), 1) });
    assert_eq!(bench.packets(B)[0].kind, 2);
    assert_eq!((bench.packets(A), bench.state()), (Vec::new(), "open"));
}

#[test]
fn reset_passes_and_ends_the_flow() {
    for header in [from_a(Op::Rst), from_b(Op::Rst)] {
        let mut bench = Bench::open();
        assert_eq!(bench.pass(header), header);
        bench.assert_forgotten();
        let mut bench = Bench::new();
        bench.pass(from_a(Op::Request));
        assert_eq!(bench.pass(header), header);
        bench.assert_forgotten();
    }
}

#[test]
fn trap_04_connecting_anything_before_response_resets_both() {
    for op in [Op::Rw, Op::CreditUpdate, Op::CreditRequest, Op::Shutdown] {
        let mut bench = Bench::new();
        bench.pass(from_a(Op::Request));
        bench.drop(from_b(op));
        bench.assert_reset_both();
        assert_eq!(bench.relay.stats().protocol_errors, 1, "{op:?}");
    }
}

#[test]
fn connecting_source_may_tell_of_its_buffer_but_not_send() {
    let mut bench = Bench::new();
    bench.pass(from_a(Op::Request));
    bench.pass(from_a(Op::CreditUpdate));
    bench.drop(rw(from_a(Op::Rw), 1));
    bench.assert_reset_both();
}

#[test]
fn connecting_without_an_answer_times_out() {
    let mut bench = Bench::new();
    bench.pass(from_a(Op::Request));
    bench.wait(Duration::from_secs(29));
    assert_eq!(bench.state(), "connecting");
    bench.wait(Duration::from_secs(1));
    bench.assert_reset_both();
    assert_eq!(bench.relay.stats().timeouts, 1);
}

#[test]
fn trap_16_half_close_passes_as_such_and_stays() {
    let mut bench = Bench::open();
    assert_eq!(bench.pass(shutdown(from_a(Op::Shutdown), 0xffff_fffe)).flags, 2);
    bench.wait(Duration::from_secs(3600));
    assert_eq!(bench.state(), "half-closed");
    bench.pass(rw(from_b(Op::Rw), 100));
    bench.drop(rw(from_a(Op::Rw), 1));
    bench.assert_reset_both();
}

#[test]
fn trap_17_full_shutdown_without_reset_is_forgotten_after_a_while() {
    let mut bench = Bench::open();
    bench.pass(shutdown(from_a(Op::Shutdown), 1));
    bench.pass(shutdown(from_a(Op::Shutdown), 2));
    assert_eq!(bench.state(), "closing");
    bench.wait(Duration::from_secs(29));
    assert_eq!(bench.state(), "closing");
    bench.wait(Duration::from_secs(1));
    bench.assert_reset_both();
}

#[test]
fn trap_18_request_after_full_shutdown_is_a_new_flow() {
    let mut bench = Bench::open();
    bench.pass(shutdown(from_a(Op::Shutdown), 3));
    bench.pass(from_a(Op::Request));
    assert_eq!(
        bench.packets(B),
        [],
        "it has freed the addresses, and a RST would hit the new flow"
    );
    bench.pass(from_b(Op::Response));
    bench.wait(Duration::from_secs(3600));
    assert_eq!(bench.state(), "open");
}

#[test]
fn trap_19_request_on_a_live_flow_ends_the_old_one() {
    let mut bench = Bench::open();
    bench.pass(from_b(Op::Request));
    assert_eq!(bench.packets(A).len(), 1, "the other side cannot repeat what it never asked");
    assert_eq!(bench.packets(B), []);
    assert_eq!(bench.state(), "connecting");
    assert_eq!(bench.relay.flows().next().unwrap().source, B);
    assert_eq!(bench.relay.stats().forgotten, 1);
}

#[test]
fn trap_19_repeated_request_of_an_unused_flow_is_passed_on() {
    let mut bench = Bench::new();
    for header in [from_a(Op::Request), from_a(Op::Request), from_b(Op::Response)] {
        bench.pass(header);
    }
    bench.pass(from_a(Op::Request));
    assert_eq!(
        (bench.packets(A), bench.packets(B), bench.state()),
        (Vec::new(), Vec::new(), "open")
    );
    bench.pass(rw(from_a(Op::Rw), 1));
    bench.pass(from_a(Op::Request));
    assert_eq!((bench.packets(B).len(), bench.state()), (1, "connecting"));
}

#[test]
fn open_second_response_resets_both() {
    let mut bench = Bench::open();
    bench.drop(from_b(Op::Response));
    bench.assert_reset_both();
}

#[test]
fn empty_packets_pass_only_when_they_end_a_message() {
    let mut bench = Bench::open();
    bench.drop(rw(from_a(Op::Rw), 0));
    assert_eq!(bench.state(), "open");
    let kind = SocketType::SeqPacket;
    let mut bench = Bench::new();
    bench.pass(Header { kind, ..from_a(Op::Request) });
    bench.pass(Header { kind, ..from_b(Op::Response) });
    bench.drop(Header { kind, ..from_a(Op::Rw) });
    let end = Header { kind, flags: EOM | EOR, ..from_a(Op::Rw) };
    let passed = (0..10_000).take_while(|_| bench.receive(end) == Verdict::Forward(end)).count();
    assert_eq!(passed, 2048);
    assert_eq!(bench.relay.stats().over_packets, 1);
}

#[test]
fn requests_beyond_the_limits_are_reset_and_counted() {
    let limits = RelayLimits {
        max_flows_per_guest: 4,
        max_half_open_per_guest: 2,
        ..RelayLimits::default()
    };
    let mut bench = Bench::with(limits);
    let request = |port| packet(Address::new(3, port), B, Op::Request);
    let response = |port| packet(B, Address::new(3, port), Op::Response);
    bench.pass(request(1));
    bench.pass(request(2));
    bench.refuse(request(3));
    bench.pass(response(1));
    bench.pass(response(2));
    bench.pass(request(3));
    bench.pass(request(4));
    bench.refuse(request(5));
    let stats = bench.relay.stats();
    assert_eq!((stats.requests_over_half_open_limit, stats.requests_over_limit), (1, 1));
    bench.pass(packet(Address::new(5, 1), B, Op::Request));
    assert_eq!(bench.packets(A).len(), 2);
}

#[test]
fn replies_to_one_guest_are_bounded_and_its_own_concern() {
    let mut bench = Bench::open();
    for port in 0..300 {
        bench.drop(packet(Address::new(3, port), B, Op::Rw));
    }
    assert!(!bench.relay.accepts_packets(A.cid));
    assert!(bench.relay.accepts_packets(B.cid));
    assert_eq!((bench.packets(A).len(), bench.relay.stats().replies_dropped), (256, 44));
}

#[test]
fn trap_30_removed_guest_takes_its_flows_along_and_the_others_are_told() {
    let mut bench = Bench::open();
    let c = Address::new(5, 7);
    bench.pass(packet(c, A, Op::Request));
    bench.pass(packet(c, B, Op::Request));
    bench.relay.remove_guest(A.cid, |_, _| false);
    let ready: Vec<Cid> = core::iter::from_fn(|| bench.relay.next_ready()).collect();
    assert_eq!(ready.len(), 2);
    assert_eq!(bench.packets(A), []);
    assert_eq!(bench.packets(B), [Header { buf_alloc: 0, ..from_a(Op::Rst) }.raw()]);
    assert_eq!(bench.packets(c), [Header { buf_alloc: 0, ..packet(A, c, Op::Rst) }.raw()]);
    assert_eq!(bench.relay.flows().count(), 1);
    bench.drop(from_b(Op::Rst));
}

#[test]
fn flow_that_cannot_be_passed_on_is_reset() {
    let mut bench = Bench::open();
    bench.relay.reset_flow(&rw(from_a(Op::Rw), 1));
    bench.assert_reset_both();
    bench.relay.reset_flow(&rw(from_a(Op::Rw), 1));
    assert_eq!(bench.relay.stats().given_up, 1);
}

#[test]
fn reset_that_cannot_be_passed_on_is_told_to_the_other_side() {
    let mut bench = Bench::open();
    let reset = bench.pass(from_a(Op::Rst));
    assert!(bench.relay.reset_flow(&reset));
    assert_eq!(bench.packets(B), [reset.raw()]);
    assert_eq!(bench.packets(A), []);
    bench.assert_forgotten();
}

#[test]
fn request_that_cannot_be_passed_on_is_reset_for_its_sender_only() {
    let mut bench = Bench::new();
    let request = bench.pass(from_a(Op::Request));
    assert!(bench.relay.reset_flow(&request));
    assert_eq!(bench.packets(A).len(), 1);
    assert_eq!(bench.packets(B), []);
    bench.assert_forgotten();
}

#[test]
fn resets_are_taken_in_order_and_what_is_left_goes_as_before() {
    let mut bench = Bench::new();
    for port in 0..3 {
        let from = Address::new(3, port);
        bench.pass(packet(from, B, Op::Request));
        bench.drop(rw(packet(from, B, Op::Rw), 1));
    }
    let mut taken = Vec::new();
    bench.relay.take_resets(B.cid, |reset| {
        taken.push(reset.src_port);
        taken.len() < 3
    });
    assert_eq!(taken, [0, 1, 2]);
    let left: Vec<u32> = bench.packets(B).iter().map(|it| it.src_port).collect();
    assert_eq!(left, [2]);
    assert_eq!(bench.relay.stats().packets_sent, 3);
}
