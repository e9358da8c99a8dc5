//! A guest with a sound driver that misuses connections it has with host programs.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vsock_core::{EOM, EOR, Op, RawHeader};
use vsock_load::Result;
use vsock_load::programs::{Kind, accept, listen};

use crate::bounds::Bounds;
use crate::guest::{BUFFER, Guest};
use crate::stage::{Attack, HOST, PORT, Stage};

const STREAM: u16 = 1;
const SEQPACKET: u16 = 2;

/// What moves no more for so long is full, or has to be asked for its credit.
const FULL: Duration = Duration::from_millis(100);

/// How often all connections are asked.
const QUESTIONS: u32 = 4;

/// The most a packet carries here: what one buffer of a Linux guest holds.
static PAYLOAD: [u8; 4096] = [7; 4096];

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "credit-updates", play: |s, b| storm(s, b, Op::CreditUpdate, 0) },
    Attack { name: "credit-requests", play: |s, b| storm(s, b, Op::CreditRequest, 0) },
    Attack { name: "empty-data", play: |s, b| storm(s, b, Op::Rw, 0) },
    Attack { name: "shutdowns", play: shutdowns },
    Attack { name: "responses", play: |s, b| storm(s, b, Op::Response, 0) },
    Attack { name: "bytes-read", play: |s, b| bytes(s, b, true) },
    Attack { name: "bytes-unread", play: |s, b| bytes(s, b, false) },
    Attack { name: "over-credit", play: over_credit },
    Attack { name: "repeated-request", play: repeated_request },
    Attack { name: "hoard", play: hoard },
    Attack { name: "message-marks", play: message_marks },
    Attack { name: "message-pieces", play: message_pieces },
    Attack { name: "greedy-to-host", play: greedy },
    Attack { name: "window-of-one", play: window_of_one },
];

/// A guest with one connection, and the program's end of it.
fn opened(stage: &Stage, bounds: &mut Bounds, kind: u16) -> Result<(Guest, UnixStream)> {
    let mut guest = Guest::join(stage.plain_guest()?)?;
    let sockets = if kind == STREAM { Kind::Stream } else { Kind::Messages };
    let mut listener = listen(&stage.run, sockets, PORT, 16)?;
    if !guest.open(bounds, 1, (HOST, PORT), kind)? {
        return Err("no connection".into());
    }
    Ok((guest, accept(&mut listener)?))
}

/// One packet, again and again, on an open connection.
fn storm(stage: &Stage, bounds: &mut Bounds, op: Op, flags: u32) -> Result<()> {
    let (mut guest, _program) = opened(stage, bounds, STREAM)?;
    let packet = RawHeader { flags, ..guest.packet(op, 1, (HOST, PORT)) };
    Bounds::ready();
    guest.flood(bounds, |_| Some((packet, &[])), |_, _| {})
}

/// SHUTDOWN that says nothing, then of one direction.
fn shutdowns(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    storm(stage, bounds, Op::Shutdown, 2)
}

/// Reads until the end, in a thread.
fn reading(mut program: UnixStream) {
    std::thread::spawn(move || std::io::copy(&mut program, &mut std::io::sink()));
}

/// How much may still be sent on the connection, from what the packets that came say.
struct Credit {
    sent: u32,
    most: u32,
}

impl Credit {
    fn hear(&mut self, header: &RawHeader) {
        self.most = header.fwd_cnt.wrapping_add(header.buf_alloc);
    }

    fn has(&self, bytes: u32) -> bool {
        let left = self.most.wrapping_sub(self.sent);
        left >= bytes && left < 1 << 30
    }

    fn take(&mut self, bytes: u32) -> bool {
        let is_enough = self.has(bytes);
        if is_enough {
            self.sent = self.sent.wrapping_add(bytes);
        }
        is_enough
    }
}

/// Data within credit, `len` bytes a packet.
fn data(guest: &mut Guest, bounds: &mut Bounds, header: RawHeader, len: usize) -> Result<()> {
    let packet = RawHeader { len: u32::try_from(len)?, ..header };
    let question = RawHeader { op: Op::CreditRequest.to_wire(), ..header };
    guest.due.push_back(question);
    let credit = std::cell::RefCell::new(Credit { sent: 0, most: 0 });
    Bounds::ready();
    guest.flood(
        bounds,
        |_| credit.borrow_mut().take(packet.len).then_some((packet, &PAYLOAD[..len])),
        |_, header| credit.borrow_mut().hear(header),
    )
}

/// One byte a packet.
fn bytes(stage: &Stage, bounds: &mut Bounds, is_read: bool) -> Result<()> {
    let (mut guest, program) = opened(stage, bounds, STREAM)?;
    let header = guest.packet(Op::Rw, 1, (HOST, PORT));
    let _kept = if is_read {
        reading(program);
        None
    } else {
        Some(program)
    };
    data(&mut guest, bounds, header, 1)
}

/// As much as can be sent, in large packets.
fn greedy(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (mut guest, program) = opened(stage, bounds, STREAM)?;
    reading(program);
    let header = guest.packet(Op::Rw, 1, (HOST, PORT));
    data(&mut guest, bounds, header, PAYLOAD.len())
}

/// Data beyond credit, which ends the connection; then the next.
fn over_credit(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    stage.accept_and_close()?;
    let mut guest = Guest::join(stage.plain_guest()?)?;
    let mut count = 0u32;
    Bounds::ready();
    guest.flood(
        bounds,
        |guest| {
            count += 1;
            let port = 1000 + count / 128;
            let op = if count.is_multiple_of(128) { Op::Request } else { Op::Rw };
            let packet = guest.packet(op, port, (HOST, PORT));
            let len = if op == Op::Rw { 4096 } else { 0 };
            Some((RawHeader { len, ..packet }, &PAYLOAD[..len as usize]))
        },
        |_, _| {},
    )
}

/// REQUEST between addresses that have a connection: replaces it each time.
fn repeated_request(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut listener = listen(&stage.run, Kind::Stream, PORT, 1024)?;
    std::thread::spawn(move || {
        let mut kept = std::collections::VecDeque::new();
        while let Ok(stream) = accept(&mut listener) {
            kept.push_back(stream);
            if kept.len() > 64 {
                kept.pop_front();
            }
        }
    });
    let mut guest = Guest::join(stage.plain_guest()?)?;
    Bounds::ready();
    guest.flood(bounds, |guest| Some((guest.packet(Op::Request, 1, (HOST, PORT)), &[])), |_, _| {})
}

/// Connections that are filled to the last byte of credit and never read: the switch keeps it all.
fn hoard(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut listener = listen(&stage.run, Kind::Stream, PORT, 1024)?;
    let mut guest = Guest::join(stage.plain_guest()?)?;
    let mut programs = Vec::new();
    for port in 0..stage.number_or(500) {
        if !guest.open(bounds, port, (HOST, PORT), STREAM)? {
            break;
        }
        programs.push(accept(&mut listener)?);
    }
    let mut credits: Vec<Credit> =
        programs.iter().map(|_| Credit { sent: 0, most: BUFFER }).collect();
    let (mut moved_at, mut questions) = (Instant::now(), 0);
    while bounds.another() && questions < QUESTIONS {
        let mut to_fill = (0..).zip(&mut credits).filter(|(_, credit)| credit.has(4096));
        let mut next = |guest: &Guest| {
            let (port, credit) = to_fill.next()?;
            credit.take(4096);
            let packet = guest.packet(Op::Rw, port, (HOST, PORT));
            Some((RawHeader { len: 4096, ..packet }, &PAYLOAD[..]))
        };
        let mut heard = Vec::new();
        if guest.step(&mut next, &mut |_, header| heard.push(*header))? {
            moved_at = Instant::now();
        } else if moved_at.elapsed() > FULL {
            (moved_at, questions) = (Instant::now(), questions + 1);
            let ask = |port| guest.packet(Op::CreditRequest, port, (HOST, PORT));
            guest.due = (0..u32::try_from(credits.len())?).map(ask).collect();
        }
        for header in heard {
            if let Some(credit) = credits.get_mut(header.dst_port as usize) {
                credit.hear(&header);
            }
        }
    }
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// Records of one byte with the mark of an end, on many connections that nobody reads.
fn message_marks(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut listener = listen(&stage.run, Kind::Messages, PORT, 1024)?;
    let mut guest = Guest::join(stage.plain_guest()?)?;
    let mut programs = Vec::new();
    for port in 0..stage.number_or(64) {
        if guest.open(bounds, port, (HOST, PORT), SEQPACKET)? {
            programs.push(accept(&mut listener)?);
        }
    }
    let (mut turn, count) = (0, u32::try_from(programs.len())?.max(1));
    Bounds::ready();
    guest.flood(
        bounds,
        |guest| {
            turn += 1;
            let packet = guest.packet(Op::Rw, turn % count, (HOST, PORT));
            Some((RawHeader { kind: SEQPACKET, len: 1, flags: EOM | EOR, ..packet }, b"m"))
        },
        |_, _| {},
    )
}

/// Pieces of a message without bytes and without an end.
fn message_pieces(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (mut guest, _program) = opened(stage, bounds, SEQPACKET)?;
    let packet = RawHeader { kind: SEQPACKET, ..guest.packet(Op::Rw, 1, (HOST, PORT)) };
    Bounds::ready();
    guest.flood(bounds, |_| Some((packet, &[])), |_, _| {})
}

/// A program sends, and the guest allows one byte at a time.
fn window_of_one(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (mut guest, mut program) = opened(stage, bounds, STREAM)?;
    std::thread::spawn(move || {
        use std::io::Write;
        while program.write_all(&PAYLOAD).is_ok() {}
    });
    let mut taken = 0u32;
    let update = RawHeader { buf_alloc: 1, ..guest.packet(Op::CreditUpdate, 1, (HOST, PORT)) };
    guest.due.push_back(update);
    Bounds::ready();
    guest.flood(
        bounds,
        |_| None,
        |guest, header| {
            if Op::from_wire(header.op) == Op::Rw {
                taken = taken.wrapping_add(header.len);
                guest.due.push_back(RawHeader { fwd_cnt: taken, ..update });
            }
        },
    )
}
