//! A front end that was taken over, by its messages and the memory that it hands over.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vsock_load::Result;

use crate::bounds::Bounds;
use crate::front_end::{FEATURES, FrontEnd, event, pair, request, set_up, words};
use crate::guest::Guest;
use crate::ring::{BASE, MEMORY, memory};
use crate::rings::random;
use crate::stage::{Attack, Stage};

pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "attach-detach", play: attach_detach },
    Attack { name: "connect-hang-up", play: connect_hang_up },
    Attack { name: "questions", play: questions },
    Attack { name: "questions-unread", play: questions_unread },
    Attack { name: "half-messages", play: half_messages },
    Attack { name: "message-bytes", play: message_bytes },
    Attack { name: "wrong-messages", play: wrong_messages },
    Attack { name: "message-descriptors", play: message_descriptors },
    Attack { name: "rings-enable", play: rings_enable },
    Attack { name: "rings-stop-start", play: rings_stop_start },
    Attack { name: "features-again", play: features_again },
    Attack { name: "call-again", play: call_again },
    Attack { name: "memory-again", play: memory_again },
    Attack { name: "memory-huge", play: memory_huge },
    Attack { name: "memory-regions", play: memory_regions },
    Attack { name: "memory-shrinks", play: memory_shrinks },
    Attack { name: "channel-full", play: channel_full },
];

/// A guest that joins properly and leaves.
fn attach_detach(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let socket = stage.plain_guest()?;
    Bounds::ready();
    while bounds.another() {
        drop(Guest::join(socket)?);
    }
    Ok(())
}

fn connect_hang_up(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let socket = stage.plain_guest()?;
    Bounds::ready();
    while bounds.another() {
        drop(FrontEnd::connect(socket)?);
    }
    Ok(())
}

/// GET_FEATURES and GET_CONFIG, one after the other.
fn questions(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut front = FrontEnd::connect(stage.plain_guest()?)?;
    Bounds::ready();
    while bounds.another() {
        front.ask(request::GET_FEATURES, &[])?;
        front.cid()?;
    }
    Ok(())
}

/// Questions whose answers nobody reads, until the device hangs up; then again.
fn questions_unread(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let socket = stage.plain_guest()?;
    Bounds::ready();
    while bounds.another() {
        let front = FrontEnd::connect(socket)?;
        while bounds.another() && front.say(request::GET_FEATURES, &[], &[]).is_ok() {}
    }
    Ok(())
}

/// Half a header, and a hang-up.
fn half_messages(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let socket = stage.plain_guest()?;
    Bounds::ready();
    while bounds.another() {
        let mut front = FrontEnd::connect(socket)?;
        front.socket.write_all(&[1, 0, 0, 0, 1])?;
    }
    Ok(())
}

/// GET_FEATURES a byte at a time.
fn message_bytes(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let mut front = FrontEnd::connect(stage.plain_guest()?)?;
    let message = [request::GET_FEATURES, 1, 0].map(u32::to_ne_bytes).concat();
    Bounds::ready();
    while bounds.another() {
        for byte in &message {
            front.socket.write_all(&[*byte])?;
        }
        front.answer()?;
    }
    Ok(())
}

/// Requests and bodies at random, until the device hangs up; then again.
fn wrong_messages(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (socket, mut seed) = (stage.plain_guest()?, 0x9e37_79b9);
    Bounds::ready();
    while bounds.another() {
        let mut front = FrontEnd::connect(socket)?;
        if seed % 2 == 0 && front.negotiate().is_err() {
            continue;
        }
        for _ in 0..8 {
            seed = random(seed);
            let [op, len, ..] = seed.to_le_bytes();
            let body = words(&[seed, random(seed), 0, 1, 2, 3, 4, 5]);
            let body = &body[..usize::from(len % 8) * 8];
            if front.say(u32::from(op % 44), body, &[]).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// 32 descriptors with each message, which then has to be refused.
fn message_descriptors(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (socket, fd) = (stage.plain_guest()?, event()?);
    Bounds::ready();
    while bounds.another() {
        let front = FrontEnd::connect(socket)?;
        front.say(request::SET_VRING_CALL, &words(&[0]), &[fd.as_fd(); 32])?;
    }
    Ok(())
}

/// One loop for each of `number` front ends, over messages that `talk` sends.
fn loops(
    stage: &Stage,
    bounds: &mut Bounds,
    talk: fn(&mut FrontEnd, &File) -> Result<()>,
) -> Result<()> {
    let (file, _memory) = memory(MEMORY)?;
    let mut fronts = Vec::new();
    for index in 0..stage.number_or(1) as usize {
        fronts.push(set_up(stage.guest(index)?, &file, MEMORY)?);
    }
    Bounds::ready();
    while bounds.another() {
        for (front, _events) in &mut fronts {
            talk(front, &file)?;
        }
    }
    Ok(())
}

/// SET_VRING_ENABLE off and on.
fn rings_enable(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    loops(stage, bounds, |front, _| {
        for index in 0..3 {
            front.say(request::SET_VRING_ENABLE, &pair(index, 0), &[])?;
            front.say(request::SET_VRING_ENABLE, &pair(index, 1), &[])?;
        }
        Ok(())
    })
}

/// GET_VRING_BASE, which stops a ring, and all that starts it again.
fn rings_stop_start(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    loops(stage, bounds, |front, _| {
        let (kick, call) = (event()?, event()?);
        front.ask(request::GET_VRING_BASE, &pair(1, 0))?;
        front.start(1, 256, kick.as_fd(), call.as_fd())
    })
}

/// SET_FEATURES while rings run: they stop and start, or the front end is sent away and comes again.
fn features_again(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (file, _memory) = memory(MEMORY)?;
    let socket = stage.plain_guest()?;
    Bounds::ready();
    while bounds.another() {
        let (front, _events) = set_up(socket, &file, MEMORY)?;
        for _ in 0..16 {
            if front.say(request::SET_FEATURES, &words(&[FEATURES]), &[]).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// A new call with every message.
fn call_again(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    loops(stage, bounds, |front, _| {
        let call = event()?;
        front.say(request::SET_VRING_CALL, &words(&[1]), &[call.as_fd()])
    })
}

/// The same memory table again and again: mapped anew, all rings stopped and started.
fn memory_again(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    loops(stage, bounds, |front, file| {
        front.give_memory(file.as_fd(), MEMORY)?;
        front.ask(request::GET_FEATURES, &[])?;
        Ok(())
    })
}

/// A file of `len` bytes that are nowhere.
fn sparse(len: u64) -> Result<File> {
    let file = memfd_create("vsock-hostile", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(file.into())
}

/// One region of 64 TiB.
fn memory_huge(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    const LEN: u64 = 64 << 40;
    let file = sparse(LEN)?;
    let mut front = FrontEnd::connect(stage.plain_guest()?)?;
    front.negotiate()?;
    front.give_memory(file.as_fd(), LEN)?;
    // Refused is as well.
    let _ = front.ask(request::GET_FEATURES, &[]);
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// ADD_MEM_REG that was not negotiated, for all of the address space in regions of 2 TiB.
fn memory_regions(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    const LEN: u64 = 2 << 40;
    let file = sparse(LEN)?;
    let mut front = FrontEnd::connect(stage.plain_guest()?)?;
    front.negotiate()?;
    for index in 0..64 {
        let at = BASE + index * LEN;
        let body = words(&[0, at, LEN, at, 0]);
        if front.say(request::ADD_MEM_REG, &body, &[file.as_fd()]).is_err() {
            break;
        }
    }
    let _ = front.ask(request::GET_FEATURES, &[]);
    Bounds::ready();
    bounds.hold();
    Ok(())
}

/// Memory that shrinks to nothing while its rings run; then the next attachment.
fn memory_shrinks(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let socket: &Path = stage.plain_guest()?;
    Bounds::ready();
    while bounds.another() {
        let file = sparse(MEMORY)?;
        let (mut front, events) = set_up(socket, &file, MEMORY)?;
        ftruncate(&file, 0)?;
        for kick in &events {
            rustix::io::write(kick, &1u64.to_ne_bytes())?;
        }
        // The device hangs up.
        let _ = front.answer();
    }
    Ok(())
}

/// A channel for the device's own requests that is full.
fn channel_full(stage: &Stage, bounds: &mut Bounds) -> Result<()> {
    let (file, _memory) = memory(MEMORY)?;
    let (front, _events) = set_up(stage.plain_guest()?, &file, MEMORY)?;
    Bounds::ready();
    while bounds.another() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        while (&theirs).write(&[0; 4096]).is_ok_and(|n| n == 4096) {
            theirs.set_nonblocking(true)?;
        }
        // Not negotiated here: the device may hang up for it.
        if front.say(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]).is_err() {
            bounds.hold();
        }
    }
    Ok(())
}
