//! Vectors of `getsockopt` and `setsockopt`, made of the crate's table of options: a new option has vectors without a line here.

use std::collections::BTreeMap;

use vsock_client::options::{Get, Set, SetLowWater, SocketOption, TABLE, Tell, Value};
use vsock_client::{Errno, Options, Socket};

use crate::{hex, table};

/// Every option of the table, got with little room and with enough, and set to values of every kind: what that does to a
/// socket in every state, and what `getsockopt` returns afterwards.
pub(crate) fn known() -> Vec<String> {
    let mut rows = Vec::new();
    for option in TABLE {
        for room in [3, 7, 15, ENOUGH] {
            rows.push(option_call(option, "room", &room.to_string(), |socket| {
                let (got, next) = got(option, socket, Options::DEFAULT, room);
                (String::new(), got, next)
            }));
        }
        for value in values(option) {
            let words = format!("\"{}\"", hex(&value));
            rows.push(option_call(option, "value", &words, |socket| {
                let (does, next, options) = set(option, socket, &value);
                let (got, next) = got(option, next, options, ENOUGH);
                (does, got, next)
            }));
        }
    }
    rows
}

/// More room than any option needs.
const ENOUGH: usize = 64;
/// Microseconds of a tick for options whose vectors do not depend on it.
const TICK: u64 = 4000;

/// A call on each socket: what it does, what `getsockopt` returns, and the words of the sockets that it changes. Sockets for
/// which the first two are the same stand together.
fn option_call(
    option: &SocketOption,
    argument: &str,
    value: &str,
    call: impl Fn(Socket) -> (String, String, Socket),
) -> String {
    let mut results: BTreeMap<(String, String), (Vec<String>, Vec<String>)> = BTreeMap::new();
    for (name, socket) in table::sockets() {
        let (does, got, next) = call(socket);
        let (sockets, changed) = results.entry((does, got)).or_default();
        sockets.push(format!("\"{name}\""));
        if next != socket {
            changed.push(format!(r#""{name}": "{:016x}""#, next.pack()));
        }
    }
    let results: Vec<String> = results
        .into_iter()
        .map(|((does, got), (sockets, changed))| {
            let (sockets, changed) = (sockets.join(", "), changed.join(", "));
            format!(r#"["{does}", "{got}", [{sockets}], {{{changed}}}]"#)
        })
        .collect();
    let (SocketOption { level, number, name, .. }, results) = (option, results.join(", "));
    format!(
        r#"{{"option": "{name}", "level": {level}, "number": {number}, "{argument}": {value}, "results": [{results}]}}"#
    )
}

/// Values that the option can have and others, of which none depends on the length of a tick.
fn values(option: &SocketOption) -> Vec<Vec<u8>> {
    let good: Vec<Vec<u8>> = match option.value_len() {
        0 | 4 => [0, 1, 2, -1, 262_145].map(|int: i32| int.to_ne_bytes().into()).into(),
        8 => [0, 4096, 1 << 40, u64::MAX].map(|number| number.to_ne_bytes().into()).into(),
        16 => [[5, 0], [0, 0], [-1, 0], [0, 1_000_000], [i64::MAX, 0]]
            .map(|timeval: [i64; 2]| timeval.map(i64::to_ne_bytes).concat())
            .into(),
        other => panic!("{option:?} has a value of {other} bytes, of which no vectors are made"),
    };
    let first = &good[0];
    let (short, long) = (first[..first.len() - 1].to_vec(), [first.as_slice(), &[255]].concat());
    [good, vec![short, long]].concat()
}

/// What `setsockopt` does, with the socket and its options afterwards.
fn set(option: &SocketOption, socket: Socket, value: &[u8]) -> (String, Socket, Options) {
    let (does, next, options) = match option.set(socket, value, || Options::DEFAULT, TICK) {
        Err(error) => return (table::name(error), socket, Options::DEFAULT),
        Ok(Set::Descriptor) => ("descriptor", socket, Options::DEFAULT),
        Ok(Set::Socket(next)) => ("", next, Options::DEFAULT),
        Ok(Set::Options(set)) => {
            let told = match set.tell {
                Tell::Nothing => "",
                Tell::Listener => "LISTEN unanswered",
                Tell::Connection(_) => "FLOW",
            };
            (told, socket.with_options(&set.options), set.options)
        }
        Ok(Set::LowWater(SetLowWater::Flag(next))) => ("", next, Options::DEFAULT),
        Ok(Set::LowWater(SetLowWater::Descriptor(next))) => ("descriptor", next, Options::DEFAULT),
        Ok(Set::HeldBuffer(_)) => ("held buffer", socket, Options::DEFAULT),
    };
    (does.into(), next, options)
}

/// What `getsockopt` returns, with the socket afterwards.
fn got(option: &SocketOption, socket: Socket, options: Options, room: usize) -> (String, Socket) {
    let bytes = |value: Value| match value.cut_to(room) {
        Err(error) => table::name(error),
        Ok((bytes, len)) => hex(&bytes[..len]),
    };
    match option.get(socket, || options, TICK) {
        Err(error) => (table::name(error), socket),
        Ok(Get::Descriptor) => ("descriptor".into(), socket),
        Ok(Get::Value(value)) => (bytes(value), socket),
        Ok(Get::Error(Errno(number), next)) => (bytes(Value::Int(number)), next),
        Ok(Get::HeldBuffer) => ("held buffer".into(), socket),
    }
}

/// Options that AF_VSOCK does not have: those of its level, one of the level of control messages, and one of TCP.
pub(crate) fn unknown() -> Vec<String> {
    let numbers = (-1..16).map(|number| (40, number)).chain([(287, 0), (6, 1)]);
    let unknown = numbers.filter(|(level, number)| SocketOption::find(*level, *number).is_err());
    unknown.map(|(level, number)| format!("[{level}, {number}]")).collect()
}
