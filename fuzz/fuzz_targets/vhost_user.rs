//! Invariant: whatever a front end says, with whatever descriptors, its attachment ends when it leaves, in the right
//! order and once, no ring runs afterwards, and the next front end is served.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use vsock_sandbox::{Profile, Sandbox};
use vsock_virtio::starter::Starter;
use vsock_virtio::vhost_user::{Attachment, BackendHandle, BackendOptions, Change, spawn};

#[derive(Debug, Arbitrary)]
struct Said {
    request: u8,
    flags: u8,
    body: Vec<u8>,
    /// The body's first words are numbers that make sense: a ring, a small size, an address.
    ring: Option<(u8, u8, u16)>,
    fds: u8,
    lie: Option<u32>,
}

/// The data plane, only looking.
#[derive(Default)]
struct Plane {
    attached: bool,
    running: [bool; 3],
}

struct Watched(Arc<Mutex<Plane>>);

impl Attachment for Watched {
    fn apply(&mut self, change: Change) {
        let mut plane = self.0.lock().unwrap();
        match change {
            Change::Attached(_) => assert!(!std::mem::replace(&mut plane.attached, true)),
            Change::Refused(_) | Change::WithoutMemory => {}
            Change::Features(_) => {
                assert!(plane.attached && plane.running == [false; 3], "features of a running ring");
            }
            Change::StartQueue(start) => {
                let did_run = std::mem::replace(&mut plane.running[start.index], true);
                assert!(plane.attached && !did_run);
            }
            Change::SetCall { index, .. } => assert!(plane.running[index]),
            Change::Detached(_) => {
                assert!(std::mem::take(&mut plane.attached));
                plane.running = [false; 3];
            }
        }
    }

    fn stop_queue(&mut self, index: usize) -> u16 {
        assert!(std::mem::take(&mut self.0.lock().unwrap().running[index]));
        0
    }
}

/// A new one for each input: a guest's budget of requests, which comes back with time, would make the fuzzer wait.
fn backend() -> (PathBuf, Arc<Mutex<Plane>>, BackendHandle) {
    let path = std::env::temp_dir().join(format!("vsock-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let door = UnixListener::bind(&path).unwrap();
    let plane = Arc::new(Mutex::new(Plane::default()));
    let mut options = BackendOptions::new(3);
    options.memory_slots = true;
    let starter = Starter::new(Sandbox::Disabled, Profile::Control, "starter").unwrap();
    let handle = spawn(door, options, Box::new(Watched(Arc::clone(&plane))), &starter).unwrap();
    (path, plane, handle)
}

fn memory() -> &'static OwnedFd {
    static MEMORY: OnceLock<OwnedFd> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 1 << 20).unwrap();
        file
    })
}

impl Said {
    fn bytes(&self) -> Vec<u8> {
        let mut body = self.body.clone();
        if let Some((ring, size, at)) = self.ring {
            // Also the shape of SET_MEM_TABLE with one region: count, padding, guest, size, user, offset.
            let words = [u32::from(ring % 4), u32::from(size), u32::from(at), 0];
            let words = words.iter().flat_map(|word| word.to_ne_bytes());
            body.splice(..body.len().min(16), words);
        }
        let size = self.lie.unwrap_or(body.len() as u32);
        let flags = 1 | u32::from(self.flags & 0xf8);
        let head = [u32::from(self.request % 48), flags, size];
        head.iter().flat_map(|word| word.to_ne_bytes()).chain(body).collect()
    }
}

fuzz_target!(|said: Vec<Said>| {
    let (path, plane, handle) = backend();
    let mut front_end = UnixStream::connect(path).unwrap();
    front_end.set_nonblocking(true).unwrap();
    for said in &said {
        let fds: Vec<BorrowedFd<'_>> =
            std::iter::repeat_n(memory().as_fd(), usize::from(said.fds % 4)).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let bytes = said.bytes();
        if sendmsg(&front_end, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).is_err()
        {
            break;
        }
    }
    front_end.set_nonblocking(false).unwrap();
    front_end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    front_end.shutdown(std::net::Shutdown::Write).unwrap();
    let mut replies = [0; 4096];
    loop {
        match front_end.read(&mut replies) {
            Ok(0) => break,
            Ok(_) => {}
            // It closed with something of ours unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the back end does not let go: {error}"),
        }
    }
    drop(front_end);
    // The attachment ends before the socket closes.
    {
        let plane = plane.lock().unwrap();
        assert!(!plane.attached && plane.running == [false; 3]);
    }
    assert!(handle.stop(Instant::now() + Duration::from_secs(10)), "the control thread does not end");
});
