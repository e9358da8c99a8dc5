//! Streams of a host program: how they are opened, and writing for a time.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vsock_client::Address;

use crate::Result;
use crate::clock;
use crate::pattern;
use crate::programs::{Kind, connect_to};

/// What stops for so long will not go on.
const STALL: Duration = Duration::from_secs(5);

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection of whatever kind.
pub(crate) struct Stream {
    socket: Socket,
    /// Bytes written so far: the place of the next, for the content check.
    written: u64,
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self { socket: Socket::Unix(stream), written: 0 }
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self { socket: Socket::Tcp(stream), written: 0 }
    }
}

macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.socket {
            Socket::Unix(ref $inner) => $call,
            Socket::Tcp(ref $inner) => $call,
        }
    };
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => (&mut &*stream).read(bytes))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = either!(self, stream => (&mut &*stream).write(bytes))?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
    }
}

impl Stream {
    /// Connects to `address`, the words of one of
    ///
    /// - `unix PATH`, `tcp PORT`: a plain connection;
    /// - `hybrid PATH PORT`: a guest's port by its hybrid socket;
    /// - `endpoint DIRECTORY CID PORT`: the same by a socket of our own node.
    ///
    /// Says how many bytes of the stream came with the handshake and are taken out of it.
    pub(crate) fn connect(address: &[&str]) -> Result<(Self, usize)> {
        match address {
            ["unix", path] => Ok((UnixStream::connect(path)?.into(), 0)),
            ["tcp", port] => {
                let stream = TcpStream::connect(("127.0.0.1", port.parse()?))?;
                stream.set_nodelay(true)?;
                Ok((stream.into(), 0))
            }
            ["hybrid", path, port] => hybrid(path, port),
            ["endpoint", directory, cid, port] => {
                let to = Address { cid: cid.parse()?, port: port.parse()? };
                let stream = connect_to(Path::new(directory), Kind::Stream, to)?;
                stream.set_read_timeout(None)?;
                Ok((stream.into(), 0))
            }
            _ => Err(format!("not an address: {address:?}").into()),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match &self.socket {
            Socket::Unix(stream) => stream.try_clone()?.into(),
            Socket::Tcp(stream) => stream.try_clone()?.into(),
        })
    }

    /// Lets no read wait for ever; writes never do.
    pub(crate) fn bound_reads(&self) -> io::Result<()> {
        either!(self, stream => stream.set_read_timeout(Some(STALL)))
    }

    /// Lets no write wait for ever.
    pub(crate) fn bound_writes(&self) -> io::Result<()> {
        either!(self, stream => stream.set_write_timeout(Some(STALL)))
    }

    /// Ends it for all its owners.
    pub(crate) fn shut_down(&self) {
        // It may have ended already.
        let _ = either!(self, stream => stream.shutdown(std::net::Shutdown::Both));
    }
}

/// The stream, and how many bytes of it came together with the OK line.
fn hybrid(path: &str, port: &str) -> Result<(Stream, usize)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = [0; 64];
    let mut len = 0;
    let end = loop {
        let n = stream.read(&mut line[len..])?;
        len += n;
        match line[..len].iter().position(|byte| *byte == b'\n') {
            Some(end) => break end,
            None if n == 0 => return Err("the device refused the connection".into()),
            None => {}
        }
    };
    stream.set_read_timeout(None)?;
    if !line.starts_with(b"OK ") {
        return Err("no OK line".into());
    }
    Ok((stream.into(), len - end - 1))
}

/// Writes `size` bytes at a time to all streams by turns, for a time; answers with bytes and seconds.
pub(crate) fn write_for(
    streams: &mut [Stream],
    size: usize,
    seconds: f64,
    checks: bool,
) -> Result<String> {
    let mut writer = Writer { bytes: vec![0x5a; size], checks, total: 0 };
    let start = clock::now();
    let end = start + clock::nanoseconds(seconds);
    if let [stream] = streams {
        writer.write_one(stream, end)?;
    } else {
        writer.write_all(streams, end)?;
    }
    let elapsed = clock::seconds(clock::now() - start);
    Ok(format!("\"bytes\": {}, \"seconds\": {elapsed:.6}", writer.total))
}

struct Writer {
    bytes: Vec<u8>,
    checks: bool,
    total: u64,
}

impl Writer {
    fn write_one(&mut self, stream: &mut Stream, end: u64) -> Result<()> {
        let rounds = if self.bytes.len() < 4096 { 16 } else { 1 };
        while clock::now() < end {
            for _ in 0..rounds {
                self.prepare(stream);
                stream.write_all(&self.bytes)?;
                self.total += self.bytes.len() as u64;
            }
        }
        Ok(())
    }

    fn prepare(&mut self, stream: &Stream) {
        if self.checks {
            pattern::fill(&mut self.bytes, stream.written);
        }
    }

    /// One thread for all: what can take bytes gets one operation's worth of them.
    fn write_all(&mut self, streams: &mut [Stream], end: u64) -> Result<()> {
        for stream in streams.iter() {
            rustix::io::ioctl_fionbio(stream, true)?;
        }
        let mut can_write = vec![true; streams.len()];
        while clock::now() < end {
            for (stream, _) in streams.iter_mut().zip(&can_write).filter(|(_, can)| **can) {
                self.prepare(stream);
                match stream.write(&self.bytes) {
                    Ok(n) => self.total += n as u64,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            can_write = ready(streams, PollFlags::OUT)?;
        }
        for stream in streams.iter() {
            rustix::io::ioctl_fionbio(stream, false)?;
        }
        Ok(())
    }
}

/// Which streams can take bytes (`OUT`) or have some (`IN`); waits for one.
pub(crate) fn ready(streams: &[Stream], how: PollFlags) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> = streams.iter().map(|stream| PollFd::new(stream, how)).collect();
    poll(&mut fds, None)?;
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}
