//! Guests of one group, by what they send to each other.

use vsock_core::{Op, RawHeader};
use vsock_load::Result;

use crate::bounds::Bounds;
use crate::guest::{Guest, To};
use crate::rings::random;
use crate::stage::{Attack, Service, Stage};

/// Socket type of datagrams.
const DATAGRAM: u16 = 3;

static PAYLOAD: [u8; 4096] = [9; 4096];

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "between-credit-updates", play: |s, b| pair(s, b, Op::CreditUpdate, 0) },
    Attack { name: "between-credit-requests", play: |s, b| pair(s, b, Op::CreditRequest, 0) },
    Attack { name: "between-bytes", play: |s, b| pair(s, b, Op::Rw, 1) },
    Attack { name: "between-bulk", play: |s, b| pair(s, b, Op::Rw, 4096) },
    Attack { name: "between-requests", play: |s, b| requests(s, b, 7) },
    Attack { name: "between-connects", play: |s, b| requests(s, b, Service::Greet as u32) },
    Attack { name: "between-shutdowns", play: |s, b| pair(s, b, Op::Shutdown, 0) },
    Attack { name: "between-unread", play: unread },
    Attack { name: "between-random", play: random_between },
    Attack { name: "between-datagrams", play: |s, b| datagrams(s, b, s.accomplice) },
    Attack { name: "to-neighbour-datagrams", play: |s, b| datagrams(s, b, s.neighbour) },
];

/// Accepts a REQUEST that came.
fn welcome(guest: &mut Guest, header: &RawHeader) {
    if Op::from_wire(header.op) == Op::Request {
        let response = guest.answer(Op::Response, header);
        guest.due.push_back(response);
    }
}

/// Two guests of ours with a connection, and one packet on it from both, again and again; credit is without end.
fn pair(stage: &Stage, bounds: &mut Bounds, op: Op, len: u32) -> Result<()> {
    let (mut one, mut two) = (Guest::join(stage.guest(0)?)?, Guest::join(stage.plain_guest()?)?);
    let to: [To; 2] = [(two.cid(), 20), (one.cid(), 10)];
    one.try_send(&one.packet(Op::Request, 10, to[0]), &[])?;
    one.publish()?;
    let payload = &PAYLOAD[..len as usize];
    let packets = [one.packet(op, 10, to[0]), two.packet(op, 20, to[1])];
    let packets = packets.map(|packet| RawHeader { len, ..packet });
    Bounds::ready();
    let (mut came, mut moved) = ([0u32; 2], [0u32; 2]);
    while bounds.another() {
        let mut is_idle = true;
        for (index, guest) in [&mut one, &mut two].into_iter().enumerate() {
            let (taken, sent) = (came[index], &mut moved[index]);
            let mut heard = 0;
            is_idle &= !guest.step(
                &mut |_| {
                    *sent += 1;
                    let packet = RawHeader { fwd_cnt: taken, ..packets[index] };
                    Some((packet, payload))
                },
                &mut |guest, header| {
                    welcome(guest, header);
                    heard += header.len;
                },
            )?;
            came[index] = came[index].wrapping_add(heard);
        }
        if is_idle {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// REQUESTs to a port of the accomplice; RST where one is accepted.
fn requests(stage: &Stage, bounds: &mut Bounds, port: u32) -> Result<()> {
    let mut guest = Guest::join(stage.plain_guest()?)?;
    Bounds::ready();
    guest.requests(bounds, (stage.accomplice, port))
}

/// A guest that takes nothing out of its queue, and one that sends it all it can.
fn unread(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (mut one, two) = (Guest::join(stage.guest(0)?)?, Guest::join(stage.plain_guest()?)?);
    Bounds::ready();
    one.requests(bounds, (two.cid(), 20))
}

/// Two guests that send each other whatever chance says, on a few connections.
fn random_between(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (mut one, mut two) = (Guest::join(stage.guest(0)?)?, Guest::join(stage.plain_guest()?)?);
    let cids = [two.cid(), one.cid()];
    let ops = [Op::Request, Op::Response, Op::Rst, Op::Shutdown, Op::Rw, Op::CreditUpdate];
    let mut seed = 0x1234_5678_9abc_def1;
    Bounds::ready();
    while bounds.another() {
        for (index, guest) in [&mut one, &mut two].into_iter().enumerate() {
            guest.step(
                &mut |guest| {
                    seed = random(seed);
                    let [op, port, flags, len, ..] = seed.to_le_bytes();
                    let (from, to) = (10 + u32::from(port % 4), 10 + u32::from(port / 4 % 4));
                    let packet =
                        guest.packet(ops[usize::from(op) % ops.len()], from, (cids[index], to));
                    let len = u32::from(len);
                    let packet = RawHeader { flags: u32::from(flags % 4), len, ..packet };
                    Some((packet, &PAYLOAD[..len as usize]))
                },
                &mut |_, _| {},
            )?;
        }
    }
    Ok(())
}

/// Datagrams of a page, which need no credit.
fn datagrams(stage: &Stage, bounds: &mut Bounds, to: u32) -> Result<()> {
    let mut guest = Guest::join(stage.plain_guest()?)?;
    let packet = guest.packet(Op::Rw, 10, (to, 20));
    let packet = RawHeader { kind: DATAGRAM, len: 4096, flags: vsock_core::EOM, ..packet };
    Bounds::ready();
    guest.flood(bounds, |_| Some((packet, &PAYLOAD)), |_, _| {})
}
