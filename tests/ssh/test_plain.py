"""Copies over a plain connection that a userspace guest opens: as over ssh, breaks at any moment, and hostile guests.

What runs in the guest are a shell, perl under the preload library, and an SFTP server behind the connection. A program
there that would use the kernel's own AF_VSOCK is killed.
"""

import asyncio
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.programs import find, need
from tests.ssh.server import SshServer
from tests.ssh.sftp_program import install
from tests.ssh.test_copying import described, make_tree, names_in
from tests.waiting import until

import vsock
from vsock import sockets
from vsock.errors import SessionError
from vsock.guest import Guest
from vsock.ssh import data_connection
from vsock.ssh.copying import Progress, connection
from vsock.ssh.copying import sftp as sftp_module
from vsock.ssh.copying.guest import GuestSide
from vsock.ssh.copying.sides import CHUNK, WINDOW
from vsock.ssh.identity import Identity
from vsock.switch import Switch

pytestmark = pytest.mark.programs("perl")

DEADLINE = 50
PYTHON = Path(sys.executable).resolve()
"""Not the python3 in PATH, which may be the script of a version manager."""

SEEDS = int(os.environ.get("VSOCK_TEST_BREAKS", "10"))
"""How many sequences of breaks; `make test-breaks` has more."""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs of the guest."""
    return install(tmp_path / "programs")


@pytest.fixture
def sshd(guest: Guest, programs: Path) -> Iterator[SshServer]:
    """An SSH server in alpha, with these programs."""
    with ssh_server(guest, programs) as running:
        yield running


def ssh_server(guest: Guest, programs: Path) -> SshServer:
    """The same, to be started."""
    return SshServer(guest, Identity.of_user().public_key(), programs=programs)


def replace(programs: Path, name: str, source: str) -> None:
    """Give the guest another program, in Python."""
    path = programs / name
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)


async def test_tree_goes_there_and_back(sshd: SshServer, here: Path, there: Path) -> None:
    """All that copies over ssh keep is kept: links, holes, modes, times, names that are no text."""
    make_tree(here / "tree")
    with (here / "tree/sparse").open("wb") as file:
        file.write(os.urandom(2 * WINDOW + 5))
        file.seek(16 << 20)
        file.write(b"end")
    async with vsock.guest_session("alpha") as guest:
        result = await guest.copy_in(here / "tree", str(there))
        assert (result.over_ssh, result.notes, result.failed) == ((), (), 0)
        assert described(there / "tree") == described(here / "tree")
        assert (there / "tree/sparse").stat().st_blocks * 512 < 10 << 20
        assert (await guest.copy_out(str(there / "tree"), here / "back")).over_ssh == ()
        assert described(here / "back") == described(here / "tree")


@pytest.mark.parametrize("opener", ["perl", "python3", "socat", "ncat"])
async def test_each_program_that_can_open_a_connection(
    guest: Guest, programs: Path, here: Path, there: Path, opener: str
) -> None:
    """The guest has no other one."""
    need([opener])
    for name in ("sh", "grep", opener):
        path = PYTHON if name == "python3" else find(name)
        (programs / name).symlink_to(str(path))
    (here / "file").write_bytes(os.urandom(3 * CHUNK + 1))
    with SshServer(guest, Identity.of_user().public_key(), programs=programs, has_only=True):
        async with vsock.guest_session("alpha") as session:
            assert (await session.copy_in(here / "file", str(there))).over_ssh == ()
            assert (await session.copy_out(f"{there}/file", here / "back")).over_ssh == ()
    assert (here / "back").read_bytes() == (here / "file").read_bytes()


@pytest.mark.parametrize("opener", ["perl", "python3", "socat", "ncat"])
async def test_arguments_of_the_program_arrive_as_they_are(
    guest: Guest, programs: Path, opener: str
) -> None:
    """Whatever shells lie between: blanks, patterns, quotes, line feeds; and no token in its environment."""
    need([opener])
    for name in ("sh", "grep", opener):
        path = PYTHON if name == "python3" else find(name)
        (programs / name).symlink_to(str(path))
    words = ["a  b", "*", "'\"$HOME`;,!!(", "", "-n", "new\nline\n", "é", "\\"]
    script = 'printf "<%s>" "$@"; printf %s "${VSOCK_TOKEN-no token}"; read -r line; echo "$line"'
    with SshServer(guest, Identity.of_user().public_key(), programs=programs, has_only=True):
        async with vsock.guest_session("alpha") as session, asyncio.timeout(DEADLINE):
            data = await data_connection.open_data_connection(
                session, ("sh",), ["-c", script, "sh", *words]
            )
            data.writer.write(b"said\n")
            said = await data.reader.read()
            data.abort()
    assert os.fsdecode(said) == "".join(f"<{word}>" for word in words) + "no tokensaid\n"


async def test_many_small_files_are_all_there(sshd: SshServer, here: Path, there: Path) -> None:
    """Several are on their way at once; folders have their times, and old files are replaced."""
    for folder in range(3):
        for number in range(100):
            path = here / f"tree/{folder}/{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(number * 50))
        os.utime(here / f"tree/{folder}", (1_000_000_000, 1_000_000_000))
    async with vsock.guest_session("alpha") as guest:
        assert (await guest.copy_in(here / "tree", str(there))).files == 300
        assert (await guest.copy_out(f"{there}/tree", here / "back")).files == 300
        assert described(there / "tree") == described(here / "back") == described(here / "tree")
        for path in (there / "tree").glob("*/*"):
            path.write_text("old")
        assert (await guest.copy_in(here / "tree", str(there))).files == 300
    for path in (here / "tree").glob("*/*"):
        assert (there / path.relative_to(here)).read_bytes() == path.read_bytes()


async def test_ssh_carries_what_the_guest_cannot(
    guest: Guest, programs: Path, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result says why: nothing that opens a connection, no server behind it, or because it was asked for."""
    (here / "file").write_text("content")

    async def reason(*, encrypted: bool = False) -> str:
        async with vsock.guest_session("alpha") as session:
            result = await session.copy_in(here / "file", str(there), encrypted=encrypted)
        assert (there / "file").read_text() == "content"
        (line,) = result.over_ssh
        return line

    with SshServer(guest, Identity.of_user().public_key()) as server:
        assert "it has no perl, python3, socat or ncat" in await reason()
    with SshServer(guest, Identity.of_user().public_key(), programs=programs, key=server.key):
        assert await reason(encrypted=True) == "alpha: it was asked for"
        for source in (
            "raise SystemExit(1)",
            "import os; os.write(1, os.urandom(1 << 20))",
            "import os; os.write(1, bytes([255] * 9) * 1000); os.read(0, 1 << 20)",
        ):
            replace(programs, "sftp-server", source)
            assert await reason() == "alpha: no sftp-server answers on its data connection"
        monkeypatch.setattr(sftp_module, "_ANSWER_SECONDS", 0.5)
        replace(programs, "sftp-server", "import os\nwhile os.read(0, 4096): pass")
        assert await reason() == "alpha: no sftp-server answers on its data connection"
        replace(programs, "perl", "raise SystemExit('perl is\\x1b[2J ill')")
        assert await reason() == "alpha: perl is?[2J ill"
        replace(programs, "perl", "raise SystemExit('many words\\n' * 300 + 'the reason')")
        assert await reason() == "alpha: the reason"


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_breaks_at_random_moments(
    guest: Guest, programs: Path, here: Path, there: Path, seed: int
) -> None:
    """Whenever it breaks, what has its name is whole; at the end all is there, and no part."""
    chance = random.Random(seed)
    way = chance.choice(["in", "out"])
    source, target = (here, there) if way == "in" else (there, here)
    (source / "tree").mkdir()
    sizes = [chance.randrange(1, 2 * WINDOW) for _ in range(2)]
    sizes += [chance.randrange(CHUNK) for _ in range(8)]
    for number, size in enumerate(sizes):
        (source / f"tree/{number}").write_bytes(chance.randbytes(size))
    breaks = 0
    is_done = False
    with ssh_server(guest, programs):
        while not is_done:
            # At last it does not break.
            install(programs, *([chance.randrange(5 * WINDOW)] if breaks < 4 else []))
            async with vsock.guest_session("alpha") as session:
                try:
                    if way == "in":
                        paths = f"{source}/tree/.", f"{target}/tree"
                        result = await session.copy_in(*paths, resume=True)
                    else:
                        paths = f"{source}/tree/.", f"{target}/tree"
                        result = await session.copy_out(*paths, resume=True)
                    assert result.over_ssh == ()
                    is_done = True
                except SessionError as error:
                    assert "another one with --resume goes on from there" in str(error)
                    breaks += 1
            if (target / "tree").exists():
                for name in names_in(target / "tree") & set(map(str, range(len(sizes)))):
                    assert (target / "tree" / name).read_bytes() == (
                        source / "tree" / name
                    ).read_bytes()
    assert names_in(target / "tree") == names_in(source / "tree")


# -- hostile guests ------------------------------------------------------------------------------------


KNOCKING = """
import os, socket, sys, time
program, e, code, cid, port, *server = sys.argv
address = int(cid), int(port)
token = os.environ["VSOCK_TOKEN"].encode()
def connect():
    deadline = time.monotonic() + {seconds}
    while True:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            sock.connect(address)
            return sock
        except ConnectionError:  # on a busy machine the queue is full for a moment
            assert time.monotonic() < deadline
            time.sleep(0.01)
def closed(sock):
    sock.settimeout({seconds})
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True
for said in (b"x" * 64, token[:-1] + b"x", b"GET / HTTP/1.0" + bytes(64)):
    sock = connect()
    sock.sendall(said)
    assert closed(sock), said
half = connect()
half.sendall(token[:20])
half.close()
silent = [connect() for _ in range(50)]
assert sum(map(closed, silent[8:])) == 42
for sock in silent:
    sock.close()
with open({port!r} + ".new", "w") as file:
    file.write(port)
os.rename({port!r} + ".new", {port!r})
while not os.path.exists({go!r}):
    time.sleep(0.01)
os.execv("/usr/bin/perl", ["perl", e, code, cid, port, *server])
"""


async def test_only_this_guest_gets_in_and_only_with_the_token(
    guest: Guest,
    switch: Switch,
    programs: Path,
    here: Path,
    there: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong tokens, silent connections, more than a few of them, and other machines: closed, and counted."""
    monkeypatch.setattr(data_connection, "OPEN_SECONDS", DEADLINE)
    files = {"port": str(tmp_path / "port"), "go": str(tmp_path / "go")}
    replace(programs, "perl", KNOCKING.format(**files, seconds=DEADLINE))
    (here / "file").write_text("content")
    refusals: list[bytes] = []

    def others() -> None:
        """Connect from beta, and from the host itself."""
        deadline = time.monotonic() + DEADLINE
        while not (tmp_path / "port").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = int((tmp_path / "port").read_text())
        with Guest(switch.socket_path("beta")) as beta:
            for transport in (beta.transport, None):
                with sockets.create_connection((2, port), transport=transport) as sock:
                    sock.settimeout(DEADLINE)
                    try:
                        refusals.append(sock.recv(1))
                    except ConnectionError:
                        refusals.append(b"")
        (tmp_path / "go").touch()

    thread = threading.Thread(target=others)
    with ssh_server(guest, programs):
        async with vsock.guest_session("alpha") as session:
            thread.start()
            result = await session.copy_in(here / "file", str(there))
    thread.join()
    assert refusals == [b"", b""], result
    assert result.over_ssh == ()
    (note,) = result.notes
    count, _, rest = note.partition(" ")
    assert rest == "other connections to the port for the data of alpha were closed"
    assert 3 + 1 + 42 + 2 <= int(count) <= 3 + 1 + 50 + 2
    assert (there / "file").read_text() == "content"


KNOCKING_ONCE = """
import socket, sys
sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
sock.connect((int(sys.argv[3]), int(sys.argv[4])))
sock.sendall(b"x" * 64)
sock.settimeout({seconds})
try:
    sock.recv(1)
except ConnectionError:
    pass
sys.exit("may not connect")
"""


async def test_refused_connections_are_told_when_ssh_carries_the_data(
    guest: Guest, programs: Path, here: Path, there: Path
) -> None:
    """A user of the guest who keeps the right connection away is seen."""
    replace(programs, "perl", KNOCKING_ONCE.format(seconds=DEADLINE))
    (here / "file").write_text("content")
    with ssh_server(guest, programs):
        async with vsock.guest_session("alpha") as session:
            result = await session.copy_in(here / "file", str(there))
    assert result.over_ssh == ("alpha: may not connect",)
    assert result.notes == ("1 other connections to the port for the data of alpha were closed",)
    assert (there / "file").read_text() == "content"


async def test_guest_that_never_connects_costs_a_bounded_time(
    guest: Guest, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then ssh carries the data, and nothing is left listening."""
    monkeypatch.setattr(data_connection, "OPEN_SECONDS", 1.0)
    replace(programs, "perl", "import time; time.sleep(60)")
    with ssh_server(guest, programs):
        async with vsock.guest_session("alpha") as session:
            side = await GuestSide.open(session)
            assert side.over_ssh == "it did not connect within 1 s"
            (note,) = side.notes
            assert note.startswith("ssh carried the data of alpha, which was told to open a")
            await side.close()


FLOODING = """
import os, struct
def packet(*parts):
    data = b"".join(parts)
    os.write(1, struct.pack(">I", len(data)) + data)
packet(b"\\x02", struct.pack(">I", 3))
data = os.read(0, 4096)
{then}
try:
    for _ in range(512):
        os.write(1, bytes(1 << 20))
    os.read(0, 1)
except OSError:
    pass
"""

MEASURED = """
import sys
from vsock.cli.main import main
code = main(sys.argv[1:])
# Not ru_maxrss, which begins with what the process had before exec, the tests' own.
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
sys.exit(code)
"""


MOST_MORE: Final = 16 * WINDOW
"""Bytes of memory that a copy may need more than one of a byte: windows of both directions, with asyncssh's copies."""


def measured(*words: str) -> tuple[int, str, int]:
    """The exit code of a command, its errors, and the bytes of memory that it needed at most."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stderr, int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.parametrize(
    "then",
    [
        "",
        'os.write(1, struct.pack(">I", (4 << 20)) + b"\\x65" + struct.pack(">I", 1))',
        'os.write(1, struct.pack(">I", 0xffffffff))',
        "[packet(bytes([105]), struct.pack('>IIQQ', 0, 1, 1 << 60, 1 << 60)) for _ in range(10000)]",
    ],
)
def test_flood_is_one_line_and_needs_no_memory(
    sshd: SshServer, programs: Path, here: Path, there: Path, then: str
) -> None:
    """A server that sends without being asked, packets without an end, or answers that nobody waits for."""
    (there / "file").write_text("content")
    code, errors, least = measured("cp", "--encrypted", f"alpha:{there}/file", str(here / "one"))
    assert (code, errors) == (0, "")
    replace(programs, "sftp-server", FLOODING.format(then=then))
    code, errors, most = measured("cp", f"alpha:{there}/file", str(here / "two"))
    assert code == 1
    assert errors.count("\n") == 1
    assert "alpha" in errors
    assert most - least < 32 << 20
    assert names_in(here) == {"one"}


def test_many_small_files_need_little_memory(sshd: SshServer, here: Path, there: Path) -> None:
    """Those on their way at once are bounded by their bytes, too; in both directions."""
    (here / "one").mkdir()
    (here / "one/file").write_bytes(b"x")
    (here / "many").mkdir()
    for number in range(200):
        (here / f"many/{number}").write_bytes(os.urandom(CHUNK))
    code, errors, least = measured("cp", "-q", str(here / "one"), f"alpha:{there}")
    assert (code, errors) == (0, "")
    for words in ([str(here / "many"), f"alpha:{there}"], [f"alpha:{there}/many", f"{here}/back"]):
        code, errors, most = measured("cp", "-q", *words)
        assert (code, errors) == (0, "")
        assert most - least < MOST_MORE


def test_large_copy_needs_little_memory(sshd: SshServer, here: Path, there: Path) -> None:
    """A quarter of 1 GiB needs no more than a few windows more than a byte; --json says what carried it."""
    (here / "small").write_bytes(b"x")
    (here / "large").write_bytes(random.Random(1).randbytes(64 << 20) * 4)
    code, errors, least = measured("cp", "-q", str(here / "small"), f"alpha:{there}")
    assert (code, errors) == (0, "")
    code, errors, most = measured("cp", "-q", str(here / "large"), f"alpha:{there}")
    assert (code, errors) == (0, "")
    assert most - least < MOST_MORE
    done = subprocess.run(
        [sys.executable, "-m", "vsock.cli", "cp", "--json", str(here / "small"), f"alpha:{there}"],
        capture_output=True,
        timeout=DEADLINE,
        check=True,
    )
    assert json.loads(done.stdout)["over_ssh"] == []


LISTING = """
import os, struct
def read(size):
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            os._exit(0)
        data += more
    return data
def string(data):
    return struct.pack(">I", len(data)) + data
def answer(kind, *parts):
    data = string(bytes([kind]) + b"".join(parts))
    while data:
        data = data[os.write(1, data):]
attrs = struct.pack(">II", 4, 0o40755)
def names(size):
    filler = string(b"") + string(b"") + attrs
    count = size // len(filler)
    return struct.pack(">I", 1 + count) + string(b"d") + string(b"") + attrs + filler * count
paths = {{}}
while True:
    request = read(struct.unpack(">I", read(4))[0])
    kind, number, rest = request[0], request[1:5], request[5:]
    length = int.from_bytes(rest[:4], "big")
    said = rest[4:4 + length]
    if kind == 1:
        answer(2, struct.pack(">I", 3))
    elif kind == 11:
        paths[number] = said
        answer(102, number, string(number))
    elif kind == 12 and said in paths and paths[said].count(b"d/") < 7:
        del paths[said]
        answer(104, number, names({size}))
    elif kind in (7, 17):
        answer(105, number, attrs)
    else:
        answer(101, number, struct.pack(">I", 1 if kind == 12 else 0), string(b""), string(b""))
"""


def test_listings_of_many_names_need_little_memory(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """The answer is as large as it may be, on each of several levels; one that is larger ends the copy."""
    (there / "file").write_text("content")
    code, errors, least = measured("cp", "-q", f"alpha:{there}/file", str(here / "one"))
    assert (code, errors) == (0, "")
    replace(programs, "sftp-server", LISTING.format(size=256 << 10))
    code, errors, most = measured("cp", "-q", "alpha:d", str(here / "two"))
    assert code == 1
    assert "which is no name" in errors
    assert (here / "two/d/d/d/d/d/d").is_dir()
    assert most - least < MOST_MORE
    replace(programs, "sftp-server", LISTING.format(size=3 << 20))
    code, errors, most = measured("cp", "-q", "alpha:d", str(here / "three"))
    assert code == 1
    assert "the guest sends an SFTP packet that is too large" in errors
    assert most - least < MOST_MORE


async def test_listing_that_is_never_answered_is_given_up(
    sshd: SshServer, programs: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the request to close it, which follows."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)
    silent = "    elif kind == 12:\n        while True: read(4096)\n    elif kind == 12 and"
    source = LISTING.replace("    elif kind == 12 and", silent).format(size=0)
    replace(programs, "sftp-server", source)
    async with vsock.guest_session("alpha") as session:
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(SessionError, match="alpha did not answer for 1 s"):
                await session.copy_out("d", here / "out")


# -- copies that end early -----------------------------------------------------------------------------


async def test_session_that_is_closed_ends_the_copy(
    sshd: SshServer, here: Path, there: Path
) -> None:
    """The data passes on a connection of its own, which ends with the session."""
    (here / "large").write_bytes(bytes(range(256)) * (1 << 18))
    async with vsock.guest_session("alpha") as session:
        closing: list[asyncio.Task[None]] = []

        def close(_: Progress) -> None:
            if not closing:
                closing.append(asyncio.create_task(session.close()))

        with pytest.raises(SessionError, match="the session with alpha ended during the copy"):
            await session.copy_in(here / "large", str(there), progress=close)
        await closing[0]
    assert not (there / "large").exists()


async def test_cancelled_copy_of_a_folder_leaves_nothing_running(
    sshd: SshServer, here: Path, there: Path
) -> None:
    """Its listing is closed before the connection is."""
    (there / "tree").mkdir()
    (there / "tree/large").write_bytes(bytes(range(256)) * (1 << 18))
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    async with vsock.guest_session("alpha") as session:
        copying = asyncio.create_task(
            session.copy_out(
                f"{there}/tree", here / "tree", progress=lambda _: copying.cancel() and None
            )
        )
        with pytest.raises(asyncio.CancelledError):
            await copying
    gc.collect()
    await asyncio.get_running_loop().shutdown_asyncgens()
    assert troubles == []


SILENT_LISTING = LISTING.replace(
    "    elif kind == 12 and",
    "    elif kind == 12:\n        open({silent!r}, 'w')\n        while True: read(4096)\n    elif kind == 12 and",
)


@pytest.mark.parametrize("what", ["in", "out", "small", "listing"])
def test_interrupt_ends_a_copy_of_a_silent_guest(
    sshd: SshServer, programs: Path, here: Path, there: Path, what: str
) -> None:
    """Ctrl-C does not wait for answers, of which one may take a minute; what has its name is whole."""
    source, target = (here, there) if what in ("in", "small") else (there, here)
    (source / "tree").mkdir()
    for number in range(40):
        size = 1000 if what == "small" else 3 * WINDOW
        (source / f"tree/{number}").write_bytes(os.urandom(size))
    if what == "listing":
        silent = {"size": 0, "silent": str(programs / "silent")}
        replace(programs, "sftp-server", SILENT_LISTING.format(**silent))
    else:
        install(programs, 10_000 if what == "small" else 5 * WINDOW, is_silent=True)
    ends = (
        (f"{here}/tree", f"alpha:{there}") if target is there else (f"alpha:{there}/d", str(here))
    )
    if what == "out":
        ends = f"alpha:{there}/tree", str(here)
    with subprocess.Popen([sys.executable, "-m", "vsock.cli", "cp", *ends]) as process:
        try:
            until((programs / "silent").exists)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()
    for path in target.glob("tree/[0-9]*"):
        assert path.read_bytes() == (source / "tree" / path.name).read_bytes()


async def test_copy_that_begins_in_a_cancelled_task_has_its_time(
    sshd: SshServer, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that fetches logs in a `finally`: it is not the copy that was cancelled."""
    monkeypatch.setattr(connection, "_LEAVING_SECONDS", 0.0)
    (there / "log").write_bytes(b"log")
    begun = asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await session.copy_out(f"{there}/log", here)

    async with vsock.guest_session("alpha") as session:
        working = asyncio.create_task(work())
        await begun.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
    assert (here / "log").read_bytes() == b"log"


async def test_break_during_many_small_files_warns_of_nothing(
    guest: Guest, programs: Path, here: Path, there: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Those that have not begun are no coroutines that nobody awaits."""
    (here / "tree").mkdir()
    for number in range(100):
        (here / f"tree/{number}").write_bytes(os.urandom(1000))
    install(programs, 20_000)
    with ssh_server(guest, programs):
        async with vsock.guest_session("alpha") as session:
            with pytest.raises(SessionError, match="ended during the copy"):
                await session.copy_in(here / "tree", str(there))
    gc.collect()
    assert [str(one.message) for one in recwarn if "never awaited" in str(one.message)] == []
