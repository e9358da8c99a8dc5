"""Copies to a guest, from it, and between guests: what is kept, what breaks, and guests that lie.

The guest's files are in a folder of this machine, `there`; the host's are in `here`.
"""

import asyncio
import itertools
import os
import random
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from tests.ssh.server import SshServer

import vsock
from vsock.errors import CopyError, SessionError, UsageError
from vsock.guest import Guest
from vsock.ssh.copying import Copier, Progress, connection, trees
from vsock.ssh.copying.guest import GuestSide
from vsock.ssh.copying.host import HostSide
from vsock.ssh.copying.sides import CHUNK, WINDOW
from vsock.ssh.identity import Identity
from vsock.ssh.session import GuestSession
from vsock.switch import Switch

DEADLINE = 50


KEY = asyncssh.generate_private_key("ssh-ed25519")


@asynccontextmanager
async def session_with(
    guest: Guest, sftp: Callable[[Any], asyncssh.SFTPServer] = asyncssh.SFTPServer, port: int = 22
) -> AsyncIterator[tuple[GuestSession, SshServer]]:
    """A session with an SSH server in the guest that has this SFTP."""
    with SshServer(guest, Identity.of_user().public_key(), port=port, key=KEY, sftp=sftp) as server:
        async with vsock.guest_session("alpha", port=port) as session:
            yield session, server


def make_tree(root: Path) -> None:
    """Folders, modes, times, links, and names that are no text."""
    root.mkdir()
    (root / "inner").mkdir(mode=0o750)
    (root / "inner" / "script").write_bytes(b"#!/bin/sh\n")
    (root / "inner" / "script").chmod(0o4711)
    (root / "empty").touch(0o600)
    (root / "no folder here").mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\n\x1b[31m")).write_bytes(b"odd")
    (root / "data").write_bytes(os.urandom(3 * CHUNK + 17))
    (root / "to outside").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("../nowhere")
    (root / "loop").symlink_to("loop")
    (root / "folder link").symlink_to("inner")
    for path in (root / "data", root / "inner", root):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def names_in(folder: Path) -> set[str]:
    """The names of what is in a folder."""
    return {path.name for path in folder.iterdir()}


def described(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """What is in a tree: kinds, modes, contents; times of files and folders in seconds."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        kept: tuple[Any, ...] = (stat.S_IFMT(status.st_mode),)
        if path.is_symlink():
            kept += (path.readlink(),)
        else:
            kept += (status.st_mode & 0o777, int(status.st_mtime))
            kept += (path.read_bytes(),) if path.is_file() else ()
        found[os.fsencode(path.relative_to(root))] = kept
    return found


async def test_tree_is_the_same_in_the_guest_and_back(
    sshd: SshServer, here: Path, there: Path
) -> None:
    """Links stay links; set-user-ID is not kept; names are bytes."""
    make_tree(here / "tree")
    async with vsock.guest_session("alpha") as guest:
        result = await guest.copy_in(here / "tree", str(there))
        assert described(there / "tree") == described(here / "tree")
        assert not (there / "tree/inner/script").stat().st_mode & stat.S_ISUID
        assert (result.files, result.folders, result.links, result.failed) == (4, 3, 4, 0)
        assert result.bytes == 3 * CHUNK + 17 + 10 + 3
        await guest.copy_out(str(there / "tree"), here / "back")
        assert described(here / "back") == described(here / "tree")


async def test_destination_is_a_folder_or_a_name(sshd: SshServer, here: Path, there: Path) -> None:
    """As of cp(1): into a folder that is there, else under the name; `dir/.` is what is in it."""
    (here / "a").write_text("a")
    (here / "b").write_text("b")
    (here / "dir").mkdir()
    (here / "dir/c").write_text("c")
    async with vsock.guest_session("alpha") as guest:
        await guest.copy_in([here / "a", here / "b"], str(there))
        await guest.copy_in(here / "dir", f"{there}/new")
        await guest.copy_in(f"{here}/dir/.", str(there))
        await guest.copy_in(here / "dir", f"{there}/new/")
        await guest.copy_in(here / "a", f"{there}/b")
        assert [*map(names_in, (there, there / "new", there / "new/dir"))] == [
            {"a", "b", "c", "new"},
            {"c", "dir"},
            {"c"},
        ]
        assert (there / "b").read_text() == "a"
        with pytest.raises(UsageError, match="no folder"):
            await guest.copy_in([here / "a", here / "b"], f"{there}/nothing")
        with pytest.raises(CopyError, match=r"nothing/: no such folder"):
            await guest.copy_in(here / "a", f"{there}/nothing/")
        with pytest.raises(
            CopyError, match=r"alpha:.*/nothing/here: no such folder|alpha:.*no such"
        ):
            await guest.copy_in(here / "a", f"{there}/nothing/here")


def test_copies_without_asyncio(sshd: SshServer, here: Path, there: Path) -> None:
    """The blocking twin, with progress."""
    (here / "a").write_bytes(bytes(range(256)) * 4096)
    seen: list[Progress] = []
    with vsock.guest_session("alpha") as guest:
        assert guest.copy_in(str(here / "a"), str(there), progress=seen.append).files == 1
        assert guest.copy_out([str(there / "a")], here / "b").bytes == 1 << 20
    assert (here / "b").read_bytes() == (here / "a").read_bytes()
    assert seen[0].total == 1 << 20
    assert seen[0].path == str(here / "a")


async def test_one_failure_does_not_stop_the_others(
    sshd: SshServer, here: Path, there: Path
) -> None:
    """Each has its line: FIFOs, sockets, what is not there, folders where a file would be."""
    os.mkfifo(there / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(there / "socket"))
    (there / "fine").write_text("fine")
    (there / "sub").write_text("a file")
    (here / "out/sub").mkdir(parents=True)
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError) as caught:
            await guest.copy_out([f"{there}/.", f"{there}/nothing"], here / "out")
        lines = "\n".join(sorted(caught.value.failures))
        assert f"alpha:{there}/./fifo: is a FIFO; only files" in lines
        assert f"alpha:{there}/./socket: is a socket; only files" in lines
        assert f"alpha:{there}/nothing: no such file or folder" in lines
        assert f"{here}/out/sub: is a folder, and stays as it is" in lines
        assert lines.count("\n") == 3
        assert (here / "out/fine").read_text() == "fine"
        with pytest.raises(CopyError, match="is a device, and stays"):
            await guest.copy_in(here / "out/fine", "/dev/null")
        side = await GuestSide.open(guest)
        copier = Copier()
        await copier.copy([(side, os.fsencode(there))], side, os.fsencode(there / "x"))
        await side.close()
        assert "cannot be copied into itself" in copier.result().failures[0]


async def test_links_of_the_destination_are_not_followed(
    sshd: SshServer, here: Path, there: Path, tmp_path: Path
) -> None:
    """A file replaces a link, and a folder does not go through one."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    make_tree(there / "tree")
    (here / "tree").mkdir()
    (here / "tree/data").symlink_to(outside / "file")
    (here / "tree/inner").symlink_to(outside)
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError, match="inner: is a link where a folder would be"):
            await guest.copy_out(str(there / "tree"), here)
    assert names_in(outside) == {"file"}
    assert (outside / "file").read_text() == "untouched"
    assert (here / "tree/data").read_bytes() == (there / "tree/data").read_bytes()


async def test_holes_stay_holes(sshd: SshServer, here: Path, there: Path) -> None:
    """On both sides, and the data between them is right."""
    with (here / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(12 << 20)
    async with vsock.guest_session("alpha") as guest:
        await guest.copy_in(here / "sparse", str(there))
        await guest.copy_out(str(there / "sparse"), here / "back")
    for path in (there / "sparse", here / "back"):
        assert path.read_bytes() == (here / "sparse").read_bytes()
        assert path.stat().st_blocks * 512 < 1 << 20


class Breaking(asyncssh.SFTPServer):
    """Its connection ends when so many bytes were written or read."""

    left = 0

    def _count(self, size: int) -> None:
        Breaking.left -= size
        if Breaking.left < 0:
            self.connection.abort()

    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        """Write, or break."""
        self._count(len(data))
        return super().write(file_obj, offset, data)

    def read(self, file_obj: object, offset: int, size: int) -> Any:
        """Read, or break."""
        self._count(size)
        return super().read(file_obj, offset, size)


@pytest.mark.parametrize("way", ["in", "out"])
async def test_break_leaves_a_part_with_which_resume_goes_on(
    guest: Guest, here: Path, there: Path, way: str
) -> None:
    """Nothing under the final name; what came is not sent again; a part that was changed is not used."""
    size = 5 * WINDOW
    data = os.urandom(size)
    source, target = (here, there) if way == "in" else (there, here)
    (source / "big").write_bytes(data)

    async def copy(session: GuestSession, **options: Any) -> Any:
        if way == "in":
            return await session.copy_in(source / "big", str(target), **options)
        return await session.copy_out(str(source / "big"), target, **options)

    Breaking.left = 3 * WINDOW
    async with session_with(guest, Breaking) as (session, _):
        with pytest.raises(SessionError, match="session with alpha ended during the copy"):
            await copy(session)
    (found,) = names_in(target)
    assert found.startswith(".big.")
    part = target / found
    assert part.stat().st_size >= 2 * WINDOW
    with part.open("r+b") as file:
        file.write(b"spoilt")
    Breaking.left = 4 * WINDOW  # less than all of it, with the comparisons, which read too
    async with session_with(guest, Breaking) as (session, _):
        with pytest.raises(SessionError):
            await copy(session, resume=True)
    assert part.read_bytes()[:6] == data[:6]
    Breaking.left = size - WINDOW
    async with session_with(guest, Breaking) as (session, _):
        await copy(session, resume=True)
    assert names_in(target) == {"big"}
    assert (target / "big").read_bytes() == data
    part.write_bytes(b"of another copy")
    Breaking.left = 10 * size
    async with session_with(guest, Breaking) as (session, _):
        await copy(session)
    assert part.read_bytes() == b"of another copy"


@pytest.mark.parametrize("seed", range(10))
async def test_breaks_at_random_moments(guest: Guest, here: Path, there: Path, seed: int) -> None:
    """Whenever it breaks, what has its name is whole; at the end all is there, and no part."""
    chance = random.Random(seed)
    (there / "tree").mkdir()
    sizes = {f"file {n}": chance.randrange(1, 2 * WINDOW) for n in range(3)}
    for text, size in sizes.items():
        (there / "tree" / text).write_bytes(chance.randbytes(size))
    is_done = False
    breaks = 0
    while not is_done:
        # At last it does not break.
        Breaking.left = chance.randrange(6 * WINDOW) if breaks < 4 else 1 << 40
        async with session_with(guest, Breaking) as (session, _):
            try:
                await session.copy_out(f"{there}/tree/.", here / "tree", resume=True)
                is_done = True
            except SessionError:
                breaks += 1
        for text in names_in(here / "tree") & set(sizes):
            assert (here / "tree" / text).read_bytes() == (there / "tree" / text).read_bytes()
    assert names_in(here / "tree") == set(sizes)


async def test_guest_to_guest(sshd: SshServer, switch: Switch, here: Path, there: Path) -> None:
    """Through the host."""
    make_tree(there / "tree")
    with Guest(switch.socket_path("beta")) as beta:
        with SshServer(beta, Identity.of_user().public_key()):
            async with vsock.guest_session("alpha") as one, vsock.guest_session("beta") as two:
                sides = await GuestSide.open(one), await GuestSide.open(two)
                copier = Copier()
                tree = os.fsencode(there / "tree")
                await copier.copy([(sides[0], tree)], sides[1], os.fsencode(here))
                assert copier.result(*sides).failures == ()
                for side in sides:
                    await side.close()
    assert described(here / "tree") == described(there / "tree")


# -- guests that lie --------------------------------------------------------------------------------


def name(text: bytes, mode: int = stat.S_IFREG | 0o644, size: int = 3) -> asyncssh.SFTPName:
    """An entry of a listing."""
    attrs = asyncssh.SFTPAttrs(permissions=mode, size=size, mtime=1, atime=1, uid=0, gid=0)
    return asyncssh.SFTPName(text, attrs=attrs)


class Lying(asyncssh.SFTPServer):
    """Every folder has these names; every file has three bytes, whatever its size is said to be."""

    names: Any = ()
    said = name(b"")
    data = b"abc"

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """The names."""
        for one in self.names() if callable(self.names) else self.names:
            yield one

    def lstat(self, path: bytes) -> Any:
        """The root is a folder."""
        return name(b"", stat.S_IFDIR | 0o755).attrs if path.endswith(b"root") else self.said.attrs

    stat = lstat

    def fstat(self, file_obj: object) -> Any:
        """As it was said."""
        return self.said.attrs

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Anything can be opened."""
        return object()

    def close(self, file_obj: object) -> None:
        """And closed."""

    def read(self, file_obj: object, offset: int, size: int) -> Any:
        """Its bytes."""
        return self.data[offset : offset + size]


async def failures_of(guest: Guest, sftp: type[Lying], here: Path, **options: Any) -> list[str]:
    """What a copy of the guest's `root` into `here/out` says; nothing else may come to be in `here`."""
    async with session_with(guest, sftp) as (session, _):
        side = await GuestSide.open(session)
        copier = Copier(**options)
        await copier.copy([(side, b"root")], HostSide(), os.fsencode(here / "out"))
        await side.close()
    assert names_in(here) <= {"out"}
    lines = list(copier.result().failures)
    assert all(line.isprintable() for line in lines)
    return lines


async def test_guest_that_lists_bad_names_writes_nothing_outside(guest: Guest, here: Path) -> None:
    """Names that are paths, empty ones and those with NUL; the good ones are copied."""

    class Names(Lying):
        names = (
            *(name(text) for text in (b"../out2", b"/etc/x", b"", b"a\0b", b"sub/x", b"x" * 300)),
            *(name(text) for text in (b".", b"..", b"good", b"\xff\xfe")),
        )

    lines = await failures_of(guest, Names, here)
    assert len([line for line in lines if "which is no name" in line]) == 6
    assert len(lines) == 6
    assert names_in(here / "out") == {"good", os.fsdecode(b"\xff\xfe")}


async def test_link_and_then_a_folder_of_the_same_name_do_not_lead_out(
    guest: Guest, here: Path, tmp_path: Path
) -> None:
    """The classical attack on scp and tar."""
    outside = tmp_path / "outside"
    outside.mkdir()

    class Twice(Lying):
        async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
            if path.endswith(b"x"):
                yield name(b"evil")
            else:
                yield name(b"x", stat.S_IFLNK | 0o777)
                yield name(b"x", stat.S_IFDIR | 0o777)

        def lstat(self, path: bytes) -> Any:
            return name(b"", stat.S_IFDIR | 0o755).attrs

        stat = lstat

        def readlink(self, path: bytes) -> bytes:
            return os.fsencode(outside)

    lines = await failures_of(guest, Twice, here)
    assert len(lines) == 1
    assert "x: is a link where a folder would be" in lines[0]
    assert names_in(outside) == set()


async def test_listings_without_end_are_bounded(guest: Guest, here: Path) -> None:
    """Also folders within folders."""

    class Endless(Lying):
        names = staticmethod(lambda: (name(b"f%d" % n) for n in itertools.count()))

    lines = await failures_of(guest, Endless, here, most_entries=300, verify=False)
    assert lines == ["alpha:root/: more than 300 entries: the rest is not copied"]

    class Dots(Lying):
        names = staticmethod(lambda: itertools.repeat(name(b".")))

    (line,) = await failures_of(guest, Dots, here)
    assert line == "alpha:root/: the guest lists the folder itself again and again"

    class Deep(Lying):
        names = (name(b"d", stat.S_IFDIR | 0o755),)
        said = name(b"", stat.S_IFDIR | 0o755)

    (here / "out").rename(here.parent / "before")
    (line,) = await failures_of(guest, Deep, here)
    assert "more than 100 folders within each other" in line


async def test_folders_that_wait_are_bounded_on_all_levels_together(
    guest: Guest, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three in each, of which one is copied and two wait, until no more may wait."""
    monkeypatch.setattr(trees, "MOST_FOLDERS_WAITING", 10)

    class Folders(Lying):
        names = tuple(name(b"%d" % n, stat.S_IFDIR | 0o755) for n in range(3))
        said = name(b"", stat.S_IFDIR | 0o755)

    lines = await failures_of(guest, Folders, here, most_entries=300)
    assert "alpha:root/0/0/0/0/: more than 10 folders: the rest is not copied" in lines
    assert not any("root/0/0/0/: more than 10 folders" in line for line in lines)


@pytest.mark.parametrize(
    ("size", "data", "reason"),
    [
        (10, b"abc", "ends before its size"),
        (1 << 62, b"abc", "ends before its size"),
        (2**64 - 1, b"abc", "does not say what it is"),
    ],
)
async def test_sizes_that_lie(
    guest: Guest, here: Path, size: int, data: bytes, reason: str
) -> None:
    """Nothing is left of such a file."""

    class Sizes(Lying):
        names = (name(b"file", size=size),)
        said = name(b"", size=size)

    (line,) = await failures_of(guest, Sizes, here)
    assert line.startswith("alpha:root/")
    assert reason in line
    assert names_in(here / "out") == set()


async def test_files_that_vanish_grow_or_become_something_else(guest: Guest, here: Path) -> None:
    """Each is one line that names the guest."""

    class Changing(Lying):
        names = tuple(name(text) for text in (b"gone", b"grows", b"fifo", b"good"))

        def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
            if path.endswith(b"gone"):
                raise asyncssh.SFTPNoSuchFile("\x1b[2Jnot printed")
            return [path, 0]

        def fstat(self, file_obj: Any) -> Any:
            file_obj[1] += 1
            if file_obj[0].endswith(b"fifo"):
                return name(b"", stat.S_IFIFO).attrs
            grows = file_obj[0].endswith(b"grows") and file_obj[1] > 1
            return name(b"", size=4 if grows else 3).attrs

    lines = await failures_of(guest, Changing, here)
    assert sorted(line.partition(": ")[2][:40] for line in lines) == [
        "became a FIFO during the copy",
        "changed during the copy: copy it again, ",
        "no such file or folder",
    ]
    assert names_in(here / "out") == {"good"}


async def test_guest_that_writes_something_else_is_found_out(
    guest: Guest, here: Path, there: Path
) -> None:
    """The comparison reads it again, and the old file stays."""

    class Forging(asyncssh.SFTPServer):
        def write(self, file_obj: object, offset: int, data: bytes) -> Any:
            return super().write(file_obj, offset, b"X" + data[1:])

    (here / "file").write_text("what it should be")
    (there / "file").write_text("old")
    async with session_with(guest, Forging) as (session, _):
        with pytest.raises(CopyError, match="what was written is not what was read"):
            await session.copy_in(here / "file", str(there))
        assert names_in(there) == {"file"}
        assert (there / "file").read_text() == "old"
        await session.copy_in(here / "file", str(there), verify=False)
    assert (there / "file").read_text() == "Xhat it should be"


async def test_guest_without_extensions_is_served_with_a_note(
    guest: Guest, here: Path, there: Path
) -> None:
    """No rename that replaces, no fsync: the result says what that means."""

    class Plain(asyncssh.SFTPServer):
        def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
            raise asyncssh.SFTPOpUnsupported("no")

        def fsync(self, file_obj: object) -> None:
            raise asyncssh.SFTPOpUnsupported("no")

    (here / "file").write_text("new")
    (there / "file").write_text("old")
    async with session_with(guest, Plain) as (session, _):
        result = await session.copy_in(here / "file", str(there))
    assert (there / "file").read_text() == "new"
    assert ["fsync" in note or "in one step" in note for note in result.notes] == [True, True]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_guest_has_time_to_see_a_file_onto_its_disk(
    guest: Guest, here: Path, there: Path, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers once for all that its memory holds of the file; so the larger that is, the more time it has."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 5.0)
    monkeypatch.setattr(connection, "_LEAST_BYTES_PER_SECOND", CHUNK // 15)

    class Slow(asyncssh.SFTPServer):
        async def fsync(self, file_obj: object) -> None:
            await asyncio.sleep(6)  # a slow disk

    data = random.Random(0).randbytes(CHUNK)

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    (here / "file").write_bytes(data)
    async with session_with(guest, Slow) as (session, _):
        if is_stream:
            side, copier = await GuestSide.open(session), Copier()
            await copier.from_stream(pieces(), side, os.fsencode(there / "file"))
            await side.close()
            assert copier.result(side).failures == ()
        else:
            await session.copy_in(here / "file", str(there))
    assert (there / "file").read_bytes() == data


async def test_guest_that_says_nothing_is_given_up(
    guest: Guest, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is bounded; and the part does not have the name."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)

    class Silent(Lying):
        names = (name(b"file"),)

        async def read(self, file_obj: object, offset: int, size: int) -> bytes:
            await asyncio.Event().wait()
            return b""

    async with session_with(guest, Silent) as (session, _):
        with pytest.raises(SessionError, match=r"alpha did not answer for 0.5 s"):
            await session.copy_out("root", here / "out")
    assert not (here / "out/file").exists()


async def test_guest_without_sftp_says_so(guest: Guest, here: Path) -> None:
    """An sshd whose sftp-server is not installed."""
    with SshServer(guest, Identity.of_user().public_key(), sftp=None) as _:  # type: ignore[arg-type]
        async with vsock.guest_session("alpha") as session:
            with pytest.raises(SessionError, match="alpha has no SFTP"):
                await session.copy_in(here, "/tmp")


# -- the host's own limits -----------------------------------------------------------------------------


LIMITED = """
import resource, signal, sys
from vsock.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
sys.exit(main(sys.argv[1:]))
"""


def test_full_disk_is_one_line_and_leaves_nothing(sshd: SshServer, here: Path, there: Path) -> None:
    """Here a limit on the size of files; the old file stays, and the others are copied."""
    (there / "big").write_bytes(os.urandom(2 << 20))
    (there / "small").write_text("small")
    (here / "big").write_text("old")
    words = ["cp", f"alpha:{there}/.", str(here)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, f"vsock: {here}/big: File too large\n")
    assert names_in(here) == {"big", "small"}
    assert (here / "big").read_text() == "old"


MEASURED = """
import sys
from vsock.cli.main import main
code = main(sys.argv[1:])
# Not ru_maxrss, which begins with what the process had before exec, the tests' own.
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
sys.exit(code)
"""


def peak(*words: str) -> int:
    """Bytes of memory that a copy needed at most."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


def test_memory_is_constant(sshd: SshServer, here: Path, there: Path) -> None:
    """128 windows need no more memory than a byte and a few windows."""
    size = 128 * WINDOW
    (here / "small").write_bytes(b"x")
    with (here / "large").open("wb") as file:
        file.write(os.urandom(2 * WINDOW))
        file.truncate(size)
    least = peak("cp", str(here / "small"), f"alpha:{there}")
    most = peak("cp", str(here / "large"), f"alpha:{there}")
    assert (there / "large").stat().st_size == size
    assert most - least < 16 * WINDOW
