//! A guest with a sound driver that sends packets of no connection, or begins connections without end.

use vsock_core::{Op, RawHeader};
use vsock_load::Result;
use vsock_load::programs::{Kind, listen};

use crate::bounds::Bounds;
use crate::guest::{Guest, To};
use crate::rings::random;
use crate::stage::{Attack, HOST, PORT, Service, Stage};

/// A port of the host at which nobody listens.
const NOBODY: u32 = 1;

/// The port at which the switch itself hears that guests are ready.
const NOTIFY: u32 = 73_239;

/// A CID that no guest has.
const ABSENT: u32 = 4_000_000;

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "request-silent", play: |s, b| requests(s, b, (HOST, NOBODY), false) },
    Attack { name: "request-hybrid", play: |s, b| requests(s, b, (HOST, NOBODY), true) },
    Attack { name: "request-absent", play: |s, b| requests(s, b, (ABSENT, 1), false) },
    Attack { name: "request-unattached", play: request_unattached },
    Attack { name: "request-rst-silent", play: request_rst_silent },
    Attack { name: "request-accepted-rst", play: request_accepted_rst },
    Attack { name: "request-rst", play: request_rst },
    Attack { name: "request-unaccepted", play: request_unaccepted },
    Attack { name: "request-hybrid-unaccepted", play: request_hybrid_unaccepted },
    Attack { name: "connects", play: connects },
    Attack { name: "notify-connects", play: |s, b| connects_to(s, b, NOTIFY) },
    Attack { name: "notify-requests", play: |s, b| requests(s, b, (HOST, NOTIFY), false) },
    Attack { name: "unknown-flows", play: unknown_flows },
    Attack { name: "spoofed", play: spoofed },
    Attack { name: "wrong-types", play: wrong_types },
    Attack { name: "wrong-lengths", play: wrong_lengths },
    Attack { name: "random-packets", play: random_packets },
    Attack { name: "to-neighbour-requests", play: |s, b| requests(s, b, (s.neighbour, 7), false) },
    Attack {
        name: "to-neighbour-connects",
        play: |s, b| requests(s, b, (s.neighbour, Service::Discard as u32), false),
    },
    Attack { name: "to-neighbour-rst", play: to_neighbour_rst },
    Attack { name: "to-neighbour-updates", play: to_neighbour_updates },
    Attack { name: "to-neighbour-broken", play: to_neighbour_broken },
];

/// A guest without a hybrid socket.
fn plain(stage: &Stage) -> Result<Guest> {
    Guest::join(stage.plain_guest()?)
}

/// Ports of our own, one after the other.
fn ports() -> impl FnMut() -> u32 {
    let mut port = 1000;
    move || {
        port += 1;
        port
    }
}

/// REQUESTs by a guest with or without a hybrid socket; RST where one is accepted.
fn requests(stage: &Stage, bounds: &mut Bounds, to: To, hybrid: bool) -> Result<()> {
    let mut guest = if hybrid { Guest::join(stage.guest(0)?)? } else { plain(stage)? };
    Bounds::ready();
    guest.requests(bounds, to)
}

/// To a guest that is known and not there.
fn request_unattached(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    // We have one more guest than we join with.
    let unattached = plain(stage)?.cid() + 1;
    requests(stage, bounds, (unattached, 1), false)
}

/// REQUEST and RST in a row, to a port where nobody listens.
fn request_rst_silent(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    pairs(plain(stage)?, bounds, (HOST, NOBODY), (Op::Rst, b""))
}

/// For each port a REQUEST, and what comes behind it.
fn pairs(
    mut guest: Guest,
    bounds: &mut Bounds,
    to: To,
    (behind, data): (Op, &'static [u8]),
) -> Result<()> {
    let mut count = 0;
    let len = u32::try_from(data.len())?;
    Bounds::ready();
    guest.flood(
        bounds,
        |guest| {
            count += 1;
            let port = 1000 + count / 2;
            Some(if count % 2 == 0 {
                (RawHeader { len, ..guest.packet(behind, port, to) }, data)
            } else {
                (guest.packet(Op::Request, port, to), &[])
            })
        },
        |_, _| {},
    )
}

/// REQUEST to a port where somebody listens; RST as soon as it is accepted.
fn request_accepted_rst(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    stage.accept_and_close()?;
    requests(stage, bounds, (HOST, PORT), false)
}

/// REQUEST and RST in a row, to a port where somebody listens.
fn request_rst(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    stage.accept_and_close()?;
    pairs(plain(stage)?, bounds, (HOST, PORT), (Op::Rst, b""))
}

/// REQUESTs to a listener that accepts nothing.
fn request_unaccepted(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let _listener = listen(&stage.run, Kind::Stream, PORT, 4096)?;
    requests(stage, bounds, (HOST, PORT), false)
}

/// REQUESTs to a program at a hybrid path that accepts nothing.
fn request_hybrid_unaccepted(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut path = stage.guest(0)?.with_extension("vsock").into_os_string();
    path.push(format!("_{PORT}"));
    // It may be there from an earlier round.
    let _ = std::fs::remove_file(&path);
    let _listener = std::os::unix::net::UnixListener::bind(&path)?;
    requests(stage, bounds, (HOST, PORT), true)
}

/// What an ordinary program of a guest can do: so many connects under way, each closed when it is open.
fn connects(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    stage.accept_and_close()?;
    connects_to(stage, bounds, PORT)
}

/// The same to a port at which somebody accepts.
fn connects_to(stage: &Stage, bounds: &mut Bounds, to: u32) -> Result<()> {
    let mut guest = plain(stage)?;
    let requests =
        (0..stage.number_or(128)).map(|n| guest.packet(Op::Request, 1000 + n, (HOST, to)));
    guest.due = requests.collect();
    Bounds::ready();
    guest.flood(
        bounds,
        |_| None,
        |guest, header| {
            let (port, op) = (header.dst_port, Op::from_wire(header.op));
            if op == Op::Response {
                let reset = guest.answer(Op::Rst, header);
                guest.due.push_back(reset);
            }
            if matches!(op, Op::Response | Op::Rst) {
                let request = guest.packet(Op::Request, port, (HOST, to));
                guest.due.push_back(request);
            }
        },
    )
}

/// All operations but REQUEST, of no connection: each is answered with RST.
fn unknown_flows(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (mut guest, mut port) = (plain(stage)?, ports());
    let ops = [Op::Response, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::CreditRequest];
    let mut turn = ops.into_iter().cycle();
    Bounds::ready();
    guest.flood(
        bounds,
        |guest| Some((guest.packet(turn.next()?, port(), (HOST, NOBODY)), &[])),
        |_, _| {},
    )
}

/// One packet with a spoilt header, from new ports.
fn spoilt(
    stage: &Stage,
    bounds: &mut Bounds,
    op: Op,
    spoil: impl Fn(RawHeader) -> RawHeader,
) -> Result<()> {
    let (mut guest, mut port) = (plain(stage)?, ports());
    Bounds::ready();
    guest.flood(
        bounds,
        |guest| Some((spoil(guest.packet(op, port(), (HOST, NOBODY))), b"four")),
        |_, _| {},
    )
}

/// REQUESTs in the neighbour's name.
fn spoofed(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let src_cid = u64::from(stage.neighbour);
    spoilt(stage, bounds, Op::Request, |header| RawHeader { src_cid, ..header })
}

/// Socket types that nobody knows.
fn wrong_types(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    spoilt(stage, bounds, Op::Request, |header| RawHeader { kind: 77, ..header })
}

/// Lengths beyond what is there.
fn wrong_lengths(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    spoilt(stage, bounds, Op::Rw, |header| RawHeader { len: u32::MAX, ..header })
}

/// Every field at random, from a seed that is always the same; answers are answered at random as well.
fn random_packets(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    stage.accept_and_close()?;
    let mut guest = plain(stage)?;
    let mut seed = 0x2545_f491_4f6c_dd1d;
    let cids = [HOST, stage.accomplice, guest.cid(), 0, 1, ABSENT];
    Bounds::ready();
    guest.flood(
        bounds,
        |guest| {
            seed = random(seed);
            let bits =
                |at: u32, count: u32| u32::try_from(seed >> at & ((1 << count) - 1)).unwrap_or(0);
            let to = (cids[bits(0, 8) as usize % cids.len()], PORT - bits(8, 1));
            let ops = [
                Op::Request,
                Op::Response,
                Op::Rst,
                Op::Shutdown,
                Op::Rw,
                Op::CreditUpdate,
                Op::CreditRequest,
            ];
            let packet = guest.packet(ops[bits(9, 8) as usize % ops.len()], 1000 + bits(17, 4), to);
            let packet = RawHeader {
                kind: 1 + u16::try_from(bits(21, 2)).unwrap_or(0),
                flags: bits(23, 3),
                len: if bits(26, 1) == 0 { 4 } else { bits(27, 10) },
                buf_alloc: bits(37, 20),
                fwd_cnt: bits(40, 20),
                ..packet
            };
            Some((packet, b"four"))
        },
        |_, _| {},
    )
}

/// RSTs to the neighbour, of no connection.
fn to_neighbour_rst(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (mut guest, mut port) = (plain(stage)?, ports());
    let to = (stage.neighbour, Service::Discard as u32);
    Bounds::ready();
    guest.flood(bounds, |guest| Some((guest.packet(Op::Rst, port(), to), &[])), |_, _| {})
}

/// CREDIT_UPDATEs to the neighbour, on one connection.
fn to_neighbour_updates(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut guest = plain(stage)?;
    let to = (stage.neighbour, Service::Discard as u32);
    let update = guest.packet(Op::CreditUpdate, 1000, to);
    guest.due.push_back(guest.packet(Op::Request, 1000, to));
    Bounds::ready();
    guest.flood(bounds, |_| Some((update, &[])), |_, _| {})
}

/// Connections to the neighbour that the switch ends, as data comes before they are open.
fn to_neighbour_broken(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let to = (stage.neighbour, Service::Discard as u32);
    pairs(plain(stage)?, bounds, to, (Op::Rw, b"four"))
}
