//! The hybrid sockets' handshake, as Firecracker and Cloud Hypervisor have it: one line of text before the bytes.
//!
//! A program connects to the guest's Unix socket and writes `CONNECT <port>\n`; the answer is `OK <our port>\n`, or the
//! connection is closed. The line may come in pieces, and bytes of the stream may follow right behind it in the same
//! packet: the line is therefore looked at with MSG_PEEK and only its own length is taken out.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, recv};
use vsock_core::{Port, SocketType};

use crate::host::client::peek;

/// A longer line is refused: `CONNECT ` and ten digits fit with room to spare.
pub(crate) const MAX_LINE: usize = 64;

/// What the bytes at the head of the socket are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The line has not ended yet.
    Incomplete,
    /// The whole line, `len` bytes with its end.
    Connect {
        /// The guest's port.
        port: Port,
        /// Bytes of the line, including its end.
        len: usize,
    },
    /// Not a CONNECT line, or too long.
    Bad,
}

/// Reads a CONNECT line from the start of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Line {
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
        return if bytes.len() < MAX_LINE { Line::Incomplete } else { Line::Bad };
    };
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else { return Line::Bad };
    let mut words = line.split_ascii_whitespace();
    let (verb, port, rest) = (words.next(), words.next(), words.next());
    let is_connect = verb.is_some_and(|verb| verb.eq_ignore_ascii_case("connect"));
    // `parse` would take "+80", which no VMM does.
    let digits = port.filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(port) if is_connect && rest.is_none() => {
            Line::Connect { port: Port(port), len: end + 1 }
        }
        Some(_) | None => Line::Bad,
    }
}

/// How far the program has got with its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More to come; an event will tell.
    Waiting,
    /// The line was there and has been taken out.
    Connect(Port),
    /// Not a line that is known, or too long.
    Bad,
    /// The program left before its line ended.
    Gone,
}

/// Looks at what the program has written so far; `ended`: it will write no more.
pub(crate) fn advance(fd: impl AsFd, ended: bool) -> io::Result<Progress> {
    let mut line = [0u8; MAX_LINE];
    let (seen, has_descriptor) = match peek(&fd, SocketType::Stream, &mut line) {
        Ok((0, _)) => return Ok(Progress::Gone),
        Ok(seen) => seen,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Progress::Waiting),
        Err(error) => return Err(error.into()),
    };
    match parse(&line[..seen]) {
        Line::Incomplete if ended => Ok(Progress::Gone),
        // The rest would never be seen.
        Line::Incomplete if has_descriptor => Ok(Progress::Bad),
        Line::Incomplete => Ok(Progress::Waiting),
        Line::Bad => Ok(Progress::Bad),
        Line::Connect { port, len } => {
            recv(&fd, &mut line[..len], RecvFlags::DONTWAIT)?;
            Ok(Progress::Connect(port))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn line_in_every_split_is_incomplete_until_its_end() {
        let line = b"CONNECT 1024\n";
        for end in 0..line.len() {
            assert_eq!(parse(&line[..end]), Line::Incomplete);
        }
        assert_eq!(parse(line), Line::Connect { port: Port(1024), len: 13 });
        assert_eq!(
            parse(b"connect 4294967294\r\n"),
            Line::Connect { port: Port(4_294_967_294), len: 20 }
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
            assert_eq!(parse(line), Line::Bad, "{line:?}");
        }
        assert_eq!(parse(&[b'C'; MAX_LINE]), Line::Bad);
    }

    #[test]
    fn bytes_right_behind_the_line_stay_in_the_socket() {
        let (mut program, mut ours) = UnixStream::pair().unwrap();
        program.write_all(b"CONNECT 7\nhello").unwrap();
        assert_eq!(advance(&ours, false).unwrap(), Progress::Connect(Port(7)));
        let mut rest = [0; 5];
        ours.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn program_that_leaves_before_the_end_of_the_line_is_gone() {
        let (mut program, ours) = UnixStream::pair().unwrap();
        program.write_all(b"CONN").unwrap();
        assert_eq!(advance(&ours, false).unwrap(), Progress::Waiting);
        drop(program);
        assert_eq!(advance(&ours, true).unwrap(), Progress::Gone);
    }
}
