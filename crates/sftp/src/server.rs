//! One client: its requests, in order, and what it has open.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, ReadDir};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfs;
use rustix::io::Errno;
use vsock_sandbox::State;

use crate::files;
use crate::packet::{Malformed, Reader, Writer};
use crate::protocol::{EXTENSIONS, kind, status};
use crate::tree::{Found, Tree};

/// The longest packet of a client, as OpenSSH has it.
const PACKET: usize = 256 << 10;
/// What one request may read or write.
const CHUNK: usize = PACKET - 1024;
/// Files and folders that are open at once.
const HANDLES: usize = 256;
/// The size of an answer from which on it gets no more names of a folder.
const LISTING: usize = 16 << 10;

/// Why a request failed.
#[derive(Debug)]
enum Failure {
    Io(io::Error),
    Status(u32, &'static str),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Failure {
        Failure::Io(error.into())
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Failure {
        Failure::Status(status::BAD_MESSAGE, "malformed packet")
    }
}

impl Failure {
    fn answer(&self, id: u32) -> Writer {
        let (code, text) = match self {
            Failure::Status(code, text) => (*code, (*text).to_owned()),
            Failure::Io(error) => {
                let code = match Errno::from_io_error(error) {
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::BADF | Errno::LOOP) => {
                        status::NO_SUCH_FILE
                    }
                    Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => status::PERMISSION_DENIED,
                    Some(Errno::NOSYS | Errno::OPNOTSUPP) => status::OP_UNSUPPORTED,
                    _ => status::FAILURE,
                };
                (code, error.to_string())
            }
        };
        status_of(id, code, &text)
    }
}

fn status_of(id: u32, code: u32, text: &str) -> Writer {
    Writer::new(kind::STATUS, id).u32(code).string(text.as_bytes()).string(b"")
}

/// An open file, or a folder that is being read.
#[derive(Debug)]
enum Handle {
    File(File),
    Folder { path: Found, entries: ReadDir },
}

type Answer = Result<Writer, Failure>;

/// Whether a request changes nothing; one that is not known counts as one that does.
fn only_reads(kind: u8, mut body: Reader<'_>) -> bool {
    match kind {
        kind::CLOSE
        | kind::READ
        | kind::LSTAT
        | kind::FSTAT
        | kind::OPENDIR
        | kind::READDIR
        | kind::REALPATH
        | kind::STAT
        | kind::READLINK => true,
        kind::OPEN => body.string().is_ok() && body.u32() == Ok(files::READ),
        kind::EXTENDED => matches!(
            body.string(),
            Ok(b"statvfs@openssh.com"
                | b"fstatvfs@openssh.com"
                | b"fsync@openssh.com"
                | b"limits@openssh.com")
        ),
        _ => false,
    }
}

/// The state of one client: what it may name, and what it has open.
#[derive(Debug)]
pub struct Server {
    tree: Tree,
    handles: HashMap<u32, Handle>,
    next: u32,
}

impl Server {
    /// A server of all files of this machine, with the rights of this process.
    #[must_use]
    pub fn of_machine() -> Server {
        Server::of(Tree::Machine)
    }

    /// A server of the files in a folder alone, for a client that may be hostile.
    ///
    /// # Errors
    /// The folder cannot be opened, a link leads to it, it is one of /proc, or the kernel lacks openat2(2).
    pub fn of_folder(folder: &Path, is_writable: bool) -> io::Result<Server> {
        Ok(Server::of(Tree::folder(folder, is_writable)?))
    }

    fn of(tree: Tree) -> Server {
        Server { tree, handles: HashMap::new(), next: 0 }
    }

    /// Takes all that a server of a folder does not need from this process: a second layer, of which the state says how
    /// much the kernel has.
    ///
    /// # Errors
    /// A system call that the kernel has fails.
    pub fn restrict_process(&self) -> io::Result<State> {
        self.tree.restrict_process()
    }

    /// Answers requests until their stream ends.
    ///
    /// # Errors
    /// A stream fails, ends in the middle of a packet, or has a packet longer than the protocol's limit.
    pub fn serve(mut self, input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
        let mut packet = Vec::new();
        loop {
            let mut head = [0; 4];
            match input.read_exact(&mut head) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                done => done?,
            }
            let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
            if length == 0 || length > PACKET {
                let fault = format!("the client sends a packet of {length} bytes");
                return Err(io::Error::other(fault));
            }
            packet.resize(length, 0);
            input.read_exact(&mut packet)?;
            output.write_all(&self.answer(&packet).finish())?;
            output.flush()?;
        }
    }

    fn answer(&mut self, packet: &[u8]) -> Writer {
        let mut reader = Reader(packet);
        let Ok(kind) = reader.byte() else { return status_of(0, status::BAD_MESSAGE, "") };
        if kind == kind::INIT {
            let version = Writer::without_id(kind::VERSION).u32(3);
            return EXTENSIONS.iter().fold(version, |packet, (name, version)| {
                packet.string(name.as_bytes()).string(version.as_bytes())
            });
        }
        let Ok(id) = reader.u32() else { return status_of(0, status::BAD_MESSAGE, "") };
        if !self.tree.is_writable() && !only_reads(kind, reader.clone()) {
            return Failure::from(Errno::ROFS).answer(id);
        }
        let done = match kind {
            kind::OPEN
            | kind::CLOSE
            | kind::READ
            | kind::WRITE
            | kind::FSTAT
            | kind::FSETSTAT
            | kind::OPENDIR
            | kind::READDIR => self.with_handles(kind, id, &mut reader),
            kind::EXTENDED => self.extended(id, &mut reader),
            _ => self.with_paths(kind, id, &mut reader),
        };
        done.unwrap_or_else(|failure| failure.answer(id))
    }

    fn with_handles(&mut self, kind: u8, id: u32, reader: &mut Reader<'_>) -> Answer {
        match kind {
            kind::OPEN => {
                let (path, flags, wanted) = (path(reader)?, reader.u32()?, reader.attributes()?);
                let file = self.tree.open(&path, flags, &wanted)?;
                self.add(id, Handle::File(file))
            }
            kind::OPENDIR => {
                let path = self.tree.find(&path(reader)?)?;
                let entries = fs::read_dir(&path)?;
                self.add(id, Handle::Folder { path, entries })
            }
            kind::CLOSE => {
                let number = number(reader)?;
                self.handles.remove(&number).ok_or(Failure::from(Errno::BADF))?;
                ok(id)
            }
            kind::READDIR => match self.handle(reader)? {
                Handle::Folder { path, entries } => list(id, path, entries),
                Handle::File(_) => Err(Errno::NOTDIR.into()),
            },
            kind::READ => {
                let file = self.file(reader)?;
                let (offset, most) = (reader.u64()?, reader.u32()?);
                let most = usize::try_from(most).unwrap_or(CHUNK).min(CHUNK);
                let read = |place: &mut [u8]| file.read_at(place, offset);
                let (packet, length) = Writer::new(kind::DATA, id).filled(most, read)?;
                if length == 0 && most > 0 {
                    return Err(Failure::Status(status::EOF, "end of file"));
                }
                Ok(packet)
            }
            kind::WRITE => {
                let file = self.file(reader)?;
                let (offset, data) = (reader.u64()?, reader.string()?);
                file.write_all_at(data, offset)?;
                ok(id)
            }
            kind::FSTAT => {
                let file = match self.handle(reader)? {
                    Handle::File(file) => file.metadata()?,
                    Handle::Folder { path, .. } => fs::metadata(path)?,
                };
                Ok(Writer::new(kind::ATTRS, id).attributes(&file))
            }
            _ => {
                let number = number(reader)?;
                let wanted = reader.attributes()?;
                let Some(Handle::File(file)) = self.handles.get(&number) else {
                    return Err(Errno::BADF.into());
                };
                self.tree.change_file(file, &wanted)?;
                ok(id)
            }
        }
    }

    fn add(&mut self, id: u32, handle: Handle) -> Answer {
        if self.handles.len() >= HANDLES {
            return Err(Failure::Status(status::FAILURE, "too many open files"));
        }
        while self.handles.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.handles.insert(number, handle);
        Ok(Writer::new(kind::HANDLE, id).string(&number.to_be_bytes()))
    }

    fn handle(&mut self, reader: &mut Reader<'_>) -> Result<&mut Handle, Failure> {
        self.handles.get_mut(&number(reader)?).ok_or(Errno::BADF.into())
    }

    fn file(&mut self, reader: &mut Reader<'_>) -> Result<&File, Failure> {
        match self.handle(reader)? {
            Handle::File(file) => Ok(file),
            Handle::Folder { .. } => Err(Errno::ISDIR.into()),
        }
    }

    fn extended(&mut self, id: u32, reader: &mut Reader<'_>) -> Answer {
        match reader.string()? {
            b"posix-rename@openssh.com" => {
                let (old, new) = self.two_names(reader)?;
                fs::rename(old, new)?;
                ok(id)
            }
            b"hardlink@openssh.com" => {
                let (old, new) = self.two_names(reader)?;
                fs::hard_link(old, new)?;
                ok(id)
            }
            b"fsync@openssh.com" => {
                self.file(reader)?.sync_all()?;
                ok(id)
            }
            b"statvfs@openssh.com" => {
                let found = self.tree.find(&path(reader)?)?;
                Ok(disk(id, &rustix::fs::statvfs(&*found)?))
            }
            b"fstatvfs@openssh.com" => match self.handle(reader)? {
                Handle::File(file) => Ok(disk(id, &rustix::fs::fstatvfs(file)?)),
                Handle::Folder { path, .. } => Ok(disk(id, &rustix::fs::statvfs(&**path)?)),
            },
            b"lsetstat@openssh.com" => {
                self.tree.change(&path(reader)?, &reader.attributes()?, false)?;
                ok(id)
            }
            b"limits@openssh.com" => {
                let [packet, chunk, handles] = [PACKET, CHUNK, HANDLES].map(|most| most as u64);
                let reply = Writer::new(kind::EXTENDED_REPLY, id);
                Ok(reply.u64(packet).u64(chunk).u64(chunk).u64(handles))
            }
            _ => Err(Failure::Status(status::OP_UNSUPPORTED, "unknown extension")),
        }
    }

    fn with_paths(&self, kind: u8, id: u32, reader: &mut Reader<'_>) -> Answer {
        let tree = &self.tree;
        match kind {
            kind::STAT => {
                let found = fs::metadata(tree.find(&path(reader)?)?)?;
                return Ok(Writer::new(kind::ATTRS, id).attributes(&found));
            }
            kind::LSTAT => {
                let found = fs::symlink_metadata(tree.name(&path(reader)?)?)?;
                return Ok(Writer::new(kind::ATTRS, id).attributes(&found));
            }
            kind::READLINK => {
                return Ok(one_name(id, &fs::read_link(tree.name(&path(reader)?)?)?));
            }
            kind::REALPATH => return Ok(one_name(id, &tree.real_path(&path(reader)?)?)),
            kind::SETSTAT => tree.change(&path(reader)?, &reader.attributes()?, true)?,
            kind::REMOVE => files::remove(&tree.name(&path(reader)?)?)?,
            kind::MKDIR => {
                let (path, wanted) = (path(reader)?, reader.attributes()?);
                let mode = tree.new_mode(wanted.mode.unwrap_or(0o777));
                fs::DirBuilder::new().mode(mode).create(tree.name(&path)?)?;
            }
            kind::RMDIR => fs::remove_dir(tree.name(&path(reader)?)?)?,
            kind::RENAME => {
                let (old, new) = self.two_names(reader)?;
                files::rename(&old, &new)?;
            }
            // OpenSSH has these two the other way round than the draft, and all clients follow.
            kind::SYMLINK => {
                let (target, link) = (path(reader)?, path(reader)?);
                tree.check_target(&target)?;
                std::os::unix::fs::symlink(target, tree.name(&link)?)?;
            }
            _ => return Err(Failure::Status(status::OP_UNSUPPORTED, "unknown request")),
        }
        ok(id)
    }

    /// What is to have another name, and that name.
    fn two_names(&self, reader: &mut Reader<'_>) -> Result<(Found, Found), Failure> {
        let (old, new) = (self.tree.name(&path(reader)?)?, self.tree.name(&path(reader)?)?);
        self.tree.check_move(&old, &new)?;
        Ok((old, new))
    }
}

fn ok(id: u32) -> Answer {
    Ok(status_of(id, status::OK, ""))
}

fn path(reader: &mut Reader<'_>) -> Result<PathBuf, Malformed> {
    let name = reader.string()?;
    Ok(PathBuf::from(OsStr::from_bytes(if name.is_empty() { b"." } else { name })))
}

fn number(reader: &mut Reader<'_>) -> Result<u32, Failure> {
    let handle = reader.string()?;
    handle.try_into().map(u32::from_be_bytes).map_err(|_| Errno::BADF.into())
}

fn list(id: u32, folder: &Path, entries: &mut ReadDir) -> Answer {
    let mut names = Vec::new();
    let mut size = 0;
    while size < LISTING {
        let Some(entry) = entries.next() else { break };
        let name = entry?.file_name();
        // It may be gone by now.
        if let Ok(found) = fs::symlink_metadata(folder.join(&name)) {
            size += 2 * name.len() + 64;
            names.push((name, found));
        }
    }
    if names.is_empty() {
        return Err(Failure::Status(status::EOF, "no more names"));
    }
    let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
    let packet = Writer::new(kind::NAME, id).u32(count);
    Ok(names.iter().fold(packet, |packet, (name, found)| {
        packet.string(name.as_bytes()).string(&files::long_name(name, found)).attributes(found)
    }))
}

fn one_name(id: u32, path: &Path) -> Writer {
    let name = path.as_os_str().as_bytes();
    // Attributes that say nothing.
    Writer::new(kind::NAME, id).u32(1).string(name).string(name).u32(0)
}

fn disk(id: u32, found: &StatVfs) -> Writer {
    let numbers = [
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid,
        // Read-only, and without set-user-id: as the extension has them.
        found.f_flag.bits() & 3,
        found.f_namemax,
    ];
    numbers.into_iter().fold(Writer::new(kind::EXTENDED_REPLY, id), Writer::u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// The type and the body of the answer to a request.
    fn ask(server: &mut Server, request: Writer) -> (u8, Vec<u8>) {
        let packet = request.finish();
        let answer = server.answer(&packet[4..]).finish();
        assert_eq!(answer[5..9], packet[5..9], "the id of the request");
        (answer[4], answer[9..].to_vec())
    }

    fn code((kind, body): (u8, Vec<u8>)) -> u32 {
        assert_eq!(kind, kind::STATUS);
        Reader(&body).u32().unwrap()
    }

    fn request(kind: u8) -> Writer {
        Writer::new(kind, 0x0102_0304)
    }

    fn handle((kind, body): (u8, Vec<u8>)) -> Vec<u8> {
        assert_eq!(kind, kind::HANDLE);
        Reader(&body).string().unwrap().to_vec()
    }

    fn name(path: &Path) -> &[u8] {
        path.as_os_str().as_bytes()
    }

    #[test]
    fn file_is_written_read_changed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OsStr::from_bytes(b"\xff\xfe"));
        let mut server = Server::of_machine();
        let open = request(kind::OPEN).string(name(&path)).u32(1 | 2 | 8 | 32).u32(4).u32(0o600);
        let file = handle(ask(&mut server, open));
        let write = request(kind::WRITE).string(&file).u64(3).string(b"data");
        assert_eq!(code(ask(&mut server, write)), status::OK);
        let read = request(kind::READ).string(&file).u64(2).u32(u32::MAX);
        let (kind, body) = ask(&mut server, read);
        assert_eq!((kind, Reader(&body).string().unwrap()), (kind::DATA, &b"\0data"[..]));
        let read = request(kind::READ).string(&file).u64(7).u32(10);
        assert_eq!(code(ask(&mut server, read)), status::EOF);
        let change =
            request(kind::FSETSTAT).string(&file).u32(1 | 4 | 8).u64(5).u32(0o640).u32(1).u32(2);
        assert_eq!(code(ask(&mut server, change)), status::OK);
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.size(), found.mode() & 0o777, found.mtime()), (5, 0o640, 2));
        assert_eq!(code(ask(&mut server, request(kind::CLOSE).string(&file))), status::OK);
        assert_eq!(
            code(ask(&mut server, request(kind::CLOSE).string(&file))),
            status::NO_SUCH_FILE
        );
        assert_eq!(code(ask(&mut server, request(kind::REMOVE).string(name(&path)))), status::OK);
        assert!(!path.exists());
    }

    #[test]
    fn rename_of_the_third_version_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "old").unwrap();
        fs::write(&new, "new").unwrap();
        let mut server = Server::of_machine();
        let rename = request(kind::RENAME).string(name(&old)).string(name(&new));
        assert_eq!(code(ask(&mut server, rename)), status::FAILURE);
        let extension = b"posix-rename@openssh.com";
        let rename =
            request(kind::EXTENDED).string(extension).string(name(&old)).string(name(&new));
        assert_eq!(code(ask(&mut server, rename)), status::OK);
        assert_eq!(fs::read(&new).unwrap(), b"old");
    }

    #[test]
    fn folder_is_listed_in_several_answers() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..500 {
            fs::write(folder.path().join(format!("file-{number}")), "").unwrap();
        }
        let mut server = Server::of_machine();
        let open = request(kind::OPENDIR).string(name(folder.path()));
        let handle = handle(ask(&mut server, open));
        let (mut names, mut answers) = (0, 0);
        loop {
            let (kind, body) = ask(&mut server, request(kind::READDIR).string(&handle));
            if kind == kind::STATUS {
                break;
            }
            assert!(body.len() < 2 * LISTING);
            names += Reader(&body).u32().unwrap();
            answers += 1;
        }
        assert_eq!(names, 500);
        assert!(answers > 1);
    }

    #[test]
    fn handles_are_bounded_and_foreign_ones_are_refused() {
        let mut server = Server::of_machine();
        let mut open = || ask(&mut server, request(kind::OPENDIR).string(b"/"));
        for _ in 0..HANDLES {
            assert_eq!(open().0, kind::HANDLE);
        }
        assert_eq!(code(open()), status::FAILURE);
        for wrong in [&b""[..], b"1234", b"12345"] {
            let read = request(kind::READ).string(wrong).u64(0).u32(1);
            assert_eq!(code(ask(&mut server, read)), status::NO_SUCH_FILE);
        }
    }

    #[test]
    fn reader_of_a_folder_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "text").unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        let mut server = Server::of_folder(folder.path(), false).unwrap();
        let open = |flags| request(kind::OPEN).string(b"/file").u32(flags).u32(0);
        let file = handle(ask(&mut server, open(1)));
        let (kind, body) = ask(&mut server, request(kind::READ).string(&file).u64(0).u32(u32::MAX));
        assert_eq!((kind, Reader(&body).string().unwrap()), (kind::DATA, &b"text"[..]));
        let extension = |name: &[u8]| request(kind::EXTENDED).string(name);
        let mut refused = vec![
            request(kind::WRITE).string(&file).u64(0).string(b"no"),
            request(kind::FSETSTAT).string(&file).u32(4).u32(0o777),
            request(kind::SETSTAT).string(b"/file").u32(4).u32(0o777),
            request(kind::REMOVE).string(b"/file"),
            request(kind::MKDIR).string(b"/new").u32(0),
            request(kind::RMDIR).string(b"/inner"),
            request(kind::RENAME).string(b"/file").string(b"/new"),
            request(kind::SYMLINK).string(b"file").string(b"/new"),
            extension(b"posix-rename@openssh.com").string(b"/file").string(b"/new"),
            extension(b"hardlink@openssh.com").string(b"/file").string(b"/new"),
            extension(b"lsetstat@openssh.com").string(b"/file").u32(4).u32(0o777),
            extension(b"of-tomorrow@openssh.com"),
            request(99),
        ];
        // All ways to open but to read.
        refused.extend((0..64).filter(|flags| *flags != 1).map(open));
        for packet in refused {
            assert_eq!(code(ask(&mut server, packet)), status::PERMISSION_DENIED);
        }
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"text");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn every_packet_of_random_bytes_has_an_answer() {
        // Numbers of a linear congruence: the same in every run.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let mut server = Server::of_machine();
        for _ in 0..20_000 {
            let mut packet: Vec<u8> = (0..next() % 40).map(|_| next() % 24).collect();
            // Without the requests that could change something here.
            if let Some(kind) =
                packet.first_mut().filter(|kind| matches!(**kind, 3 | 9 | 13..=15 | 18 | 20))
            {
                *kind = kind::STAT;
            }
            assert!(server.answer(&packet).finish().len() >= 9);
        }
    }

    #[test]
    fn giant_packet_ends_the_stream() {
        for length in [0, 1 << 18 | 1, u32::MAX] {
            let mut out = Vec::new();
            let done = Server::of_machine().serve(&mut &length.to_be_bytes()[..], &mut out);
            assert!(done.unwrap_err().to_string().contains("packet of"), "{length}");
        }
        assert!(Server::of_machine().serve(&mut &b""[..], &mut Vec::new()).is_ok());
    }
}
