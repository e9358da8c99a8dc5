"""`vsock-sshd --sftp --folder`, the SFTP server of shares, against clients that want what is outside of the folder.

The clients say what they like, as a guest's sshfs would never do; the server is the real one, in its sandbox.
"""

import errno
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vsock.ssh.guest_server import server_path

SECONDS = 30
MIB = 1 << 20

OPEN, CLOSE, READ, WRITE, LSTAT, SETSTAT, OPENDIR, READDIR = 3, 4, 5, 6, 7, 9, 11, 12
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK, EXTENDED = *range(13, 21), 200
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
OK, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 0, 2, 3, 4
TO_READ, TO_WRITE, CREATE, TRUNCATE = 1, 2, 8, 16
NOTHING = struct.pack(">I", 0)
"""Attributes that say nothing."""


def text(data: bytes | str) -> bytes:
    """A string of SFTP."""
    data = os.fsencode(data)
    return struct.pack(">I", len(data)) + data


def mode(bits: int) -> bytes:
    """Attributes with a mode."""
    return struct.pack(">II", 4, bits)


class Client:
    """A client (draft-ietf-secsh-filexfer-02) of a server of its own."""

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(SECONDS)
        order: list[str | Path] = [server_path(), "--sftp", "--folder", folder]
        if writable:
            order.append("--writable")
        self.process = subprocess.Popen(
            order, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE, text=True
        )
        theirs.close()
        self.say(struct.pack(">IBI", 5, 1, 3))
        self._packet()

    def say(self, data: bytes) -> None:
        """Send whatever bytes."""
        self._socket.sendall(data)

    def say_all_that_fits(self, data: bytes) -> int:
        """Send it again and again, and read no answer; returns how many bytes the server has taken, and the socket."""
        sent = 0
        while sent < 64 * MIB and select.select([], [self._socket], [], 1.0)[1]:
            self._socket.setblocking(False)
            with suppress(BlockingIOError):
                sent += self._socket.send(data[sent % len(data) :])
            self._socket.settimeout(SECONDS)
        return sent

    def ask(self, kind: int, *parts: bytes) -> tuple[int, bytes]:
        """The type and the body of the answer to a request."""
        body = struct.pack(">BI", kind, 7) + b"".join(parts)
        self.say(struct.pack(">I", len(body)) + body)
        answer = self._packet()
        assert answer[1:5] == struct.pack(">I", 7)
        return answer[0], answer[5:]

    def code(self, kind: int, *parts: bytes) -> int:
        """How a request ended; OK if it is answered with more than that."""
        answer, body = self.ask(kind, *parts)
        return int(struct.unpack_from(">I", body)[0]) if answer == STATUS else OK

    def extended(self, name: str, *parts: bytes) -> int:
        """The same for an extension of OpenSSH's."""
        return self.code(EXTENDED, text(f"{name}@openssh.com"), *parts)

    def handle(self, kind: int, *parts: bytes) -> bytes:
        """The handle of what was opened."""
        answer, body = self.ask(kind, *parts)
        assert answer == HANDLE, body
        return body

    def read(self, path: bytes | str) -> bytes | int:
        """The first bytes of a file, or why it could not be opened."""
        answer, body = self.ask(OPEN, text(path), struct.pack(">I", TO_READ), NOTHING)
        if answer != HANDLE:
            return int(struct.unpack_from(">I", body)[0])
        _, data = self.ask(READ, body, struct.pack(">QI", 0, 1000))
        self.ask(CLOSE, body)
        return data[4:]

    def create(self, path: bytes | str) -> int:
        """How opening a file to write it ended, which is made if it is not there."""
        answer, body = self.ask(OPEN, text(path), struct.pack(">I", TO_WRITE | CREATE), NOTHING)
        if answer == HANDLE:
            assert self.code(WRITE, body, struct.pack(">Q", 0), text("by a guest")) == OK
            return self.code(CLOSE, body)
        return int(struct.unpack_from(">I", body)[0])

    def end(self) -> None:
        """End it."""
        self._socket.close()
        self.process.kill()
        self.process.communicate(timeout=SECONDS)

    def _packet(self) -> bytes:
        (length,) = struct.unpack(">I", self._exactly(4))
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise EOFError(self.process.communicate(timeout=SECONDS)[1])
            data += piece
        return data


@contextmanager
def client(folder: Path, *, writable: bool = True) -> Iterator[Client]:
    """A client until the end of the block; the server has said nothing on standard error until then."""
    one = Client(folder, writable=writable)
    try:
        yield one
        one.process.kill()
        assert one.process.stderr
        assert one.process.stderr.read() == ""
    finally:
        one.end()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder; `secret` and `outside/file` are beside it."""
    (tmp_path / "in/inner").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for name in ("in/file", "in/inner/file"):
        (tmp_path / name).write_text("of the folder")
    for name in ("secret", "outside/file"):
        (tmp_path / name).write_text("of the host")
        (tmp_path / name).chmod(0o600)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def nothing_changes_outside(folder: Path) -> Iterator[None]:
    """Whatever a test does in the folder."""
    yield
    outside = folder.parent
    assert sorted(os.listdir(outside / "outside")) == ["file"]  # noqa: PTH208 - names
    assert {"secret", "outside", "in"} <= set(os.listdir(outside))  # noqa: PTH208 - names
    for name in ("secret", "outside/file"):
        assert (outside / name).read_text() == "of the host"
        assert (outside / name).stat().st_mode & 0o777 == 0o600


def ways_out(folder: Path) -> list[str]:
    """Names of files outside, some by links that were in the folder before."""
    (folder / "absolute").symlink_to(folder.parent / "secret")
    (folder / "up").symlink_to("../secret")
    (folder / "above").symlink_to("..")
    (folder / "magic").symlink_to("/proc/self/root")
    (folder / "descriptor").symlink_to("/proc/self/fd/0")
    (folder / "chain").symlink_to("inner/link")
    (folder / "inner/link").symlink_to("../above/secret")
    (folder / "dangling").symlink_to("../new")
    return [
        "../secret",
        "/../secret",
        "/..//../secret",
        "inner/../../secret",
        "./inner/./../../outside/file",
        "absolute",
        "up",
        "above/secret",
        "above/in/file",
        "magic/etc/passwd",
        "descriptor",
        "chain",
        "dangling",
        f"..{folder.parent}/secret",
        "/proc/self/cwd/file",
        str(folder.parent / "secret"),
    ]


def test_files_outside_are_neither_read_nor_written_nor_changed(folder: Path) -> None:
    """Whatever names and links lead there: dots, absolute links, links to links, those of /proc."""
    with client(folder) as guest:
        for path in ways_out(folder):
            assert guest.read(path) in (NO_SUCH_FILE, PERMISSION_DENIED), path
            assert guest.create(path) != OK or (folder / path.lstrip("/")).exists(), path
            for refused in (
                guest.code(STAT, text(path)),
                guest.code(SETSTAT, text(path), mode(0o777)),
                guest.code(SETSTAT, text(path), struct.pack(">IQ", 1, 0)),
                guest.code(OPENDIR, text(path)),
                guest.extended("statvfs", text(path)),
            ):
                assert refused != OK, path
        assert guest.read("file") == b"of the folder"


def test_names_outside_are_neither_made_nor_removed_nor_moved(folder: Path) -> None:
    """Nor linked to: a hard link in the folder would be the file itself."""
    ways_out(folder)
    with client(folder) as guest:
        for path in ("..", "/..", "inner/../..", "above/..", "magic/.."):
            assert guest.code(LSTAT, text(path)) == PERMISSION_DENIED
            assert guest.code(RENAME, text(path), text("taken")) == PERMISSION_DENIED
            assert guest.code(RMDIR, text(path)) == PERMISSION_DENIED
        for path in ("../secret", "/../secret", "above/secret", "inner/../../secret", "magic/tmp"):
            for refused in (
                guest.code(REMOVE, text(path)),
                guest.code(RMDIR, text(path)),
                guest.code(LSTAT, text(path)),
                guest.code(READLINK, text(path)),
                guest.code(MKDIR, text(f"{path}.new"), NOTHING),
                guest.code(RENAME, text(path), text("taken")),
                guest.code(RENAME, text("file"), text(f"{path}.new")),
                guest.extended("posix-rename", text(path), text("taken")),
                guest.extended("posix-rename", text("file"), text(path)),
                guest.extended("hardlink", text(path), text("taken")),
                guest.extended("hardlink", text("file"), text(f"{path}.new")),
                guest.code(SYMLINK, text("file"), text(f"{path}.new")),
                guest.extended("lsetstat", text(path), mode(0o777)),
            ):
                assert refused == PERMISSION_DENIED, path
        # A link is linked to, moved and removed as a link.
        assert guest.extended("hardlink", text("absolute"), text("linked")) == OK
        assert (folder / "linked").is_symlink()
        assert guest.code(RENAME, text("linked"), text("moved")) == OK
        assert guest.read("moved") == PERMISSION_DENIED
        assert guest.code(REMOVE, text("moved")) == OK


def test_links_out_are_not_made(folder: Path) -> None:
    """Programs of the host would follow them; one that stays inside is made."""
    with client(folder) as guest:
        for target in ("/etc/passwd", "../secret", "inner/../../secret", ".."):
            assert guest.code(SYMLINK, text(target), text("link")) == PERMISSION_DENIED
        assert guest.code(SYMLINK, text("inner/file"), text("link")) == OK
        assert guest.read("link") == b"of the folder"
        assert (folder / "link").readlink() == Path("inner/file")


def test_link_that_is_harmless_where_it_is_does_not_become_one_that_leads_out(folder: Path) -> None:
    """By no request that gives it a name in another folder; it may have another one beside the old."""
    (folder / "inner/link").symlink_to("../secret")
    (folder / "inner/plain").symlink_to("file")
    with client(folder) as guest:
        for name in ("log", "inner/../log"):
            link = text("inner/link")
            assert guest.code(RENAME, link, text(name)) == PERMISSION_DENIED
            assert guest.extended("posix-rename", link, text(name)) == PERMISSION_DENIED
            assert guest.extended("hardlink", link, text(name)) == PERMISSION_DENIED
        assert not (folder / "log").is_symlink()
        assert guest.code(RENAME, text("inner/link"), text("inner/other")) == OK
        assert guest.extended("posix-rename", text("inner/plain"), text("log")) == OK
        assert (folder / "log").readlink() == Path("file")


def test_program_with_set_user_id_loses_it_when_it_is_written_to(folder: Path) -> None:
    """Also if the server is root, and the file was open before it had the mode."""
    program = folder / "file"
    with client(folder) as guest:
        handle = guest.handle(OPEN, text("file"), struct.pack(">I", TO_WRITE), NOTHING)
        changes = (
            lambda: guest.code(WRITE, handle, struct.pack(">Q", 0), text("by a guest")),
            lambda: guest.create("file"),
            lambda: guest.code(SETSTAT, text("file"), struct.pack(">IQ", 1, 3)),
            lambda: guest.code(OPEN, text("file"), struct.pack(">I", TO_WRITE | TRUNCATE), NOTHING),
        )
        for number, change in enumerate(changes):
            program.chmod(0o6755)
            assert change() == OK
            assert program.stat().st_mode & 0o7777 == 0o755, number


def test_race_of_a_folder_against_a_link_is_not_won(folder: Path) -> None:
    """One client exchanges a folder and a link that leads out, while another uses names below both."""
    (folder / "link").symlink_to("../outside")
    is_over = threading.Event()

    def exchange() -> None:
        with client(folder) as other:
            while not is_over.is_set():
                for old, new in (("inner", "away"), ("link", "inner")):
                    assert other.extended("posix-rename", text(old), text(new)) == OK
                for old, new in (("inner", "link"), ("away", "inner")):
                    assert other.extended("posix-rename", text(old), text(new)) == OK

    thread = threading.Thread(target=exchange)
    thread.start()
    outcomes = {OK: 0, PERMISSION_DENIED: 0}
    try:
        with client(folder) as guest:
            end = time.monotonic() + 10
            while min(outcomes.values()) < 200 and time.monotonic() < end:
                found = guest.read("inner/file")
                code = found if isinstance(found, int) else OK
                assert found in (b"of the folder", NO_SUCH_FILE, PERMISSION_DENIED)
                outcomes[code] = outcomes.get(code, 0) + 1
                guest.create("inner/new")
                guest.code(SETSTAT, text("inner/file"), mode(0o644))
                guest.extended("lsetstat", text("inner/file"), mode(0o644))
                guest.code(MKDIR, text("inner/folder"), NOTHING)
                guest.code(RENAME, text("inner/folder"), text("inner/other"))
                guest.code(RMDIR, text("inner/other"))
    finally:
        is_over.set()
        thread.join(SECONDS)
    assert min(outcomes[OK], outcomes[PERMISSION_DENIED]) > 0, outcomes


def test_reader_changes_nothing(folder: Path) -> None:
    """The server refuses, and so does Landlock; everything can be read."""
    (folder / "link").symlink_to("inner/file")
    before = described(folder)
    with client(folder, writable=False) as guest:
        assert guest.read("link") == b"of the folder"
        assert guest.create("file") == PERMISSION_DENIED
        assert guest.create("new") == PERMISSION_DENIED
        for flags in range(2, 64):
            refused = guest.code(OPEN, text("file"), struct.pack(">I", flags), NOTHING)
            assert refused == PERMISSION_DENIED
        for refused in (
            guest.code(SETSTAT, text("file"), mode(0o777)),
            guest.code(REMOVE, text("file")),
            guest.code(MKDIR, text("new"), NOTHING),
            guest.code(RMDIR, text("inner")),
            guest.code(RENAME, text("file"), text("new")),
            guest.code(SYMLINK, text("file"), text("new")),
            guest.extended("posix-rename", text("file"), text("new")),
            guest.extended("hardlink", text("file"), text("new")),
            guest.extended("lsetstat", text("file"), mode(0o777)),
            guest.code(99),
        ):
            assert refused == PERMISSION_DENIED
    assert described(folder) == before


def described(folder: Path) -> dict[str, tuple[int, int, int]]:
    """The mode, size and time of all that is in a folder."""
    found = {str(path): path.lstat() for path in folder.rglob("*")}
    return {path: (one.st_mode, one.st_size, one.st_mtime_ns) for path, one in found.items()}


def test_devices_and_fifos_are_not_opened(folder: Path) -> None:
    """Opening alone would wait for ever, or do something to the device; modes have no setuid, and owners stay."""
    os.mkfifo(folder / "fifo")
    with suppress(PermissionError):
        os.mknod(folder / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with client(folder) as guest:
        for name in ("fifo", *(["device"] if (folder / "device").exists() else [])):
            assert guest.read(name) == PERMISSION_DENIED
            assert guest.create(name) == PERMISSION_DENIED
            truncated = guest.code(SETSTAT, text(name), struct.pack(">IQ", 1, 0))
            assert truncated == PERMISSION_DENIED
        assert guest.code(SETSTAT, text("file"), mode(0o104777)) == OK
        assert (folder / "file").stat().st_mode & 0o7777 == 0o777
        new = struct.pack(">I", TO_WRITE | CREATE)
        guest.handle(OPEN, text("new"), new, mode(0o106755))
        assert (folder / "new").stat().st_mode & 0o7000 == 0
        assert guest.code(MKDIR, text("made"), mode(0o7777)) == OK
        assert (folder / "made").stat().st_mode & 0o7000 == 0
        owners = struct.pack(">III", 2, os.getuid() + 1, os.getgid())
        assert guest.code(SETSTAT, text("file"), owners) == PERMISSION_DENIED


def test_handles_and_memory_are_bounded(folder: Path) -> None:
    """A client that closes nothing has an error; one that announces a giant packet, or reads nothing, has no more."""
    for number in range(2000):
        (folder / f"{number:0200}").touch()
    with client(folder) as guest:
        opened = 0
        while guest.code(OPEN, text("file"), struct.pack(">I", TO_READ), NOTHING) == OK:
            opened += 1
            assert opened < 5000
        assert opened >= 100
        listing = guest.code(OPENDIR, text("/"))
        assert listing == FAILURE
    with client(folder) as guest:
        listed = guest.handle(OPENDIR, text("/"))
        body = struct.pack(">BI", READDIR, 7) + listed
        request = struct.pack(">I", len(body)) + body
        sent = guest.say_all_that_fits(request * 1000)
        assert sent < 4 * MIB
        assert memory(guest.process.pid) < 16 * MIB


def memory(pid: int) -> int:
    """Bytes of a process that are resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("packet", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xffabc"])
def test_packet_of_an_impossible_length_ends_the_server(folder: Path, packet: bytes) -> None:
    """With a line for the host's user."""
    one = Client(folder, writable=True)
    try:
        one.say(packet)
        _, said = one.process.communicate(timeout=SECONDS)
        assert (one.process.returncode, said.count("\n")) == (1, 1)
        assert "the client sends a packet of" in said
    finally:
        one.end()


def test_server_is_in_a_sandbox(folder: Path) -> None:
    """No new privileges, a filter for system calls; what Landlock does is tested in crates/sandbox."""
    with client(folder) as guest:
        status = Path(f"/proc/{guest.process.pid}/status").read_text()
        assert "NoNewPrivs:\t1\n" in status
        assert "Seccomp:\t2\n" in status


def test_server_ends_with_who_has_started_it(folder: Path) -> None:
    """Also if that was killed, and the connection with the guest is still open."""
    ours, theirs = socket.socketpair()
    program = (
        "import subprocess, sys, time\n"
        "process = subprocess.Popen(sys.argv[1:], stdin=0, stdout=0)\n"
        "print(process.pid, file=sys.stderr, flush=True)\n"
        "time.sleep(1000)\n"
    )
    order: list[str | Path] = [sys.executable, "-c", program, server_path(), "--sftp"]
    order += ["--folder", folder]
    with (
        ours,
        theirs,
        subprocess.Popen(order, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True) as parent,
    ):
        try:
            assert parent.stderr
            server = os.pidfd_open(int(parent.stderr.readline()))
            ours.settimeout(SECONDS)
            ours.sendall(struct.pack(">IBI", 5, 1, 3))
            assert ours.recv(1)
            parent.kill()
            end = time.monotonic() + SECONDS
            while not has_ended(server):
                assert time.monotonic() < end
                time.sleep(0.02)
            os.close(server)
        finally:
            parent.kill()


def has_ended(process: int) -> bool:
    """Whether the process of a pidfd is gone."""
    return bool(select.select([process], [], [], 0)[0])


def test_folder_that_is_none_is_a_line(tmp_path: Path) -> None:
    """And the exit code of a failure; a link may be what the client of another share has made of the folder."""
    (tmp_path / "link").symlink_to("/etc")
    for path, reason in (
        (Path("/proc/sys"), None),
        (tmp_path / "no", errno.ENOENT),
        (Path("/etc/passwd"), errno.ENOTDIR),
        (tmp_path / "link", errno.ELOOP),
        (tmp_path / "link/ssh", errno.ELOOP),
    ):
        order: list[str | Path] = [server_path(), "--sftp", "--folder", path]
        done = subprocess.run(order, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 1
        said = (
            os.strerror(reason) if reason else "its files stand for processes, and are not shared"
        )
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
