//! Where an attack is played, and what an attack is.

use std::path::{Path, PathBuf};

use vsock_load::Result;
use vsock_load::programs::{Kind, accept, listen};

use crate::bounds::Bounds;

/// The host's CID.
pub(crate) const HOST: u32 = 2;

/// A port of the host that the attacker's own programs listen at.
pub(crate) const PORT: u32 = 7000;

/// One attack.
pub(crate) struct Attack {
    /// What `cases.py` calls it.
    pub(crate) name: &'static str,
    /// Plays it.
    pub(crate) play: fn(&Stage, &mut Bounds) -> Result<()>,
}

/// The switch under attack and the roles in it.
pub(crate) struct Stage {
    /// The switch's runtime directory.
    pub(crate) run: PathBuf,
    /// The CID of the guest that is measured.
    pub(crate) neighbour: u32,
    /// The CID of a sound guest (`vsock-load guest`) of the attacker's: what programs connect to.
    pub(crate) accomplice: u32,
    /// Sockets of the guests that the attacker has; the first two have hybrid sockets.
    guests: Vec<PathBuf>,
    /// How many of whatever the attack has many of.
    number: Option<u32>,
}

/// What a port of the accomplice does with a connection: the last digit of the port, as in `vsock-load guest`.
#[derive(Clone, Copy)]
pub(crate) enum Service {
    Discard = 9001,
    Echo = 9003,
    Greet = 9004,
}

impl Stage {
    /// The attack's name, and the stage.
    pub(crate) fn parse(arguments: &[String]) -> Result<(&str, Self)> {
        let [name, run, neighbour, accomplice, guests @ ..] = arguments else {
            return Err("NAME[:NUMBER] RUN_DIR NEIGHBOUR ACCOMPLICE SOCKET...".into());
        };
        let (name, number) = match name.split_once(':') {
            Some((name, number)) => (name, Some(number.parse()?)),
            None => (name.as_str(), None),
        };
        let stage = Self {
            run: run.into(),
            neighbour: neighbour.parse()?,
            accomplice: accomplice.parse()?,
            guests: guests.iter().map(PathBuf::from).collect(),
            number,
        };
        Ok((name, stage))
    }

    /// The socket of the attacker's guest `index`.
    pub(crate) fn guest(&self, index: usize) -> Result<&Path> {
        let guest = self.guests.get(index).map(PathBuf::as_path);
        guest.ok_or_else(|| format!("the attack needs {} guests", index + 1).into())
    }

    /// The socket of the first guest without a hybrid socket.
    pub(crate) fn plain_guest(&self) -> Result<&Path> {
        self.guest(2)
    }

    /// A program that accepts at [`PORT`] and closes, in a thread.
    pub(crate) fn accept_and_close(&self) -> Result<()> {
        let mut listener = listen(&self.run, Kind::Stream, PORT, 1024)?;
        // Ends with the switch, or after a time without connections.
        std::thread::spawn(move || while accept(&mut listener).is_ok() {});
        Ok(())
    }

    /// How many, if the case does not say.
    pub(crate) fn number_or(&self, usual: u32) -> u32 {
        self.number.unwrap_or(usual)
    }
}
