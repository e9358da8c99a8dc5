//! What guests may send on a flow: bytes by the credit passed on, packets by a budget of ours.

use super::*;

#[test]
fn sender_beyond_clamped_credit_is_reset_with_the_other_side() {
    let mut bench = Bench::new();
    bench.pass(from_a(Op::Request));
    bench.pass(Header { buf_alloc: 1000, ..from_b(Op::Response) });
    bench.pass(rw(from_a(Op::Rw), 900));
    bench.pass(Header { buf_alloc: 1000, fwd_cnt: 500, ..from_b(Op::CreditUpdate) });
    bench.pass(rw(from_a(Op::Rw), 600));
    bench.drop(rw(from_a(Op::Rw), 1));
    bench.assert_reset_both();
    assert_eq!(bench.relay.stats().over_credit, 1);
}

#[test]
fn credit_announced_before_the_buffer_shrank_stays_good() {
    let mut bench = Bench::open();
    bench.pass(Header { buf_alloc: 10, ..from_b(Op::CreditUpdate) });
    for _ in 0..4 {
        bench.pass(rw(from_a(Op::Rw), 65536));
    }
    bench.drop(rw(from_a(Op::Rw), 1));
}

#[test]
fn trap_06_impossible_fwd_cnt_is_replaced_by_the_last_that_was_true() {
    let mut bench = Bench::open();
    bench.pass(rw(from_a(Op::Rw), 1000));
    bench.pass(Header { fwd_cnt: 400, ..from_b(Op::CreditUpdate) });
    for lie in [1001, u32::MAX, 399, 0] {
        let seen = bench.pass(Header { fwd_cnt: lie, ..from_b(Op::CreditUpdate) });
        assert_eq!(seen.fwd_cnt, 400);
    }
    assert_eq!(bench.relay.stats().impossible_credit, 1, "the others are merely late");
}

#[test]
fn trap_10_receiver_is_asked_before_small_packets_run_out_of_budget() {
    let mut bench = Bench::open();
    let budget = BUFFER / 16;
    for sent in 0..budget {
        bench.pass(rw(from_a(Op::Rw), 1));
        let asked = bench.packets(B);
        assert_eq!(asked.len(), usize::from(sent + 1 == budget / 2), "{sent}");
    }
    bench.drop(rw(from_a(Op::Rw), 1));
    bench.assert_reset_both();
    assert_eq!(bench.relay.stats().over_packets, 1);
}

#[test]
fn trap_10_receiver_that_answers_lets_small_packets_go_on() {
    let mut bench = Bench::open();
    for sent in 1..=100_000 {
        bench.pass(rw(from_a(Op::Rw), 1));
        for question in bench.packets(B) {
            assert_eq!(question.op, Op::CreditRequest.to_wire());
            bench.pass(Header { fwd_cnt: sent, ..from_b(Op::CreditUpdate) });
        }
    }
}
