//! Invariant: whatever guests send to each other, no more is under way in one direction of a flow than the relay has
//! passed on as credit, its tables and queues keep to their limits, and nothing is left of guests that were removed.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use vsock_core::{Cid, Instant, RawHeader, Refusal, Relay, RelayLimits, Verdict};

#[derive(Debug, Arbitrary)]
enum Step {
    Packet {
        from: u8,
        to: u8,
        ports: u8,
        op: u8,
        seqpacket: bool,
        len: u16,
        flags: u8,
        buf_alloc: u32,
        fwd_cnt: u32,
        allow: bool,
        lost: bool,
    },
    Take(u8, u8),
    Remove(u8),
    Wait(u16),
}

const GUESTS: u32 = 3;

const LIMITS: RelayLimits = RelayLimits {
    usual_flow_credit: 16384,
    max_flow_credit: 65536,
    pair_budget: 262_144,
    guest_budget: 786_432,
    min_flow_credit: 4096,
    max_flows_per_guest: 8,
    max_half_open_per_guest: 4,
    max_replies: 6,
    half_open_timeout: Duration::from_secs(30),
    close_timeout: Duration::from_secs(30),
};

fn cid(n: u8) -> Cid {
    Cid(3 + u32::from(n) % GUESTS)
}

fn take(relay: &mut Relay, guest: Cid, count: u8) {
    for _ in 0..count {
        if !relay.has_packet(guest) {
            break;
        }
        let packet = relay.next_packet(guest).expect("announced and not there");
        assert_eq!(packet.dst_cid, u64::from(guest.0));
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut relay = Relay::new(LIMITS, 7);
    let mut now = Instant(1);
    for step in steps {
        match step {
            Step::Packet {
                from,
                to,
                ports,
                op,
                seqpacket,
                len,
                flags,
                buf_alloc,
                fwd_cnt,
                allow,
                lost,
            } => {
                let raw = RawHeader {
                    src_cid: cid(from).0.into(),
                    dst_cid: cid(to).0.into(),
                    src_port: (ports & 7).into(),
                    dst_port: (ports >> 4 & 3).into(),
                    len: len.into(),
                    kind: if seqpacket { 2 } else { 1 },
                    op: (op % 10).into(),
                    flags: flags.into(),
                    buf_alloc,
                    fwd_cnt,
                };
                let Ok(header) = raw.check() else { continue };
                if let Verdict::Forward(passed) = relay.receive(now, &header, || if allow { Ok(()) } else { Err(Refusal::Denied) }) {
                    assert_eq!((passed.src, passed.dst), (header.src, header.dst));
                    assert_eq!((passed.len, passed.kind), (header.len, header.kind));
                    assert!(passed.len <= LIMITS.max_flow_credit);
                    let is_reset = passed.op == vsock_core::Op::Rst;
                    assert!(is_reset || passed.buf_alloc <= LIMITS.max_flow_credit);
                    if lost {
                        let _ = relay.reset_flow(&passed);
                    }
                }
            }
            Step::Take(guest, count) => take(&mut relay, cid(guest), count),
            Step::Remove(guest) => {
                let guest = cid(guest);
                relay.remove_guest(guest, |_, _| false);
                assert!(!relay.has_packet(guest));
                assert!(
                    relay.flows().all(|it| it.source.cid != guest && it.destination.cid != guest)
                );
            }
            Step::Wait(millis) => {
                now = now + Duration::from_millis(millis.into());
                relay.expire(now);
                assert!(relay.deadline().is_none_or(|at| at > now));
            }
        }
        while relay.next_event().is_some() {}
        while let Some(guest) = relay.next_ready() {
            assert!((3..3 + GUESTS).contains(&guest.0));
        }
        let count = relay.flows().count();
        assert!(count <= LIMITS.max_flows_per_guest * GUESTS as usize);
        assert_eq!(count as u64, relay.stats().flows);
    }
    for guest in 0..3 {
        relay.remove_guest(cid(guest), |_, _| false);
    }
    for guest in 0..3 {
        // What was queued for a guest before it was removed itself went with it; later notices may be there.
        take(&mut relay, cid(guest), u8::MAX);
    }
    assert_eq!(relay.stats().flows, 0);
});
