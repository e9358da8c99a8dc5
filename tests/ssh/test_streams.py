"""Large files of copies over a plain connection pass as streams: all that other files keep is kept, and guests may lie.

The userspace guest's program is its python3, as it is where coreutils have no `cksum -a crc32b`. In
`tests/guests/test_cp.py` it is Debian's dd and cksum.
"""

import fcntl
import os
import random
import signal
import socket
import sys
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest
from tests.programs import find
from tests.ssh.server import SshServer
from tests.ssh.sftp_program import install
from tests.ssh.test_copying import names_in
from tests.ssh.test_plain import replace
from tests.waiting import until

import vsock
from vsock.errors import CopyError, SessionError
from vsock.guest import Guest
from vsock.ssh.copying import connection
from vsock.ssh.copying.digests import SEGMENT
from vsock.ssh.copying.sides import CHUNK, WINDOW
from vsock.ssh.copying.stream_programs import PIECE
from vsock.ssh.copying.streams import STREAM_FROM, fill
from vsock.ssh.identity import Identity

pytestmark = pytest.mark.programs("perl")

SIZE: Final = STREAM_FROM + 3 * CHUNK + 5
DEADLINE: Final = 30.0
LITTLE: Final = 3 * CHUNK
"""Bytes that pass by SFTP at most: so the others have passed by a stream."""

CHANGED = """
import os, sys
python, flags, c, code = sys.argv
assert {old!r} in code
os.execv({python!r}, [{python!r}, flags, c, code.replace({old!r}, {new!r})])
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs of the guest; its dd is of no use."""
    folder = install(tmp_path / "programs", LITTLE)
    replace(folder, "dd", "raise SystemExit(1)")
    (folder / "python3").symlink_to(sys.executable)
    return folder


@pytest.fixture
def sshd(guest: Guest, programs: Path) -> Iterator[SshServer]:
    """An SSH server in alpha, with these programs."""
    with SshServer(guest, Identity.of_user().public_key(), programs=programs) as running:
        yield running


def change(programs: Path, old: str, new: str) -> None:
    """Let the guest's program do something else; its code is changed when it is started."""
    python = str(Path(sys.executable))
    (programs / "python3").unlink(missing_ok=True)
    replace(programs, "python3", CHANGED.format(old=old, new=new, python=python))


def data_of(size: int) -> bytes:
    """The same each time."""
    return random.Random(size).randbytes(size)


def make_files(folder: Path) -> None:
    """Of which a stream carries each."""
    folder.mkdir()
    for number, name in enumerate((b"a b", b"\xff'$x", b"-of=x")):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.write_bytes(data_of(SIZE + number))
        path.chmod(0o640)
        os.utime(path, (1_000_000_000, 1_000_000_000))


async def test_several_files_pass_by_one_stream(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """Their names are bytes; mode and time are kept."""
    ready = 'put(1,b"ready\\n")'
    change(programs, ready, f'open("{here}/opened","a").write("x"); {ready}')
    make_files(here / "tree")
    async with vsock.guest_session("alpha") as guest:
        assert (await guest.copy_in(here / "tree", str(there))).over_ssh == ()
        assert (here / "opened").read_text() == "x"
        assert (await guest.copy_out(f"{there}/tree", here / "back")).over_ssh == ()
    assert (here / "opened").read_text() == "xx"
    for path in (here / "tree").iterdir():
        for copy in (there / "tree" / path.name, here / "back" / path.name):
            assert copy.read_bytes() == path.read_bytes()
            assert copy.stat().st_mode & 0o777 == 0o640
            assert copy.stat().st_mtime == 1_000_000_000


async def test_holes_stay_holes(sshd: SshServer, here: Path, there: Path) -> None:
    """Those of the guest's files, of which a stream brings the zeros."""
    with (there / "sparse").open("wb") as file:
        file.write(data_of(CHUNK))
        file.seek(3 * STREAM_FROM)
        file.write(data_of(CHUNK))
        file.truncate(4 * STREAM_FROM)
    async with vsock.guest_session("alpha") as guest:
        await guest.copy_out(f"{there}/sparse", here)
    assert (here / "sparse").read_bytes() == (there / "sparse").read_bytes()
    assert (here / "sparse").stat().st_blocks * 512 < STREAM_FROM


async def test_guest_without_such_a_program_is_copied_to_by_sftp(
    guest: Guest, programs: Path, here: Path, there: Path
) -> None:
    """Over the same plain connection."""
    install(programs)
    for name in ("sh", "grep", "perl"):
        (programs / name).symlink_to(str(find(name)))
    (programs / "python3").unlink()
    (here / "file").write_bytes(data_of(SIZE))
    with SshServer(guest, Identity.of_user().public_key(), programs=programs, has_only=True):
        async with vsock.guest_session("alpha") as session:
            assert (await session.copy_in(here / "file", str(there))).over_ssh == ()
            assert (await session.copy_out(f"{there}/file", here / "back")).over_ssh == ()
    assert (here / "back").read_bytes() == data_of(SIZE)


@pytest.mark.parametrize(
    ("end", "how"), [("os._exit(1)", "exit status 1"), ("os.kill(os.getpid(),9)", "signal 9")]
)
@pytest.mark.parametrize("way", ["in", "out"])
async def test_program_that_ends_leaves_a_part_with_which_resume_goes_on(
    sshd: SshServer, programs: Path, here: Path, there: Path, way: str, end: str, how: str
) -> None:
    """It does not say why. What has come stays as a part, and only the rest passes again."""
    data = data_of(SIZE + STREAM_FROM)
    source, target = (here, there) if way == "in" else (there, here)
    (source / "file").write_bytes(data)
    change(programs, "put(o,b[:n]);", f"put(o,b[:n]); left<{STREAM_FROM} and {end};")
    async with vsock.guest_session("alpha") as guest:
        copy = guest.copy_in if way == "in" else guest.copy_out
        with pytest.raises(CopyError) as caught:
            await copy(f"{source}/file", f"{target}/file")
    (line,) = caught.value.failures
    assert line == (
        f"alpha:{there}/file: the guest's program ended during the copy ({how}); "
        "another one with --resume goes on from there"
    )
    (part,) = target.iterdir()
    assert part.name.startswith(".file.")
    least = part.stat().st_size - WINDOW - CHUNK
    assert least > STREAM_FROM // 2
    install(programs)  # to compare the part is by SFTP
    most = len(data) - least
    change(programs, "length=int(length)", f"length=int(length); assert length<={most}")
    async with vsock.guest_session("alpha") as guest:
        copy = guest.copy_in if way == "in" else guest.copy_out
        await copy(f"{source}/file", f"{target}/file", resume=True)
    assert names_in(target) == {"file"}
    assert (target / "file").read_bytes() == data


@pytest.mark.parametrize("way", ["in", "out"])
async def test_file_that_is_not_the_same_is_found_out(
    sshd: SshServer, programs: Path, here: Path, there: Path, way: str
) -> None:
    """A byte is another one on the way; the old file stays, unless nothing is to be compared."""
    change(programs, "put(o,b[:n])", "b[0]^=o>2 or i>0; put(o,b[:n]); b[0]^=i>0")
    source, target = (here, there) if way == "in" else (there, here)
    (source / "file").write_bytes(data_of(SIZE))
    (target / "file").write_text("old")
    async with vsock.guest_session("alpha") as guest:
        copy = guest.copy_in if way == "in" else guest.copy_out
        with pytest.raises(CopyError, match="what was written is not what was read"):
            await copy(f"{source}/file", str(target))
        assert names_in(target) == {"file"}
        assert (target / "file").read_text() == "old"
        await copy(f"{source}/file", str(target), verify=False)
    copied = (target / "file").read_bytes()
    assert len(copied) == SIZE
    assert copied != data_of(SIZE)


@pytest.mark.parametrize("said", ['b"no\\n"', "b'1'*300", f"bytes({64 * PIECE})"])
async def test_guest_that_says_no_crc_is_one_line(
    sshd: SshServer, programs: Path, here: Path, there: Path, said: str
) -> None:
    """Nothing of what else it says is kept, and other files go on."""
    change(programs, f'put(1,b"%d\\n"%crc(f,min({SEGMENT},end-at)))', f"put(1,{said})")
    (there / "tree").mkdir()
    (there / "tree/large").write_bytes(data_of(SIZE))
    (there / "tree/small").write_text("small")
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError, match="large: the guest says no CRC") as caught:
            await guest.copy_out(f"{there}/tree", here / "back")
    assert len(caught.value.failures) == 1
    assert names_in(here / "back") == {"small"}


async def test_guest_that_sends_nothing_is_given_up(
    sshd: SshServer, programs: Path, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is bounded."""
    change(programs, "  os.lseek(f,begin,0)", "  os.read(0,1)")
    (there / "file").write_bytes(data_of(SIZE))
    async with vsock.guest_session("alpha") as guest:
        monkeypatch.setattr(connection, "ANSWER_SECONDS", 3.0)
        with pytest.raises(SessionError, match="alpha did not answer for 3 s"):
            await guest.copy_out(f"{there}/file", here)
    assert not (here / "file").exists()


async def test_what_a_guest_says_behind_a_file_is_not_of_the_next_one(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """That passes by another stream."""
    change(programs, 'put(1,b"%d\\n"%crc(', 'put(1,(b"%d\\n"+b"x"*1000)%crc(')
    make_files(there / "tree")
    async with vsock.guest_session("alpha") as guest:
        await guest.copy_out(f"{there}/tree", here)
    assert len(names_in(here / "tree")) == 3
    for path in (there / "tree").iterdir():
        assert (here / "tree" / path.name).read_bytes() == path.read_bytes()


async def test_file_that_becomes_shorter_is_one_line(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """The others are copied."""
    change(programs, "  os.lseek(f,begin,0)", "  os.truncate(path,9); os.lseek(f,begin,0)")
    (there / "tree").mkdir()
    (there / "tree/large").write_bytes(data_of(SIZE))
    (there / "tree/small").write_text("small")
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError, match="large: ends before its size"):
            await guest.copy_out(f"{there}/tree", here / "back")
    assert names_in(here / "back") == {"small"}


async def test_file_that_another_one_replaces_is_found_out(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """SFTP has opened the first one, and the guest's program opens the second one, which is longer."""
    change(programs, "  f=os.open(", f'  os.rename("{there}/new",path); f=os.open(')
    (there / "file").write_bytes(data_of(SIZE))
    (there / "new").write_bytes(data_of(2 * SIZE))
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError, match="/file: changed during the copy"):
            await guest.copy_out(f"{there}/file", here)
    assert names_in(here) == set()


async def test_link_in_the_place_of_the_part_is_not_followed(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """Another user of the guest may have put it there."""
    link = f'os.unlink(path); os.symlink("{there}/other",path)'
    change(programs, "  f=os.open(", f"  {link}; f=os.open(")
    (there / "other").write_text("other")
    (here / "file").write_bytes(data_of(SIZE))
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError, match="/file: Too many levels of symbolic links"):
            await guest.copy_in(here / "file", str(there))
    assert (there / "other").read_text() == "other"
    assert not (there / "file").exists()


async def test_part_that_another_copy_cuts_is_found_out(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """As two copies with --resume may do that run at once: what was written before the cut is gone."""
    cut = f"left<{PIECE}<=left+n and os.ftruncate(o,{PIECE});"
    change(programs, "put(o,b[:n]);", f"put(o,b[:n]); {cut}")
    (here / "file").write_bytes(data_of(SIZE))
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError, match="what was written is not what was read"):
            await guest.copy_in(f"{here}/file", str(there))
    assert "file" not in names_in(there)


def test_signal_does_not_end_what_is_received() -> None:
    """The kernel gives what has come by then."""
    ours, theirs = socket.socketpair()
    buffer = memoryview(bytearray(2 * PIECE))
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.get_ident).result()
        received = pool.submit(fill, ours, buffer)
        theirs.sendall(b"1" * 1000)
        until(lambda: not unread(theirs))
        signal.pthread_kill(thread, signal.SIGUSR1)
        theirs.sendall(b"1" * (len(buffer) - 1000))
        assert received.result(DEADLINE)
        signal.signal(signal.SIGUSR1, before)
    assert buffer == b"1" * len(buffer)


def unread(sock: socket.socket) -> int:
    """Bytes that the other end has not received."""
    size = bytearray(4)
    fcntl.ioctl(sock, termios.TIOCOUTQ, size)
    return int.from_bytes(size, sys.byteorder)
