//! A guest alone, by what it writes into its virtqueues.

use std::path::Path;

use vsock_core::Op;
use vsock_load::Result;

use crate::bounds::Bounds;
use crate::ring::{BUFFERS, INDIRECT, MEMORY, NEXT, RingGuest, TABLES, WRITE};
use crate::stage::{Attack, HOST, Stage};

/// Most descriptors of a chain.
const LONGEST: u16 = 1024;

/// So many used entries the guest waits for before it moves the index: often enough that the device never finds it
/// standing.
const STEP: u16 = 64;

/// Where receive buffers are.
const INTO: (u64, u32) = (BUFFERS + 0x10000, 4096);

/// A table for rx, behind the one for tx.
const RX_TABLE: u64 = TABLES + 0x8000;

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "tx-indirect", play: |s, b| indirect(s, b, Op::Rst, false) },
    Attack { name: "tx-rx-indirect", play: |s, b| indirect(s, b, Op::Request, true) },
    Attack { name: "tx-direct", play: tx_direct },
    Attack { name: "tx-short", play: |s, b| tx_useless(s, b, (BUFFERS, 10), 0) },
    Attack { name: "tx-empty", play: |s, b| tx_useless(s, b, (BUFFERS, 0), 0) },
    Attack { name: "tx-writable", play: |s, b| tx_useless(s, b, (BUFFERS, 44), WRITE) },
    Attack { name: "tx-short-indirect", play: tx_short_indirect },
    Attack { name: "tx-scattered", play: tx_scattered },
    Attack { name: "tx-step", play: tx_step },
    Attack { name: "rx-step", play: rx_step },
    Attack { name: "rx-tiny", play: |s, b| rx_buffers(s, b, (INTO.0, 44), WRITE) },
    Attack { name: "rx-short", play: |s, b| rx_buffers(s, b, (INTO.0, 43), WRITE) },
    Attack { name: "rx-readable", play: |s, b| rx_buffers(s, b, INTO, 0) },
    Attack { name: "rx-late", play: rx_late },
    Attack { name: "rx-none", play: rx_none },
    Attack { name: "rx-untouched", play: rx_untouched },
    Attack { name: "event-queue", play: event_queue },
    Attack { name: "kicks", play: kicks },
    Attack { name: "calls", play: calls },
    Attack { name: "index-jumps", play: |s, b| lives(s, b, index_jump) },
    Attack { name: "chain-loops", play: |s, b| lives(s, b, chain_loop) },
    Attack { name: "outside-memory", play: |s, b| lives(s, b, outside_memory) },
    Attack { name: "random-rings", play: |s, b| lives(s, b, random_rings) },
];

fn join(stage: &Stage) -> Result<RingGuest> {
    RingGuest::join(stage.plain_guest()?, LONGEST, MEMORY)
}

/// Keeps the queue full of the same chain.
fn pour(guest: &mut RingGuest, bounds: &mut Bounds, with_rx: bool) {
    Bounds::ready();
    while bounds.another() {
        let mut moved = guest.tx.refill(|_| 0);
        if with_rx {
            moved += guest.rx.refill(|_| 0);
        }
        if moved == 0 {
            std::thread::yield_now();
        }
    }
}

/// A header in one descriptor and 1023 empty ones behind it, in an indirect table; receive buffers in the same way.
fn indirect(stage: &Stage, bounds: &mut Bounds, op: Op, on_rx: bool) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, op, (HOST, 1));
    guest.memory.table(TABLES, LONGEST, header, (BUFFERS, 0), 0);
    guest.memory.table(RX_TABLE, LONGEST, INTO, (BUFFERS, 0), WRITE);
    let bytes = u32::from(LONGEST) * 16;
    guest.tx.fill((TABLES, bytes), INDIRECT);
    guest.rx.fill((RX_TABLE, bytes), INDIRECT);
    pour(&mut guest, bounds, on_rx);
    Ok(())
}

/// One chain through all descriptors of the queue.
fn tx_direct(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Rst, (HOST, 1));
    guest.memory.table(guest.tx.descriptors(), LONGEST, header, (BUFFERS, 0), 0);
    pour(&mut guest, bounds, false);
    Ok(())
}

/// Chains that hold no header.
fn tx_useless(stage: &Stage, bounds: &mut Bounds, buffer: (u64, u32), flags: u16) -> Result<()> {
    let mut guest = join(stage)?;
    guest.tx.fill(buffer, flags);
    pour(&mut guest, bounds, false);
    Ok(())
}

/// Chains of 1024 descriptors that together hold no header.
fn tx_short_indirect(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    guest.memory.table(TABLES, LONGEST, (BUFFERS, 43), (BUFFERS, 0), 0);
    guest.tx.fill((TABLES, u32::from(LONGEST) * 16), INDIRECT);
    pour(&mut guest, bounds, false);
    Ok(())
}

/// A packet's payload in 1023 descriptors of 64 bytes.
fn tx_scattered(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Rst, (HOST, 1));
    guest.memory.write(BUFFERS + 24, &(64u32 * 1023).to_le_bytes());
    guest.memory.table(TABLES, LONGEST, header, (BUFFERS + 0x1000, 64), 0);
    guest.tx.fill((TABLES, u32::from(LONGEST) * 16), INDIRECT);
    pour(&mut guest, bounds, false);
    Ok(())
}

/// 255 chains without a header before each with one, the index moved on as soon as the device writes a used entry.
fn tx_step(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Rst, (HOST, 1));
    guest.tx.fill((BUFFERS, 10), 0);
    guest.memory.descriptor(guest.tx.descriptors(), 0, header, 0);
    guest.tx.refill(useful_of_256);
    Bounds::ready();
    while bounds.another() {
        if guest.tx.sees_used(STEP) {
            guest.tx.again(STEP);
        } else if guest.tx.under_way() < STEP {
            guest.tx.kick();
        }
    }
    Ok(())
}

/// The same with receive buffers, while answers are provoked.
fn rx_step(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Request, (HOST, 1));
    guest.tx.fill(header, 0);
    guest.rx.fill((INTO.0, 10), WRITE);
    guest.memory.descriptor(guest.rx.descriptors(), 0, INTO, WRITE);
    guest.rx.refill(useful_of_256);
    Bounds::ready();
    while bounds.another() {
        for _ in 0..64 {
            if guest.rx.sees_used(STEP) {
                guest.rx.again(STEP);
            }
        }
        guest.tx.refill(|_| 0);
    }
    Ok(())
}

fn useful_of_256(index: u16) -> u16 {
    u16::from(!index.is_multiple_of(256))
}

/// Answers go into buffers of one form.
fn rx_buffers(stage: &Stage, bounds: &mut Bounds, buffer: (u64, u32), flags: u16) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Request, (HOST, 1));
    guest.tx.fill(header, 0);
    guest.rx.fill(buffer, flags);
    pour(&mut guest, bounds, true);
    Ok(())
}

/// No receive buffer until thousands of answers are due, then all of them with 1024 descriptors each.
fn rx_late(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Request, (HOST, 1));
    guest.tx.fill(header, 0);
    guest.memory.table(RX_TABLE, LONGEST, INTO, (BUFFERS, 0), WRITE);
    guest.rx.fill((RX_TABLE, u32::from(LONGEST) * 16), INDIRECT);
    Bounds::ready();
    let mut round = 0u32;
    while bounds.another() {
        let sent = guest.tx.refill(|_| 0);
        round = round.wrapping_add(1);
        if sent == 0 || round.is_multiple_of(8) {
            guest.rx.refill(|_| 0);
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Answers are provoked and never have a buffer.
fn rx_none(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Request, (HOST, 1));
    guest.tx.fill(header, 0);
    pour(&mut guest, bounds, false);
    Ok(())
}

/// Receive buffers in pages that nobody has written, a new one for each answer, in 128 MiB.
fn rx_untouched(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    const PAGES: u64 = 128 << 8;
    let mut guest = RingGuest::join(stage.plain_guest()?, LONGEST, MEMORY + (PAGES << 12))?;
    let header = guest.header(BUFFERS, Op::Request, (HOST, 1));
    guest.tx.fill(header, 0);
    let (table, memory, size) = (guest.rx.descriptors(), guest.memory.clone(), guest.rx.size());
    let mut page = 0;
    Bounds::ready();
    while bounds.another() {
        guest.rx.refill(|index| {
            page = (page + 1) % PAGES;
            let at = crate::ring::BASE + MEMORY + (page << 12);
            memory.descriptor(table, index % size, (at, 4096), WRITE);
            index % size
        });
        if guest.tx.refill(|_| 0) == 0 {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Chains of every wrong form in the queue of events.
fn event_queue(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    guest.memory.table(TABLES, LONGEST, (BUFFERS, 0), (BUFFERS, 0), WRITE);
    guest.event.fill((TABLES, u32::from(LONGEST) * 16), INDIRECT);
    Bounds::ready();
    while bounds.another() {
        guest.event.refill(|_| 0);
        guest.event.kick();
    }
    Ok(())
}

/// Kicks on all queues, and nothing in them.
fn kicks(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let guest = join(stage)?;
    Bounds::ready();
    while bounds.another() {
        guest.rx.kick();
        guest.tx.kick();
        guest.event.kick();
    }
    Ok(())
}

/// A call is asked for with every packet, one packet at a time.
fn calls(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = join(stage)?;
    let header = guest.header(BUFFERS, Op::Rst, (HOST, 1));
    guest.tx.fill(header, 0);
    guest.tx.want_calls(true);
    Bounds::ready();
    while bounds.another() {
        guest.tx.refill(|_| 0);
        // Nothing there is no news.
        let _ = rustix::io::read(&guest.calls[1], &mut [0; 8]);
    }
    Ok(())
}

/// Joins, breaks the rules, is sent away, joins again.
fn lives(stage: &Stage, bounds: &mut Bounds, life: fn(&mut RingGuest, u64)) -> Result<()> {
    let socket: &Path = stage.plain_guest()?;
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    Bounds::ready();
    while bounds.another() {
        // The device may still be about to let the last one go.
        let Ok(mut guest) = RingGuest::join(socket, 256, MEMORY) else { continue };
        seed = random(seed);
        life(&mut guest, seed);
    }
    Ok(())
}

fn index_jump(guest: &mut RingGuest, seed: u64) {
    let index = 300 + u16::try_from(seed % 60_000).unwrap_or(0);
    guest.tx.publish_index(index);
    guest.tx.kick();
}

fn chain_loop(guest: &mut RingGuest, _: u64) {
    let header = guest.header(BUFFERS, Op::Rst, (HOST, 1));
    let size = guest.tx.size();
    let table = guest.tx.descriptors();
    for index in 0..size {
        guest.memory.descriptor(table, index, header, NEXT);
    }
    guest.memory.write(table + u64::from(size - 1) * 16 + 14, &0u16.to_le_bytes());
    guest.tx.refill(|_| 0);
}

fn outside_memory(guest: &mut RingGuest, seed: u64) {
    guest.tx.fill((seed, 44), 0);
    guest.tx.refill(|_| 0);
}

/// A few thousand random writes to everything that the device reads.
fn random_rings(guest: &mut RingGuest, mut seed: u64) {
    let header = guest.header(BUFFERS, Op::Request, (HOST, 1));
    guest.tx.fill(header, 0);
    guest.rx.fill(INTO, WRITE);
    for round in 0..2000 {
        seed = random(seed);
        let at = crate::ring::BASE + seed % 0x1_8000;
        guest.memory.write(at, &seed.to_le_bytes()[..1 + (seed >> 61) as usize]);
        if round % 16 == 0 {
            guest.rx.refill(|index| index % 256);
            guest.tx.refill(|index| index % 256);
        }
    }
}

/// The next of a sequence that looks random (xorshift).
pub(crate) fn random(mut seed: u64) -> u64 {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^ (seed << 17)
}
