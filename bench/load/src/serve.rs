//! What a guest serves, over Unix and TCP sockets: the other end of the limits, one thread per connection.
//!
//! `vsock-load serve [--check] PATH` listens at `PATH_PORT` for every port of [`service`], and on TCP ports of the
//! loopback interface, which its first answer names. Orders as those of a guest: `source`, `counts`, `reset`.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::spawn;

use crate::Result;
use crate::guest::Tally;
use crate::host::counter::Counter;
use crate::host::stream::{Stream, write_for};
use crate::orders::{Lines, Order, answer, answer_error};
use crate::service::{self, GROUPS, SERVICES, Service};

/// Reads at most this much at a time, as much as one operation of the largest size writes.
const READ: usize = 64 * 1024;

/// Connections that can be asked for what came in, or told to send.
#[derive(Clone, Default)]
struct Served {
    counters: Arc<Mutex<HashMap<u32, Vec<Arc<Counter>>>>>,
    sources: Arc<Mutex<HashMap<u32, Vec<Stream>>>>,
    checks: bool,
}

/// Runs the role.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let checks = arguments.iter().any(|word| word == "--check");
    let path = arguments.iter().find(|word| *word != "--check").ok_or("serve [--check] PATH")?;
    let served = Served { checks, ..Served::default() };
    let mut ports = Vec::new();
    for group in GROUPS {
        for (digit, _) in SERVICES {
            let port = group * 10 + digit;
            let unix = UnixListener::bind(format!("{path}_{port}"))?;
            let tcp = TcpListener::bind("127.0.0.1:0")?;
            ports.push(format!("\"{port}\": {}", tcp.local_addr()?.port()));
            let (mine, other) = (served.clone(), served.clone());
            spawn(move || {
                while let Ok((stream, _)) = unix.accept() {
                    mine.welcome(port, stream.into());
                }
            });
            spawn(move || {
                while let Ok((stream, _)) = tcp.accept() {
                    // As every program does that wants its small messages to leave.
                    let _ = stream.set_nodelay(true);
                    other.welcome(port, stream.into());
                }
            });
        }
    }
    answer(&format!("\"ready\": true, \"tcp\": {{{}}}", ports.join(", ")));
    let mut lines = Lines::default();
    while lines.read()? {
        for order in lines.by_ref() {
            served.obey(&order).unwrap_or_else(|error| answer_error(&error));
        }
    }
    Ok(())
}

impl Served {
    fn obey(&self, order: &Order) -> Result<()> {
        let group: u32 = order.number(1)?;
        match order.verb() {
            "counts" => {
                let tallies = lock(&self.counters);
                let tallies =
                    tallies.get(&group).into_iter().flatten().map(|counter| counter.tally());
                answer(&Tally::json([tallies.collect()]));
            }
            "reset" => {
                lock(&self.counters)
                    .get(&group)
                    .into_iter()
                    .flatten()
                    .for_each(|counter| counter.reset());
                answer("\"reset\": true");
            }
            "source" => {
                let mut sources = lock(&self.sources);
                let streams = sources.get_mut(&group).ok_or("source: there is no such flow")?;
                answer(&write_for(streams, order.number(2)?, order.number(3)?, self.checks)?);
            }
            verb => return Err(format!("no such order: {verb}").into()),
        }
        Ok(())
    }

    fn welcome(&self, port: u32, stream: Stream) {
        let Some((group, service)) = service::of_port(port) else { return };
        match service {
            Service::Discard | Service::Wide => {
                let counter = Arc::new(Counter::new(self.checks));
                lock(&self.counters).entry(group).or_default().push(Arc::clone(&counter));
                spawn(move || counter.read(stream, READ));
            }
            Service::Source => lock(&self.sources).entry(group).or_default().push(stream),
            Service::Echo => {
                spawn(move || echo(stream));
            }
            // In this thread, as a guest does it: the accept loop is the server.
            Service::Greet => greet(stream),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn echo(mut stream: Stream) {
    let mut bytes = vec![0; READ];
    while let Ok(n) = stream.read(&mut bytes) {
        if n == 0 || stream.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
}

fn greet(mut stream: Stream) {
    // The other side ends it; both failures mean that it has.
    let _ = stream.write_all(b"!");
    let _ = stream.read(&mut [0]);
}
