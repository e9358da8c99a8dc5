//! A convention that no VMM has, on a guest's hybrid socket: each of its parts differs from [`HYBRID`], and the value below
//! is all that says so.

use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::*;
use crate::host::directory::Directory;
use crate::host::handshake::{Handshake, NoConnection, Parsed};
use crate::reactor::Events;

static DIAL: Handshake = Handshake {
    name: "dial",
    expected: "a digit and a semicolon",
    program_waits: true,
    parse: |bytes| match bytes {
        [digit @ b'0'..=b'9', b';', ..] => {
            Parsed::Request { port: Port(u32::from(digit - b'0')), len: 2 }
        }
        [] | [b'0'..=b'9'] => Parsed::Incomplete,
        _ => Parsed::Bad,
    },
    accepted: |_| b"YES;".to_vec(),
    refused: |why| match why {
        NoConnection::BadRequest => b"WHAT;".to_vec(),
        NoConnection::NotOpened(why) => format!("NO, {why};").into_bytes(),
    },
    name_at: |name, port| Path::new(name).with_extension(format!("for-{}", port.0)).into(),
};

/// A guest whose hybrid socket speaks [`DIAL`].
struct Dialled {
    lab: Lab,
    path: PathBuf,
}

impl Dialled {
    fn new(name: &str) -> Self {
        let file = format!("vsock-dial-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(file);
        let listener = UnixListener::bind(&path).unwrap();
        let mut lab = Lab::new();
        lab.fabric.cx.journal.set_wants_flows(true);
        let directory = Directory::of(&path).unwrap();
        let socket = HybridSocket { path: path.clone(), directory, listener, handshake: &DIAL };
        let Fabric { cx, programs, .. } = &mut lab.fabric;
        programs.set_hybrid(cx, lab.links[0], Some(socket)).unwrap();
        Self { lab, path }
    }

    /// A program that has written this.
    fn program(&self, words: &[u8]) -> UnixStream {
        let mut program = UnixStream::connect(&self.path).unwrap();
        program.write_all(words).unwrap();
        program.set_nonblocking(true).unwrap();
        program
    }

    /// Rounds with all that has happened at descriptors by now, or first happens within `timeout`.
    fn run(&mut self, mut timeout: Duration) {
        let (mut events, mut happened) = (Events::new(), Vec::new());
        loop {
            let sources = &self.lab.fabric.cx.sources;
            sources.wait(Some(timeout), &mut events, &mut happened).unwrap();
            self.lab.fabric.take_answers();
            if happened.is_empty() {
                return self.lab.run();
            }
            for ready in happened.drain(..) {
                self.lab.fabric.dispatch(ready);
            }
            self.lab.run();
            timeout = Duration::ZERO;
        }
    }

    /// What a program has been told, and whether the end comes behind it.
    fn told(&mut self, program: &mut UnixStream) -> (String, bool) {
        self.run(Duration::ZERO);
        let mut told = Vec::new();
        let is_over = match program.read_to_end(&mut told) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        };
        (String::from_utf8(told).unwrap(), is_over)
    }

    /// The last record of the log.
    fn logged(&self) -> String {
        self.lab.fabric.cx.journal.take().last().unwrap().to_string()
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        // Left behind in the directory for temporary files, if this fails.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn program_that_asks_by_another_convention_is_answered_by_it() {
    let mut dialled = Dialled::new("accepted");
    let mut program = dialled.program(b"7");
    assert_eq!(dialled.told(&mut program), (String::new(), false));
    program.write_all(b";").unwrap();
    assert_eq!(dialled.told(&mut program), ("YES;".to_owned(), false));
    program.write_all(b"hello").unwrap();
    dialled.run(Duration::ZERO);
    assert_eq!(dialled.lab.guests[0].got.0, b"hello");
    let logged = dialled.logged();
    assert!(logged.contains("to=3:7(alpha)") && logged.ends_with(" by=dial"), "{logged}");
}

#[test]
fn program_that_gets_no_connection_is_told_why_by_the_same_convention() {
    let mut dialled = Dialled::new("refused");
    let mut program = dialled.program(b"9;");
    assert_eq!(dialled.told(&mut program), ("NO, nobody accepts there;".to_owned(), true));
    let logged = dialled.logged();
    assert!(logged.ends_with(" by=dial: nobody accepts there"), "{logged}");

    let mut program = dialled.program(b"CONNECT 7\n");
    assert_eq!(dialled.told(&mut program), ("WHAT;".to_owned(), true));
    let pid = std::process::id();
    let expected = format!("dial line of pid {pid}: not a digit and a semicolon");
    assert_eq!(dialled.logged(), expected);

    dialled.lab.fabric.say_farewell(dialled.lab.links[0]);
    let mut program = dialled.program(b"7;");
    assert_eq!(dialled.told(&mut program), ("NO, no such guest;".to_owned(), true));
    let logged = dialled.logged();
    assert!(logged.ends_with(" by=dial: no such guest"), "{logged}");
}

#[test]
fn program_that_is_to_wait_and_leaves_instead_is_given_up() {
    let mut dialled = Dialled::new("waits");
    drop(dialled.program(b"7;all of it"));
    dialled.run(Duration::ZERO);
    assert_eq!(dialled.lab.fabric.flows.iter().count(), 0);
    assert_eq!(dialled.lab.guests[0].got.0, b"");
}

#[test]
fn connection_of_the_guest_goes_where_the_convention_says() {
    let mut dialled = Dialled::new("path");
    let taken = dialled.path.with_extension("for-7000");
    let listener = UnixListener::bind(&taken).unwrap();
    let key = FlowKey { ours: at(ALPHA, 5000), theirs: at(Cid::HOST, 7000) };
    let alpha = dialled.lab.guests[0].interface.endpoint_mut();
    alpha.connect(Instant(1), key, SocketType::Stream, None).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while dialled.lab.fabric.flows.iter().count() == 0 {
        assert!(std::time::Instant::now() < deadline, "its helper does not connect");
        dialled.lab.run();
        dialled.run(Duration::from_secs(1));
    }
    let mut program = listener.accept().unwrap().0;
    program.write_all(b"hello").unwrap();
    dialled.run(Duration::ZERO);
    assert_eq!(dialled.lab.guests[0].got.0, b"hello");
    let logged = dialled.logged();
    assert!(logged.contains("from=3:5000(alpha)") && logged.ends_with(" by=dial"), "{logged}");
    std::fs::remove_file(taken).unwrap();
}
