//! Makes the load that `bench/run.py` measures.
//!
//! One binary, one process per role, so that a figure is made of the same processes whatever carries the bytes:
//!
//! | role | what it is |
//! | --- | --- |
//! | `guest` | one or many userspace guests of any vhost-user-vsock device: our driver and protocol core, no sockets |
//! | `serve` | what a guest serves, over plain Unix or TCP sockets: the other end of the limits |
//! | `host` | a host program: opens flows to either, writes, reads, measures |
//! | `device` | our own device without the daemon around it |
//! | `memcpy`, `eventfd` | limits of the machine, measured once and printed |
//!
//! `guest`, `serve` and `host` take orders as lines of words on standard input and answer each with one line of JSON;
//! they end when their standard input does. Nothing is measured that was not ordered, so that the caller can measure
//! alternately.

mod device;
mod guest;
mod host;
mod limits;
mod pattern;
mod serve;
mod service;

use std::process::ExitCode;

use vsock_load::{Result, clock, joining, orders, programs};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (role, rest) = match arguments.split_first() {
        Some((role, rest)) => (role.as_str(), rest),
        None => ("", &[][..]),
    };
    let done = match role {
        "guest" => guest::run(rest),
        "serve" => serve::run(rest),
        "host" => host::run(rest),
        "device" => device::run(rest),
        "memcpy" => limits::memcpy(rest),
        "eventfd" => limits::eventfd(rest),
        "eventfd-answer" => limits::answer_forever(),
        _ => Err("roles: guest, serve, host, device, memcpy, eventfd".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock-load {role}: {error}");
            ExitCode::FAILURE
        }
    }
}
