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
    assert_eq!(grants[..90], [BUFFER; 90]);
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

/// Opens flows between a guest and another, with buffers as large as may be, until they get the
/// least there is; what they were granted together.
fn open_all(bench: &mut Bench, peer: u32, guest: u32) -> u64 {
    let mut total = 0;
    for port in 0..500 {
        let request = packet(Address::new(peer, port), Address::new(guest, 22), Op::Request);
        total += u64::from(bench.pass(Header { buf_alloc: u32::MAX, ..request }).buf_alloc);
    }
    total
}

#[test]
fn all_pairs_of_a_guest_share_its_budget_and_leave_a_part_for_the_next() {
    let limits = RelayLimits::default();
    let mut bench = Bench::with(limits);
    let least = 500 * u64::from(limits.min_flow_credit);
    let (mut sum, mut left) = (0, u64::from(limits.guest_budget));
    for peer in 5..25 {
        let granted = open_all(&mut bench, peer, 4);
        assert!(granted <= left / 4 + least, "{granted} of {left}");
        sum += granted;
        left = u64::from(limits.guest_budget).saturating_sub(sum);
    }
    assert!(sum <= u64::from(limits.guest_budget) + 20 * least, "{sum}");
    assert_eq!(bench.relay.grants.of_guest[&Cid(4)], sum);
    let mut bench = Bench::with(limits);
    for peer in 5..13 {
        let _ = open_all(&mut bench, peer, 4);
    }
    assert_eq!(
        bench.pass(from_a(Op::Request)).buf_alloc,
        BUFFER,
        "eight greedy peers leave enough"
    );
}
