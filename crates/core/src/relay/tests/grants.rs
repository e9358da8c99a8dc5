//! The credit that flows between guests are granted, and what bounds it.

use super::*;

#[test]
fn announced_buffer_is_clamped_both_ways() {
    let mut bench = Bench::new();
    let wide = |header| Header { buf_alloc: u32::MAX, ..header };
    assert_eq!(bench.pass(wide(from_a(Op::Request))).buf_alloc, 4 << 20);
    assert_eq!(bench.pass(wide(from_b(Op::Response))).buf_alloc, 4 << 20);
    let narrow = Header { buf_alloc: 100, ..from_a(Op::CreditUpdate) };
    assert_eq!(bench.pass(narrow).buf_alloc, 100);
}

#[test]
fn larger_buffer_raises_the_credit_of_its_flow() {
    let large = 2 << 20;
    let mut bench = Bench::open();
    let update = Header { buf_alloc: large, ..from_b(Op::CreditUpdate) };
    assert_eq!(bench.pass(update), update);
    let sent = (0..100).take_while(|_| bench.receive(rw(from_a(Op::Rw), 65536)) != Verdict::Drop);
    assert_eq!(sent.count(), 32);
    assert_eq!(bench.relay.stats().over_credit, 1);
    bench.packets(A);
    bench.packets(B);
    bench.assert_forgotten();
}

#[test]
fn announcement_shrunk_and_raised_again_keeps_the_credit() {
    let mut bench = Bench::open();
    for buf_alloc in [2 << 20, 100, 2 << 20] {
        let update = Header { buf_alloc, ..from_b(Op::CreditUpdate) };
        assert_eq!(bench.pass(update), update);
    }
    let granted: Vec<u32> = bench.relay.grants.granted.values().copied().collect();
    assert_eq!(granted, [2 << 20]);
}

#[test]
fn grants_shrink_with_the_budget_and_come_back() {
    let mut bench =
        Bench::with(RelayLimits { max_half_open_per_guest: 4000, ..Default::default() });
    let request = |port| packet(Address::new(3, port), B, Op::Request);
    let grants: Vec<u32> = (0..3000).map(|port| bench.pass(request(port)).buf_alloc).collect();
    assert_eq!(grants[..100], [BUFFER; 100]);
    assert_eq!(grants[2999], 4096);
    let total: u64 = grants.iter().copied().map(u64::from).sum();
    assert!(total <= (32 << 20) + 3000 * 4096, "{total}");
    let other = packet(A, Address::new(5, 1), Op::Request);
    assert_eq!(bench.pass(other).buf_alloc, BUFFER, "another pair has its own budget");
    for port in 0..3000 {
        bench.pass(packet(Address::new(3, port), B, Op::Rst));
    }
    assert_eq!(bench.pass(request(1)).buf_alloc, BUFFER);
}

#[test]
fn larger_buffers_share_the_budget_of_their_pair() {
    let mut bench = Bench::new();
    let large = |header| Header { buf_alloc: u32::MAX, ..header };
    let mut total = 0;
    for port in 0..200 {
        let a = Address::new(3, port);
        bench.pass(packet(a, B, Op::Request));
        let first = bench.pass(large(packet(B, a, Op::Response))).buf_alloc;
        let asked_again = bench.pass(large(packet(B, a, Op::CreditUpdate))).buf_alloc;
        assert!(asked_again >= first && asked_again >= 4096);
        total += u64::from(asked_again);
    }
    let granted: u64 = bench.relay.grants.granted.values().copied().map(u64::from).sum();
    assert_eq!(granted, total);
    assert!(total <= (32 << 20) + 200 * 4096, "{total}");
    bench.relay.remove_guest(A.cid, |_, _| false);
    bench.packets(B);
    bench.assert_forgotten();
}
