//! Connections that have not said anything yet.
//!
//! They are kept, up to a few, until they speak or leave. When there are too many the oldest goes: a front end speaks
//! as soon as it has connected, so that the oldest silent one is the least likely to be one.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use vsock_core::saved::{Unfit, check};

use crate::sys::PeerCredentials;

/// Silent connections kept.
const MOST: usize = 16;

/// Connections taken in one go, so that a flood of them leaves time for the attachment.
const BATCH: usize = 64;

/// A connection that has not spoken.
pub(super) struct Probe {
    pub(super) socket: UnixStream,
    pub(super) peer: PeerCredentials,
}

/// What a look at a connection shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Silent,
    Spoke,
    Left,
}

impl Probe {
    /// Looks without taking anything off the socket.
    fn sign(&self) -> Sign {
        let mut byte = [0; 1];
        match recv(&self.socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Sign::Left,
            Ok(_) => Sign::Spoke,
            Err(Errno::AGAIN | Errno::INTR) => Sign::Silent,
            Err(_) => Sign::Left,
        }
    }
}

/// The silent connections of one guest's socket, oldest first.
#[derive(Default)]
pub(super) struct Probes {
    waiting: VecDeque<Probe>,
}

impl Probes {
    /// Takes what connections there are.
    ///
    /// # Errors
    /// None can be taken now, for want of fds or memory; the listener stays readable all the while.
    pub(super) fn accept(&mut self, listener: &UnixListener) -> io::Result<()> {
        for _ in 0..BATCH {
            match listener.accept() {
                Ok((socket, _)) => self.add(socket),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn add(&mut self, socket: UnixStream) {
        let Ok(peer) = PeerCredentials::of(socket.as_fd()) else {
            return;
        };
        if self.waiting.len() >= MOST {
            self.waiting.retain(|probe| probe.sign() != Sign::Left);
        }
        if self.waiting.len() >= MOST {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Probe { socket, peer });
    }

    /// Those that have spoken, in the order they came; those that left are forgotten.
    pub(super) fn take_speaking(&mut self) -> Vec<Probe> {
        let mut speaking = Vec::new();
        for probe in std::mem::take(&mut self.waiting) {
            match probe.sign() {
                Sign::Silent => self.waiting.push_back(probe),
                Sign::Spoke => speaking.push(probe),
                Sign::Left => {}
            }
        }
        speaking
    }

    /// Connections that a predecessor has taken.
    pub(super) fn restore(waiting: VecDeque<Probe>) -> Result<Self, Unfit> {
        check(waiting.len() <= MOST, Unfit::TooMany)?;
        Ok(Self { waiting })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Probe> {
        self.waiting.iter()
    }
}
