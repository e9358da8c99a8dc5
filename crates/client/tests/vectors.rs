//! `vectors.json`: what this crate encodes and decides, for the tests of other implementations (`tests/test_client_vectors.py`).
//!
//! The file is kept in the repository and compared here. `UPDATE=1 cargo test -p vsock-client --test vectors` writes it
//! anew after a change that is meant.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod option_calls;
mod table;

use std::fmt::Write;
use std::path::Path;

use vsock_client::options::Setting;
use vsock_client::wire::{MESSAGE_LEN, Reply, Report, Request, held_message, op};
use vsock_client::{ANY, Address, Errno, Options, Socket, State, name};

const PEER: Address = Address { cid: 3, port: 5000 };
const COOKIE: u64 = 0x0123_4567_89ab_cdef;
/// Microseconds of a tick in kernels with 100, 250, 300 and 1000 ticks a second.
const TICKS: [u64; 4] = [10_000, 4000, 3333, 1000];

fn requests() -> Vec<String> {
    let requests = [
        Request::Bind(Address { cid: ANY, port: 80 }),
        connect(Report::Reply, 0),
        connect(Report::Held { prompt: false }, 2016),
        connect(Report::Held { prompt: true }, 2016),
        connect_to_a_name(),
        Request::Listen { backlog: 128, buffer: 262_144, extra: 32 },
        Request::Accepted,
        Request::LocalCid,
        Request::Resolve { len: 5 },
        Request::Flow { cookie: COOKIE, buffer: 0, receive_shut: false },
        Request::Flow { cookie: COOKIE, buffer: 4096, receive_shut: true },
        Request::Send { to: PEER, number: 0x1_0000_0002, len: 69_608 },
    ];
    requests.iter().map(request).collect()
}

fn connect(report: Report, extra: u32) -> Request {
    let (timeout_ms, buffer) = (2000, 65536);
    Request::Connect { to: PEER, is_named: false, timeout_ms, buffer, report, extra }
}

fn connect_to_a_name() -> Request {
    let to = Address { cid: 0, port: 5000 };
    let report = Report::Held { prompt: true };
    Request::Connect { to, is_named: true, timeout_ms: 2000, buffer: 0, report, extra: 2016 }
}

/// What stands behind a held CONNECT, without the padding.
fn held() -> Vec<String> {
    let row = |name: Option<&str>| {
        let message = held_message(&connect_to_a_name(), COOKIE, name.map(str::as_bytes));
        let behind = &message[MESSAGE_LEN..];
        let padding = behind.iter().rev().take_while(|byte| **byte == 0).count();
        let (told, bytes) = (
            name.map_or("null".into(), |name| format!("\"{name}\"")),
            &behind[..behind.len() - padding],
        );
        format!(
            r#"{{"cookie": {COOKIE}, "name": {told}, "bytes": "{}", "padding": {padding}}}"#,
            hex(bytes)
        )
    };
    [None, Some("alpha"), Some("a-name-of-more-than-twenty-bytes")].map(row).into()
}

/// A request with its fields as the specification's table has them.
fn request(request: &Request) -> String {
    let (flags, cid, port, value, buffer) = match *request {
        Request::Bind(to) => (0, to.cid, to.port, 0, 0),
        Request::Connect { to, is_named, timeout_ms, buffer, report, .. } => {
            let flags = match report {
                Report::Reply => 0,
                Report::Held { prompt } => 1 + 2 * u32::from(prompt),
            };
            (flags + 4 * u32::from(is_named), to.cid, to.port, timeout_ms, buffer)
        }
        Request::Listen { backlog, buffer, .. } => (0, 0, 0, backlog, buffer),
        Request::Accepted | Request::LocalCid | Request::Resolve { .. } => (0, 0, 0, 0, 0),
        Request::Flow { cookie, buffer, receive_shut } => {
            let [lower, upper] = [cookie & 0xffff_ffff, cookie >> 32];
            let [lower, upper] = [lower, upper].map(|half| u32::try_from(half).unwrap());
            (0, lower, upper, u32::from(receive_shut), buffer)
        }
        Request::Send { to, number, .. } => (0, to.cid, to.port, 0, number),
    };
    let (op, extra, bytes) = (request.op(), request.extra(), hex(&request.encode()));
    format!(
        r#"{{"op": {op}, "cid": {cid}, "port": {port}, "value": {value}, "buffer": {buffer}, "extra": {extra}, "flags": {flags}, "bytes": "{bytes}"}}"#
    )
}

fn replies() -> Vec<String> {
    let replies = [
        Reply::ok(op::BIND, Address { cid: ANY, port: 1024 }),
        Reply::not_connected(Errno::CONNRESET, Address { cid: ANY, port: 1025 }, COOKIE),
        Reply { theirs: PEER, peer_buffer: 262_144, flow: 7, ..Reply::ok(op::ACCEPT, PEER) },
        Reply::error(op::FLOW, Errno(108)),
    ];
    replies
        .iter()
        .map(|reply| {
            let Reply { op, errno, ours, theirs, peer_buffer, flow } = *reply;
            let bytes = hex(&reply.encode());
            format!(
                r#"{{"op": {op}, "errno": {errno}, "our_cid": {}, "our_port": {}, "their_cid": {}, "their_port": {}, "peer_buf_alloc": {peer_buffer}, "flow": {flow}, "bytes": "{bytes}"}}"#,
                ours.cid, ours.port, theirs.cid, theirs.port
            )
        })
        .collect()
}

fn sockets() -> Vec<String> {
    table::sockets()
        .iter()
        .map(|(name, socket)| {
            let flags: Vec<String> = table::FLAGS
                .iter()
                .filter(|(_, flag)| socket.flags.has(*flag))
                .map(|(name, _)| format!(r#""{name}""#))
                .collect();
            let fits = (0..64).rev().find(|power| socket.has_stream() && socket.is_known_to_fit(1 << power));
            format!(
                r#"{{"name": "{name}", "word": "{:016x}", "state": "{}", "flags": [{}], "error": {}, "number": {}, "fits": {}}}"#,
                socket.pack(),
                table::state(socket.state),
                flags.join(", "),
                socket.error().0,
                socket.peer_cid(),
                fits.map_or("0".into(), |power| (1u64 << power).to_string()),
            )
        })
        .collect()
}

fn states() -> Vec<String> {
    let number = |state| Socket::STREAM.in_state(state).pack() >> 51 & 7;
    State::ALL
        .iter()
        .map(|state| format!(r#""{}": {}"#, table::state(*state), number(*state)))
        .collect()
}

fn flags() -> Vec<String> {
    let number = |flag| Socket::STREAM.with(flag).pack() >> 40 & 0x7ff;
    table::FLAGS.iter().map(|(name, flag)| format!(r#""{name}": {}"#, number(*flag))).collect()
}

fn names() -> Vec<String> {
    [(ANY, 0x1234_abcd), (2, 80)]
        .map(|(cid, port)| {
            let name = hex(&name::encode(COOKIE, Address { cid, port }));
            format!(r#"{{"unique": {COOKIE}, "cid": {cid}, "port": {port}, "name": "{name}"}}"#)
        })
        .into()
}

/// Options after one setting of the options before, with what is kept and sent of them.
fn options() -> Vec<String> {
    let small = Options { size: 100, min: 3, max: 200, connect_ticks: 0 };
    let large = Options { size: 1 << 40, min: 1 << 33, max: u64::MAX, connect_ticks: 250 };
    let settings = [
        Setting::Size(0),
        Setting::Size(150),
        Setting::Size(1 << 40),
        Setting::Min(150),
        Setting::Min(1 << 33),
        Setting::Max(1),
        Setting::Max(u64::MAX),
        Setting::ConnectTimeout([0, 0]),
        Setting::ConnectTimeout([2, 0]),
        Setting::ConnectTimeout([1, 1]),
        Setting::ConnectTimeout([0, 999_999]),
        Setting::ConnectTimeout([5, -1]),
        Setting::ConnectTimeout([100_000, 0]),
        Setting::ConnectTimeout([-1, 0]),
        Setting::ConnectTimeout([0, 1_000_000]),
        Setting::ConnectTimeout([i64::MAX, 0]),
    ];
    let mut rows = Vec::new();
    for tick in TICKS {
        for before in [Options::DEFAULT, small, large] {
            for setting in settings {
                rows.push(option(before, setting, tick));
            }
        }
    }
    rows
}

fn option(before: Options, setting: Setting, tick: u64) -> String {
    let (number, value) = match setting {
        Setting::Size(size) => (0, size.to_le_bytes().to_vec()),
        Setting::Min(min) => (1, min.to_le_bytes().to_vec()),
        Setting::Max(max) => (2, max.to_le_bytes().to_vec()),
        Setting::ConnectTimeout(timeval) => (6, timeval.map(i64::to_le_bytes).concat()),
    };
    let mut row = format!(
        r#"{{"hz": {}, "before": "{}", "name": {number}, "value": "{}", "#,
        1_000_000 / tick,
        hex(&before.to_inherited(tick)),
        hex(&value)
    );
    match before.set(setting, tick) {
        Err(error) => write!(row, r#""errno": "{}"}}"#, table::name(error)).unwrap(),
        Ok(after) => {
            let [(size, min), (max, ticks)] = after.to_times();
            let [seconds, microseconds] = after.connect_timeval(tick);
            write!(
                row,
                r#""inherited": "{}", "times": [{size}, {min}, {max}, {ticks}], "is_kept": {}, "timeval": [{seconds}, {microseconds}], "connect_ms": {}, "connect_buffer": {}, "listen_buffer": {}}}"#,
                hex(&after.to_inherited(tick)),
                after != Options::DEFAULT,
                after.connect_timeout_ms(tick),
                after.connect_buffer(),
                after.listen_buffer(),
            )
            .unwrap();
        }
    }
    row
}

fn calls() -> Vec<String> {
    let sockets = table::sockets();
    let row = |(call, does): &(&str, table::Call)| {
        let rows: Vec<String> = sockets
            .iter()
            .map(|(name, socket)| {
                let (words, next) = does(*socket);
                format!(r#""{name}": ["{words}", "{:016x}"]"#, next.pack())
            })
            .collect();
        format!(r#""{call}": {{{}}}"#, rows.join(", "))
    };
    table::CALLS.iter().map(row).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A JSON object of arrays and objects, with one line for each row.
fn json() -> String {
    let lists = [
        ("requests", requests()),
        ("held", held()),
        ("replies", replies()),
        ("sockets", sockets()),
        ("names", names()),
        ("options", options()),
        ("option_calls", option_calls::known()),
        ("unknown_options", option_calls::unknown()),
    ];
    let objects = [("states", states()), ("flags", flags()), ("calls", calls())];
    let mut parts = Vec::new();
    for (name, rows) in lists {
        parts.push(format!("\"{name}\": [\n{}\n]", rows.join(",\n")));
    }
    for (name, rows) in objects {
        parts.push(format!("\"{name}\": {{\n{}\n}}", rows.join(",\n")));
    }
    format!("{{\n{}\n}}\n", parts.join(",\n"))
}

#[test]
fn vectors_kept_in_the_repository_are_those_of_this_crate() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, json()).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    for (number, (kept, made)) in kept.lines().zip(json().lines()).enumerate() {
        assert_eq!(kept, made, "line {}; UPDATE=1 if that is meant", number + 1);
    }
    assert_eq!(kept.lines().count(), json().lines().count());
}
