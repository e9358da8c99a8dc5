//! A host program: opens flows, writes and reads, measures round trips and connections.
//!
//! `vsock-load host [--check]`. Flows are opened in groups with a name:
//!
//! | order | answer |
//! | --- | --- |
//! | `open NAME COUNT ADDRESS` | opens flows (see [`Stream::connect`]), more of them if there are some |
//! | `write NAME SIZE SECONDS` | bytes and seconds |
//! | `read NAME SIZE` | reads from now on, in the background |
//! | `counts NAME`, `reset NAME` | what was read since the last reset |
//! | `ping NAME SIZE SECONDS` | round trips on the first flow |
//! | `churn SECONDS ADDRESS` | connects, takes one byte, closes, again and again |
//! | `close NAME` | ends the flows |

pub(crate) mod counter;
pub(crate) mod stream;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use crate::Result;
use crate::clock::{self, Durations};
use crate::guest::Tally;
use crate::orders::{Lines, Order, answer, answer_error};
use counter::Counter;
use rustix::event::PollFlags;
use stream::{Stream, ready, write_for};

/// Flows that are ordered together.
#[derive(Default)]
struct Group {
    streams: Vec<Stream>,
    counters: Vec<Arc<Counter>>,
}

#[derive(Default)]
struct Host {
    groups: HashMap<String, Group>,
    checks: bool,
}

/// Runs the role.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let checks = arguments.iter().any(|word| word == "--check");
    let mut host = Host { checks, ..Host::default() };
    answer("\"ready\": true");
    let mut lines = Lines::default();
    while lines.read()? {
        for order in lines.by_ref() {
            host.obey(&order).unwrap_or_else(|error| answer_error(&error));
        }
    }
    Ok(())
}

impl Host {
    fn group(&mut self, order: &Order) -> Result<&mut Group> {
        let name = order.word(1)?;
        self.groups.get_mut(name).ok_or_else(|| format!("no group {name}").into())
    }

    fn obey(&mut self, order: &Order) -> Result<()> {
        let checks = self.checks;
        match order.verb() {
            "open" => {
                let streams = open(order)?;
                let group = self.groups.entry(order.word(1)?.to_owned()).or_default();
                group.streams.extend(streams);
                answer("\"open\": true");
            }
            "write" => {
                let (size, seconds) = (order.number(2)?, order.number(3)?);
                answer(&write_for(&mut self.group(order)?.streams, size, seconds, checks)?);
            }
            "read" => {
                let size = order.number(2)?;
                self.group(order)?.read(size, checks)?;
                answer("\"reading\": true");
            }
            "counts" => {
                let counters = self.group(order)?.counters.iter();
                answer(&Tally::json([counters.map(|counter| counter.tally()).collect()]));
            }
            "reset" => {
                self.group(order)?.counters.iter().for_each(|counter| counter.reset());
                answer("\"reset\": true");
            }
            "ping" => {
                let (size, seconds) = (order.number(2)?, order.number(3)?);
                answer(&ping(self.group(order)?, size, seconds)?);
            }
            "churn" => answer(&churn(order)?),
            "close" => {
                self.group(order)?.streams.iter().for_each(Stream::shut_down);
                self.groups.remove(order.word(1)?);
                answer("\"closed\": true");
            }
            verb => return Err(format!("no such order: {verb}").into()),
        }
        Ok(())
    }
}

impl Group {
    /// Reads in the background: one thread for all, as one program would.
    fn read(&mut self, size: usize, checks: bool) -> Result<()> {
        let counters = self.streams.iter().map(|_| Arc::new(Counter::new(checks)));
        self.counters = counters.collect();
        let mut streams =
            self.streams.iter().map(Stream::try_clone).collect::<std::io::Result<Vec<_>>>()?;
        let counters = self.counters.clone();
        std::thread::spawn(move || match (streams.len(), streams.pop()) {
            (1, Some(stream)) => counters[0].read(stream, size),
            (_, Some(last)) => {
                streams.push(last);
                read_by_turns(&mut streams, &counters, size);
            }
            (_, None) => {}
        });
        Ok(())
    }
}

/// One read of each stream that has something, until one ends; they are closed together.
fn read_by_turns(streams: &mut [Stream], counters: &[Arc<Counter>], size: usize) {
    let mut bytes = vec![0; size];
    let mut places = vec![0; streams.len()];
    while let Ok(readable) = ready(streams, PollFlags::IN) {
        for index in (0..streams.len()).filter(|index| readable[*index]) {
            match streams[index].read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(n) => counters[index].note(&bytes[..n], &mut places[index]),
            }
        }
    }
}

fn open(order: &Order) -> Result<Vec<Stream>> {
    let address = order.rest(3);
    let open = |_| {
        let (stream, _) = Stream::connect(&address)?;
        stream.bound_writes()?;
        Ok(stream)
    };
    (0..order.number(2)?).map(open).collect()
}

fn ping(group: &mut Group, size: usize, seconds: f64) -> Result<String> {
    let stream = group.streams.first_mut().ok_or("an empty group")?;
    stream.bound_reads()?;
    let mut bytes = vec![0; size];
    let mut times = Durations::default();
    let start = clock::now();
    let end = start + clock::nanoseconds(seconds);
    let mut before = start;
    while before < end {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        let after = clock::now();
        times.note(after - before);
        before = after;
    }
    Ok(times.json(before - start))
}

fn churn(order: &Order) -> Result<String> {
    let address = order.rest(2);
    let mut times = Durations::default();
    let start = clock::now();
    let end = start + clock::nanoseconds(order.number(1)?);
    let mut before = start;
    while before < end {
        let (mut stream, early) = Stream::connect(&address)?;
        if early == 0 {
            stream.bound_reads()?;
            stream.read_exact(&mut [0])?;
        }
        drop(stream);
        let after = clock::now();
        times.note(after - before);
        before = after;
    }
    Ok(times.json(before - start))
}
