//! A switch, its guests and their programs, for tests of a whole node.

#![allow(dead_code, reason = "each test crate uses its part")]
#![allow(clippy::unwrap_used)] // helpers of tests panic as tests do

pub(crate) mod attack;
pub(crate) mod raw;
pub(crate) mod vmm;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vsock_node::node::{GuestOptions, Node, NodeOptions};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that goes with the test.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vsock-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn sub(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A switch with guests a (3) and b (4) of one group and c (5) alone, the first `joined` of which are userspace guests.
pub(crate) struct Lab {
    pub(crate) guests: Vec<Node>,
    pub(crate) switch: Node,
    pub(crate) directory: Directory,
}

impl Lab {
    pub(crate) fn new(joined: usize) -> Self {
        Self::with(joined, NodeOptions::default())
    }

    /// With a switch of these options.
    pub(crate) fn with(joined: usize, options: NodeOptions) -> Self {
        let directory = Directory::new();
        let switch = Node::start_with(2, &directory.sub("host"), options).unwrap();
        let mut guests = Vec::new();
        for (index, (name, group)) in [("a", "g"), ("b", "g"), ("c", "alone")].iter().enumerate() {
            let cid = u32::try_from(index).unwrap() + 3;
            let socket = directory.0.join(format!("{name}.sock"));
            switch
                .add_guest(GuestOptions {
                    name: (*name).to_owned(),
                    cid,
                    socket: socket.clone(),
                    hybrid: Some(directory.0.join(format!("{name}.vsock"))),
                    groups: vec![(*group).to_owned()],
                    ..GuestOptions::default()
                })
                .unwrap();
            if index < joined {
                let node = Node::start(cid, &directory.sub(name)).unwrap();
                assert_eq!(node.join(&socket, Some(cid), DEADLINE).unwrap(), cid);
                guests.push(node);
            }
        }
        Self { guests, switch, directory }
    }

    pub(crate) fn path(&self, of: &str) -> PathBuf {
        self.directory.0.join(of)
    }

    /// Gives the switch away as plain data, and goes on with another.
    pub(crate) fn hand_over(&mut self) {
        let (saved, fds) = self.switch.save().unwrap();
        assert!(self.switch.snapshot().is_err(), "it is over");
        self.switch = Node::restore(saved, fds).unwrap();
    }
}

/// A request of the client protocol.
pub(crate) fn request(op: u8, cid: u32, port: u32, value: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = 1;
    bytes[1] = op;
    bytes[4..8].copy_from_slice(&cid.to_le_bytes());
    bytes[8..12].copy_from_slice(&port.to_le_bytes());
    bytes[12..16].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// Sends a request and reads its reply: the errno, and all of it.
pub(crate) fn ask(stream: &mut UnixStream, request: &[u8]) -> (u16, [u8; 32]) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request).unwrap();
    let mut reply = [0; 32];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!((reply[0], reply[1]), (1, request[1]));
    (u16::from_le_bytes([reply[2], reply[3]]), reply)
}

/// Connects as a program of the node that serves `directory`.
pub(crate) fn connect(directory: &Path, cid: u32, port: u32) -> Result<UnixStream, u16> {
    let mut stream = UnixStream::connect(directory.join("stream")).unwrap();
    match ask(&mut stream, &request(2, cid, port, 0)).0 {
        0 => Ok(stream),
        errno => Err(errno),
    }
}

/// A program that listens.
pub(crate) struct Listener(pub(crate) UnixStream);

impl Listener {
    pub(crate) fn new(directory: &Path, port: u32, backlog: u32) -> Self {
        let mut stream = UnixStream::connect(directory.join("stream")).unwrap();
        assert_eq!(ask(&mut stream, &request(1, u32::MAX, port, 0)).0, 0);
        assert_eq!(ask(&mut stream, &request(3, 0, 0, backlog)).0, 0);
        Self(stream)
    }

    pub(crate) fn accept(&mut self) -> UnixStream {
        self.accept_with_addresses().0
    }

    /// The stream, then our CID and port, then theirs.
    pub(crate) fn accept_with_addresses(&mut self) -> (UnixStream, [u32; 4]) {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 32];
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let got = recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        assert_eq!(got.bytes, 32);
        let fd: OwnedFd = control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                RecvAncillaryMessage::ScmCredentials(_) | _ => None,
            })
            .unwrap();
        assert_eq!(bytes[1], 4);
        self.0.write_all(&request(5, 0, 0, 0)).unwrap();
        let stream = UnixStream::from(fd);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (stream, [field(4), field(8), field(12), field(16)])
    }
}

/// Bytes that differ from their neighbours and from those of another seed.
pub(crate) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .collect()
}

/// Sends `data` one way and checks that exactly it arrives, then the end.
pub(crate) fn transfer(mut from: UnixStream, mut to: UnixStream, data: Vec<u8>) {
    let expected = data.clone();
    let sender = std::thread::spawn(move || {
        from.write_all(&data).unwrap();
        from.shutdown(std::net::Shutdown::Write).unwrap();
        from
    });
    let mut got = Vec::new();
    to.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), expected.len());
    assert!(got == expected, "content differs");
    sender.join().unwrap();
}

/// Waits for a condition, as long as a test may take.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::yield_now();
    }
}

/// Connects with messages; read and write move one each.
pub(crate) fn connect_messages(directory: &Path, cid: u32, port: u32) -> UnixStream {
    let mut stream = message_client(directory);
    assert_eq!(ask(&mut stream, &request(2, cid, port, 0)).0, 0);
    stream
}

fn message_client(directory: &Path) -> UnixStream {
    connect_unix(&directory.join("seqpacket"))
}

/// A connection to the socket for datagrams.
pub(crate) fn connect_datagrams(directory: &Path) -> UnixStream {
    connect_unix(&directory.join("dgram"))
}

/// Connects to a Unix socket that keeps messages.
fn connect_unix(path: &Path) -> UnixStream {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
    let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&fd, &SocketAddrUnix::new(path).unwrap()).unwrap();
    fd.into()
}

impl Listener {
    /// Whether `accept` would return at once.
    pub(crate) fn has_waiting(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&at_once)).unwrap() > 0
    }

    /// Takes connections that carry messages.
    pub(crate) fn of_messages(directory: &Path, port: u32, backlog: u32) -> Self {
        let mut stream = message_client(directory);
        assert_eq!(ask(&mut stream, &request(1, u32::MAX, port, 0)).0, 0);
        assert_eq!(ask(&mut stream, &request(3, 0, 0, backlog)).0, 0);
        Self(stream)
    }
}

/// What a switch has counted for a guest.
pub(crate) fn guest_counter(switch: &Node, cid: u32, name: &str) -> u64 {
    let snapshot = switch.snapshot().unwrap();
    let guest = snapshot.guests.iter().find(|guest| guest.cid == cid).unwrap();
    guest.counters.iter().find(|counter| counter.0 == name).unwrap_or_else(|| panic!("{name}")).1
}

/// What a switch has counted as a whole.
pub(crate) fn node_counter(switch: &Node, name: &str) -> u64 {
    let counters = switch.snapshot().unwrap().counters;
    counters.iter().find(|counter| counter.0 == name).map_or(0, |counter| counter.1)
}

/// How many descriptors this process has open; for tests that run alone in it.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How many mappings of userspace guests' memory this process has, the guests' own and those of switches.
pub(crate) fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:vsock-guest ")).count()
}
