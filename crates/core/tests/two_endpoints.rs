//! Two endpoints under seeded schedules of commands and deliveries, directly and through a relay:
//! bytes arrive in order and once or the connection ends visibly, credit is never exceeded, and
//! nothing waits for ever.

#![allow(clippy::unwrap_used, reason = "a test that panics has said what it had to say")]

mod world;

use proptest::prelude::*;
use vsock_core::RelayLimits;
use world::{Choice, World};

/// SplitMix64: choices from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }

    fn choice(&mut self) -> Choice {
        let [what, which, pick, _, low, high, ..] = self.roll().to_le_bytes();
        (what, which, pick, u16::from_le_bytes([low, high]))
    }
}

const BUFFERS: [u32; 6] = [600, 1300, 4096, 20_000, 65_536, 262_144];

fn relay_limits(small: bool) -> RelayLimits {
    if small {
        RelayLimits { pair_budget: 40_000, max_half_open_per_guest: 4, ..RelayLimits::default() }
    } else {
        RelayLimits::default()
    }
}

fn run(mut world: World, schedule: impl IntoIterator<Item = Choice>) -> World {
    for choice in schedule {
        world.turn(choice);
    }
    world.finish();
    world
}

fn run_seeds(relay: Option<bool>, hand_over_every: u64) {
    let mut delivered = 0;
    let mut reasons = std::collections::BTreeMap::new();
    for seed in 0..150 {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let mut buffer = || BUFFERS[usize::try_from(dice.roll() % 6).unwrap()];
        let buffers = [buffer(), buffer()];
        let few_ports = seed % 2 == 0;
        let world = World::new(seed, buffers, relay.map(relay_limits), 3732, few_ports)
            .handed_over_every(hand_over_every);
        let schedule: Vec<Choice> = (0..2000).map(|_| dice.choice()).collect();
        let world = run(world, schedule);
        delivered += world.delivered;
        for (reason, count) in world.reasons {
            *reasons.entry(reason).or_insert(0) += count;
        }
    }
    // A schedule in which nothing happens proves nothing.
    println!("{delivered} bytes, ends: {reasons:?}");
    assert!(delivered > 10_000_000, "{delivered}");
    for reason in ["done", "reset", "refused", "timed out", "link gone"] {
        assert!(reasons.get(reason).is_some_and(|count| *count >= 10), "{reason}: {reasons:?}");
    }
}

#[test]
fn two_endpoints_fixed_seeds() {
    run_seeds(None, 0);
}

#[test]
fn two_endpoints_through_a_relay_fixed_seeds() {
    run_seeds(Some(false), 0);
}

#[test]
fn two_endpoints_through_a_relay_short_of_credit_fixed_seeds() {
    run_seeds(Some(true), 0);
}

/// In the midst of traffic everything is saved and restored, again and again; nobody notices.
#[test]
fn two_endpoints_handed_to_successors_fixed_seeds() {
    run_seeds(None, 10);
}

#[test]
fn two_endpoints_and_a_relay_handed_to_successors_fixed_seeds() {
    run_seeds(Some(true), 10);
}

fn schedules() -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec(any::<Choice>(), 0..600)
}

fn buffers() -> impl Strategy<Value = [u32; 2]> {
    [prop::sample::select(&BUFFERS[..]), prop::sample::select(&BUFFERS[..])]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn two_endpoints_any_schedule(
        seed: u64,
        buffers in buffers(),
        few_ports: bool,
        schedule in schedules(),
    ) {
        run(World::new(seed, buffers, None, 0, few_ports), schedule);
    }

    #[test]
    fn two_endpoints_through_a_relay_any_schedule(
        seed: u64,
        buffers in buffers(),
        small: bool,
        few_ports: bool,
        room in prop::sample::select(&[256, 700, 3732, 65_536][..]),
        schedule in schedules(),
    ) {
        let limits = Some(relay_limits(small));
        run(World::new(seed, buffers, limits, room, few_ports), schedule);
    }
}
