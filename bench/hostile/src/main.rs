//! Plays one attack on a running switch, for `bench.hostile`.
//!
//! `vsock-hostile NAME[:NUMBER] RUN_DIR NEIGHBOUR ACCOMPLICE SOCKET...` says `{"ready": true}` when the attack goes on,
//! and ends with the count of what it did when it is told to on its standard input. `vsock-hostile list` names the attacks.
//!
//! | file | who attacks |
//! | --- | --- |
//! | `rings` | a guest that writes its virtqueues itself |
//! | `packets`, `flows`, `between` | a guest with a sound driver: packets of no flow, of its flows with the host, with guests |
//! | `front_ends`, `signals` | a VMM's front end: messages; what it hands over as kick and call |
//! | `programs`, `passing`, `datagrams`, `api` | a host program |
//!
//! Each attack is a function of [`Stage`] (where it is played) and [`Bounds`] (how long), and a line of its file's
//! `ATTACKS`. None touches anything but Unix sockets and memory of its own, and one TCP connection to itself.

mod api;
mod between;
mod bounds;
mod datagrams;
mod flows;
mod front_end;
mod front_ends;
mod guest;
mod packets;
mod passing;
mod programs;
mod ring;
mod rings;
mod signals;
mod stage;
mod stuck;

use std::process::ExitCode;

use vsock_load::{Result, orders};

use bounds::Bounds;
use stage::{Attack, Stage};

/// The attacks of all files.
const ATTACKS: [&[Attack]; 10] = [
    rings::ATTACKS,
    packets::ATTACKS,
    flows::ATTACKS,
    between::ATTACKS,
    front_ends::ATTACKS,
    signals::ATTACKS,
    programs::ATTACKS,
    passing::ATTACKS,
    datagrams::ATTACKS,
    api::ATTACKS,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            orders::answer_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    if arguments.first().is_some_and(|word| word == "list") {
        for attack in ATTACKS.into_iter().flatten() {
            println!("{}", attack.name);
        }
        return Ok(());
    }
    let (name, stage) = Stage::parse(arguments)?;
    let attack = ATTACKS.into_iter().flatten().find(|attack| attack.name == name);
    let attack = attack.ok_or_else(|| format!("there is no attack {name:?}"))?;
    let mut bounds = Bounds::new();
    (attack.play)(&stage, &mut bounds)?;
    orders::answer(&format!("\"count\": {}", bounds.count()));
    Ok(())
}
