//! Invariant: whatever a client of a shared folder asks for, each request has one whole answer, in order. Nothing beside
//! the folder is told, changed, made or removed, no link that leads out is made, and without leave to write nothing in the
//! folder changes either.
#![no_main]

use std::collections::hash_map::RandomState;
use std::fs::{self, File, FileTimes, Permissions};
use std::hash::BuildHasher;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path};
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{CWD, FileType, Mode};
use vsock_sftp::Server;

/// What names are made of. `secret` and `closed` are beside the folder; the links lead there.
const PARTS: [&[u8]; 20] = [
    b"file",
    b"inner",
    b"inner/file",
    b"..",
    b".",
    b"",
    b"secret",
    b"../secret",
    b"../closed",
    b"out",
    b"up",
    b"up/secret",
    b"absolute",
    b"magic",
    b"magic/etc",
    b"new",
    b"../new",
    b"other",
    b"fifo",
    b"\xff\xfe",
];

#[derive(Arbitrary, Debug)]
struct Client {
    may_write: bool,
    requests: Vec<Request>,
}

#[derive(Arbitrary, Debug)]
enum Request {
    /// With a path, then numbers and a text as they come.
    Path {
        kind: u8,
        path: Name,
        numbers: Vec<u32>,
    },
    Paths {
        kind: u8,
        first: Name,
        second: Name,
    },
    Handle {
        kind: u8,
        handle: u8,
        numbers: Vec<u32>,
        text: Vec<u8>,
    },
    Extended {
        name: u8,
        first: Name,
        second: Name,
        numbers: Vec<u32>,
    },
    ExtendedHandle {
        name: u8,
        handle: u8,
    },
    Any(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Name {
    Parts { is_absolute: bool, parts: Vec<u8> },
    Any(Vec<u8>),
}

const EXTENSIONS: [&[u8]; 7] = [
    b"posix-rename@openssh.com",
    b"statvfs@openssh.com",
    b"fstatvfs@openssh.com",
    b"hardlink@openssh.com",
    b"fsync@openssh.com",
    b"lsetstat@openssh.com",
    b"limits@openssh.com",
];

impl Name {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Name::Any(bytes) => bytes.clone(),
            Name::Parts { is_absolute, parts } => {
                let parts: Vec<&[u8]> =
                    parts.iter().map(|part| PARTS[usize::from(*part) % PARTS.len()]).collect();
                let start: &[u8] = if *is_absolute { b"/" } else { b"" };
                [start, &parts.join(&b'/')].concat()
            }
        }
    }
}

/// A packet as it is written.
struct Packet(Vec<u8>);

impl Packet {
    fn new(kind: u8, id: u32) -> Packet {
        Packet(vec![kind]).number(id)
    }

    fn number(mut self, number: u32) -> Packet {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn numbers(self, numbers: &[u32]) -> Packet {
        numbers.iter().copied().fold(self, Packet::number)
    }

    fn string(self, text: &[u8]) -> Packet {
        let mut packet = self.number(text.len() as u32);
        packet.0.extend(text);
        packet
    }
}

impl Request {
    fn packet(&self, id: u32) -> Vec<u8> {
        let extension = |name: &u8| EXTENSIONS[usize::from(*name) % EXTENSIONS.len()];
        let handle = |number: &u8| u32::from(number % 8).to_be_bytes();
        let packet = match self {
            Request::Path { kind, path, numbers } => {
                Packet::new(3 + kind % 18, id).string(&path.bytes()).numbers(numbers)
            }
            Request::Paths { kind, first, second } => {
                Packet::new([18, 20][usize::from(kind % 2)], id)
                    .string(&first.bytes())
                    .string(&second.bytes())
            }
            Request::Handle { kind, handle: number, numbers, text } => {
                Packet::new(4 + kind % 9, id).string(&handle(number)).numbers(numbers).string(text)
            }
            Request::Extended { name, first, second, numbers } => {
                let packet = Packet::new(200, id).string(extension(name)).string(&first.bytes());
                if numbers.is_empty() {
                    packet.string(&second.bytes())
                } else {
                    packet.numbers(numbers)
                }
            }
            Request::ExtendedHandle { name, handle: number } => {
                Packet::new(200, id).string(extension(name)).string(&handle(number))
            }
            // An empty packet ends the stream, which is not of interest here.
            Request::Any(bytes) if bytes.is_empty() => Packet(vec![255]),
            Request::Any(bytes) => Packet(bytes.clone()),
        };
        packet.0
    }
}

/// What is beside the folder and must not be seen. Only hashes are compared: the fuzzer learns from comparisons, and would
/// write the secret itself.
struct Secret {
    text: [u8; 16],
    size: u64,
    hasher: RandomState,
}

static SECRET: LazyLock<Secret> = LazyLock::new(|| {
    let random = || RandomState::new().hash_one(0);
    let text = [random().to_be_bytes(), random().to_be_bytes()].concat();
    Secret {
        text: text.try_into().expect("sixteen bytes"),
        size: (random() >> 24) | 1 << 38,
        hasher: RandomState::new(),
    }
});

impl Secret {
    fn is_told(&self, answers: &[u8]) -> bool {
        let has = |wanted: &[u8]| {
            let wanted_hash = self.hasher.hash_one(wanted);
            answers.windows(wanted.len()).any(|window| self.hasher.hash_one(window) == wanted_hash)
        };
        has(&self.text) || has(&self.size.to_be_bytes())
    }
}

fn make(place: &Path) -> io::Result<()> {
    let folder = place.join("in");
    fs::create_dir_all(folder.join("inner/inner"))?;
    fs::create_dir(place.join("closed"))?;
    for name in ["in/file", "in/inner/file", "closed/file"] {
        fs::write(place.join(name), "text")?;
    }
    let secret = place.join("secret");
    fs::write(&secret, SECRET.text)?;
    let file = File::options().write(true).open(&secret)?;
    file.set_len(SECRET.size)?;
    file.set_permissions(Permissions::from_mode(0o640))?;
    file.set_times(FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)))?;
    symlink("../secret", folder.join("out"))?;
    symlink("..", folder.join("up"))?;
    symlink(&secret, folder.join("absolute"))?;
    symlink("/proc/self/root", folder.join("magic"))?;
    rustix::fs::mknodat(CWD, folder.join("fifo"), FileType::Fifo, Mode::RWXU, 0)?;
    Ok(())
}

/// The files below a folder, with what must not change; no link is followed.
fn state(folder: &Path, leave_out: Option<&Path>) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let its = fs::symlink_metadata(&path)?;
            if Some(&*path) == leave_out {
                continue;
            }
            found.push(format!(
                "{path:?} {:o} {} {} {} {} {:?}",
                its.mode(),
                its.size(),
                its.mtime(),
                its.uid(),
                its.nlink(),
                fs::read_link(&path).ok(),
            ));
            if its.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// How many links lead out, or would from elsewhere in the folder.
fn links_out(folder: &Path) -> io::Result<usize> {
    let mut count = 0;
    let mut folders = vec![folder.to_owned()];
    let mut inodes = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let its = fs::symlink_metadata(&path)?;
            if its.is_dir() {
                folders.push(path);
            } else if its.is_symlink() && !inodes.contains(&its.ino()) {
                inodes.push(its.ino());
                let leads_out = |part| matches!(part, Component::RootDir | Component::ParentDir);
                count += usize::from(fs::read_link(&path)?.components().any(leads_out));
            }
        }
    }
    Ok(count)
}

fuzz_target!(|client: Client| {
    let place = tempfile::tempdir().expect("a place");
    make(place.path()).expect("files");
    let folder = place.path().join("in");
    let beside = state(place.path(), Some(&folder)).expect("what is beside");
    let inside = state(&folder, None).expect("what is inside");

    let mut requests = Vec::new();
    let count = client.requests.len().min(64);
    for (id, request) in client.requests.iter().take(count).enumerate() {
        let packet = request.packet(id as u32);
        requests.extend((packet.len() as u32).to_be_bytes());
        requests.extend(packet);
    }
    let mut answers = Vec::new();
    let server = Server::of_folder(&folder, client.may_write).expect("a server");
    server.serve(&mut &requests[..], &mut answers).expect("requests that are whole");

    let mut rest = &answers[..];
    for number in 0..count {
        let (length, after) = rest.split_first_chunk::<4>().expect("an answer");
        let (answer, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        match &client.requests[number] {
            Request::Any(_) => assert!(!answer.is_empty()),
            _ => assert_eq!(answer[1..5], (number as u32).to_be_bytes()),
        }
        rest = after;
    }
    assert!(rest.is_empty(), "more answers than requests");
    assert!(!SECRET.is_told(&answers), "an answer tells what is beside the folder");
    assert_eq!(state(place.path(), Some(&folder)).expect("what is beside"), beside);
    assert!(links_out(&folder).expect("links") <= 4, "a link that leads out is new");
    if !client.may_write {
        assert_eq!(state(&folder, None).expect("what is inside"), inside);
    }
});
