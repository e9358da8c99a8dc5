//! How a program and a VMM's Unix socket agree on a connection before its bytes: one [`Handshake`] is all of a VMM's
//! convention.
//!
//! A program connects to the guest's Unix socket and writes a request; the answer says that it is connected, or the
//! connection is closed. For a connection of the guest, the switch connects to a socket in the same directory, whose
//! name depends on the port. The
//! request may come in pieces, and bytes of the stream may follow right behind it in the same packet: the request is
//! therefore looked at with MSG_PEEK and only its own length is taken out.
//!
//! The rest of the node carries a handshake as a value: it asks it, and never compares it with one of them.

use std::ffi::{OsStr, OsString};
use std::io;

use rustix::net::RecvFlags;
use vsock_core::Port;
use vsock_core::saved::Unfit;

use super::socket::{ProgramSocket, peek};
use crate::events::NotOpened;

/// A longer request is refused: `CONNECT ` and ten digits fit with room to spare.
const MAX_REQUEST: usize = 64;

/// The convention of one VMM, or of several that agree.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// Its name in records of connections: `by=NAME`.
    pub(crate) name: &'static str,
    /// What a request is, for the record of one that is none: `not EXPECTED`.
    pub(crate) expected: &'static str,
    /// A program waits for the answer before it writes, and gives up if it leaves before. Else it may write all it has to
    /// say, shut down its reading half or leave: what it wrote reaches the guest.
    pub(crate) program_waits: bool,
    /// Reads a request from the start of what a program has written, [`MAX_REQUEST`] bytes at most. What is `Request` or
    /// `Bad` stays so when more comes.
    pub(crate) parse: fn(&[u8]) -> Parsed,
    /// The answer to a program that is connected; our port.
    pub(crate) accepted: fn(Port) -> Vec<u8>,
    /// The answer to a program that is not, before the close; empty if there is none.
    pub(crate) refused: fn(NoConnection) -> Vec<u8>,
    /// The name of the Unix socket of the program that takes the guest's connections to a port; the first is the name of the
    /// guest's own socket, which is in the same directory. `GuestSpec` keeps the path of that so short that eleven more
    /// bytes fit.
    pub(crate) name_at: fn(&OsStr, Port) -> OsString,
}

/// What the bytes at the head of the socket are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The request has not ended yet.
    Incomplete,
    /// The whole request, `len` bytes with its end.
    Request {
        /// The guest's port.
        port: Port,
        /// Bytes of the request, including its end.
        len: usize,
    },
    /// Not a request, or too long.
    Bad,
}

/// Why a program gets no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoConnection {
    /// What it wrote is no request.
    BadRequest,
    /// The request was refused, or the other side did not accept.
    NotOpened(NotOpened),
}

/// Firecracker's and Cloud Hypervisor's: `CONNECT <port>\n` from the program, `OK <our port>\n` or the end for it, and
/// `<path>_<port>` for connections of the guest.
pub(crate) static HYBRID: Handshake = Handshake {
    name: "hybrid",
    expected: "CONNECT and a port",
    program_waits: false,
    parse: connect_line,
    accepted: |port| format!("OK {}\n", port.0).into_bytes(),
    refused: |_| Vec::new(),
    name_at: |name, port| {
        let mut name = name.to_owned();
        name.push(format!("_{}", port.0));
        name
    },
};

/// All that there are.
static ALL: [&Handshake; 1] = [&HYBRID];

/// Reads a CONNECT line.
fn connect_line(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else { return Parsed::Incomplete };
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else { return Parsed::Bad };
    let mut words = line.split_ascii_whitespace();
    let (verb, port, rest) = (words.next(), words.next(), words.next());
    let is_connect = verb.is_some_and(|verb| verb.eq_ignore_ascii_case("connect"));
    // `parse` would take "+80", which no VMM does.
    let digits = port.filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(port) if is_connect && rest.is_none() => {
            Parsed::Request { port: Port(port), len: end + 1 }
        }
        Some(_) | None => Parsed::Bad,
    }
}

/// How far the program has got with its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More to come; an event will tell.
    Waiting,
    /// The request was there and has been taken out.
    Connect(Port),
    /// Not a request, or too long.
    Bad,
    /// The program left before its request ended.
    Gone,
}

impl Handshake {
    /// The one of this name, by which saved state knows it.
    pub(crate) fn named(name: &str) -> Result<&'static Self, Unfit> {
        ALL.into_iter().find(|it| it.name == name).ok_or(Unfit::State)
    }

    /// Reads a request from the start of `bytes`.
    pub(crate) fn parse_head(&self, bytes: &[u8]) -> Parsed {
        let head = &bytes[..bytes.len().min(MAX_REQUEST)];
        let parsed = (self.parse)(head);
        let is_too_long = parsed == Parsed::Incomplete && head.len() == MAX_REQUEST;
        if is_too_long { Parsed::Bad } else { parsed }
    }

    /// Looks at what the program has written so far; `ended`: it will write no more.
    pub(crate) fn advance(&self, socket: &ProgramSocket, ended: bool) -> io::Result<Progress> {
        let mut head = [0u8; MAX_REQUEST];
        let (seen, has_descriptor) = match peek(socket, RecvFlags::empty(), &mut head) {
            Ok((0, _)) => return Ok(Progress::Gone),
            Ok(seen) => seen,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                return Ok(Progress::Waiting);
            }
            Err(error) => return Err(error.into()),
        };
        match self.parse_head(&head[..seen]) {
            Parsed::Incomplete if ended => Ok(Progress::Gone),
            // The rest would never be seen.
            Parsed::Incomplete if has_descriptor => Ok(Progress::Bad),
            Parsed::Incomplete => Ok(Progress::Waiting),
            Parsed::Bad => Ok(Progress::Bad),
            Parsed::Request { port, len } => {
                socket.receive(&mut head[..len], RecvFlags::empty())?;
                Ok(Progress::Connect(port))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use crate::host::socket::Sockets;

    #[test]
    fn line_in_every_split_is_incomplete_until_its_end() {
        let line = b"CONNECT 1024\n";
        for end in 0..line.len() {
            assert_eq!(HYBRID.parse_head(&line[..end]), Parsed::Incomplete);
        }
        assert_eq!(HYBRID.parse_head(line), Parsed::Request { port: Port(1024), len: 13 });
        assert_eq!(
            HYBRID.parse_head(b"connect 4294967294\r\n"),
            Parsed::Request { port: Port(4_294_967_294), len: 20 }
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let bad: [&[u8]; 7] = [
            b"CONNECT\n",
            b"CONNECT x\n",
            b"CONNECT 1 2\n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"GET / HTTP/1.1\r\n",
            b"\xff\n",
        ];
        for line in bad {
            assert_eq!(HYBRID.parse_head(line), Parsed::Bad, "{line:?}");
        }
        assert_eq!(HYBRID.parse_head(&[b'C'; MAX_REQUEST]), Parsed::Bad);
    }

    #[test]
    fn bytes_right_behind_the_line_stay_in_the_socket() {
        let (mut program, ours) = UnixStream::pair().unwrap();
        let ours = Sockets::alone().adopt(ours.into());
        program.write_all(b"CONNECT 7\nhello").unwrap();
        assert_eq!(HYBRID.advance(&ours, false).unwrap(), Progress::Connect(Port(7)));
        let mut rest = [0; 5];
        ours.receive(&mut rest, RecvFlags::empty()).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn program_that_leaves_before_the_end_of_the_line_is_gone() {
        let (mut program, ours) = UnixStream::pair().unwrap();
        let ours = Sockets::alone().adopt(ours.into());
        program.write_all(b"CONN").unwrap();
        assert_eq!(HYBRID.advance(&ours, false).unwrap(), Progress::Waiting);
        drop(program);
        assert_eq!(HYBRID.advance(&ours, true).unwrap(), Progress::Gone);
    }
}
