"""What fails in the guest while a large file passes as a stream costs that file; and the CRCs that are trusted.

The guest's programs are its python3, and dd and cksum, of which cksum is ours in Python: Debian 12 has none that knows
this CRC.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.programs import find
from tests.ssh.server import SshServer
from tests.ssh.sftp_program import install
from tests.ssh.test_copying import names_in
from tests.ssh.test_plain import replace
from tests.ssh.test_streams import LITTLE, SIZE, change, data_of

import vsock
from vsock.errors import CopyError, SessionError
from vsock.guest import Guest
from vsock.ssh.copying import Progress, connection, digests, streams
from vsock.ssh.copying.digests import CHECK_VALUE, CHECKED, CRC32, KINDS, SEGMENT, read_crc
from vsock.ssh.copying.stream_programs import LINE
from vsock.ssh.identity import Identity

pytestmark = pytest.mark.programs("perl")

DEADLINE: Final = 30.0

CKSUM: Final = """
import sys, zlib
assert sys.argv[1:] == ["-a", "crc32b"], sys.argv
value = size = 0
while data := sys.stdin.buffer.read(1 << 20):
    value, size = zlib.crc32(data, value), size + len(data)
print({said})
"""

DD: Final = """
import os, resource, signal, sys
words = dict(word.split("=", 1) for word in sys.argv[1:])
{first}
os.execv({dd!r}, ["dd", *sys.argv[1:]])
"""


@pytest.fixture(params=["dd and cksum", "python3"])
def by(request: pytest.FixtureRequest) -> str:
    """What copies in the guest."""
    return str(request.param)


@pytest.fixture
def programs(tmp_path: Path, by: str) -> Path:
    """A folder with these programs of the guest; the others are of no use."""
    folder = install(tmp_path / "programs", LITTLE)
    if by == "python3":
        replace(folder, "dd", "raise SystemExit(1)")
        (folder / "python3").symlink_to(sys.executable)
    else:
        replace(folder, "cksum", CKSUM.format(said="value, size"))
        replace(folder, "python3", "raise SystemExit(1)")
    return folder


@pytest.fixture
def sshd(guest: Guest, programs: Path) -> Iterator[SshServer]:
    """An SSH server in alpha, with these programs."""
    with SshServer(guest, Identity.of_user().public_key(), programs=programs) as running:
        yield running


def make_tree(folder: Path) -> dict[str, bytes]:
    """Two large files and a small one."""
    files = {"large": data_of(2 * SIZE), "other": data_of(SIZE), "small": b"small"}
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


async def test_file_that_the_guest_cannot_write_is_one_line(
    sshd: SshServer, programs: Path, here: Path, there: Path, by: str
) -> None:
    """The line has the guest's own reason; the others are copied, and no part stays."""
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE,({SIZE},{SIZE}))"
    if by == "python3":
        change(programs, "import os,zlib", f"import os,zlib,resource; {limit}")
    else:
        first = f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {limit}"
        replace(programs, "dd", DD.format(first=first, dd=str(find("dd"))))
    files = make_tree(here / "tree")
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError) as caught:
            await guest.copy_in(here / "tree", str(there))
    assert caught.value.failures == (f"alpha:{there}/tree/large: File too large",)
    del files["large"]
    assert {path.name: path.read_bytes() for path in (there / "tree").iterdir()} == files


async def test_file_that_vanishes_in_the_guest_is_one_line(
    sshd: SshServer, programs: Path, here: Path, there: Path, by: str
) -> None:
    """In the words that it has by SFTP; the others are copied, and no part stays."""
    if by == "python3":
        change(programs, "  f=os.open(", '  if b"large" in path: os.unlink(path)\n  f=os.open(')
    else:
        first = 'if words.get("if", "").endswith("large"): os.unlink(words["if"])'
        replace(programs, "dd", DD.format(first=first, dd=str(find("dd"))))
    files = make_tree(there / "tree")
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(CopyError) as caught:
            await guest.copy_out(f"{there}/tree", here)
    assert caught.value.failures == (f"alpha:{there}/tree/large: no such file or folder",)
    del files["large"]
    assert {path.name: path.read_bytes() for path in (here / "tree").iterdir()} == files


def use_small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of SIZE has nine."""
    small = 1 << 20
    monkeypatch.setattr(digests, "SEGMENT", small)
    monkeypatch.setattr(streams, "SEGMENT", small)
    monkeypatch.setattr(streams, "LINE", LINE.replace(str(SEGMENT), str(small)))


async def test_guest_has_time_for_the_crc_of_each_segment(
    sshd: SshServer,
    programs: Path,
    here: Path,
    there: Path,
    by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them together take longer than one answer may; so a file of any size can be compared."""
    use_small_segments(monkeypatch)
    pause = '__import__("time").sleep(1)'  # a slow guest
    if by == "python3":
        change(programs, "  c=0\n", f"  c=0; {pause}\n")
    else:
        replace(programs, "cksum", CKSUM.format(said=f"({pause}, value)[1], size"))
    (here / "file").write_bytes(data_of(SIZE))
    async with vsock.guest_session("alpha") as guest:
        monkeypatch.setattr(connection, "ANSWER_SECONDS", 8.0)
        monkeypatch.setattr(connection, "_LEAST_BYTES_PER_SECOND", 1 << 40)
        await guest.copy_in(here / "file", str(there))
    assert (there / "file").read_bytes() == data_of(SIZE)


SPOILING: Final = """
import os, subprocess, sys
words = dict(word.split("=", 1) for word in sys.argv[1:])
code = subprocess.call([{dd!r}, *sys.argv[1:]])
if "of" in words:
    file = os.open(words["of"], os.O_RDWR)
    os.pwrite(file, bytes([os.pread(file, 1, {at})[0] ^ 1]), {at})
sys.exit(code)
"""


@pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
async def test_each_segment_is_compared(
    sshd: SshServer,
    programs: Path,
    here: Path,
    there: Path,
    by: str,
    at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte becomes another one before the guest sums the file up."""
    use_small_segments(monkeypatch)
    (here / "file").write_bytes(data_of(SIZE))
    async with vsock.guest_session("alpha") as guest:
        await guest.copy_in(here / "file", f"{there}/good")
        if by == "python3":
            end = "  end=begin+length"
            spoil = f"os.pwrite(f,bytes([os.pread(f,1,{at})[0]^1]),{at})"
            change(programs, end, f"{end}; {spoil}")
        else:
            replace(programs, "dd", SPOILING.format(dd=str(find("dd")), at=at))
        with pytest.raises(CopyError, match="what was written is not what was read"):
            await guest.copy_in(here / "file", str(there))
    assert names_in(there) == {"good"}


@pytest.mark.parametrize("by", ["dd and cksum"], indirect=True)
@pytest.mark.parametrize("said", ["value ^ 1, size", "'CRC32B (-) =', value", "hex(value), size"])
async def test_cksum_that_says_another_crc_is_not_trusted(
    sshd: SshServer, programs: Path, here: Path, there: Path, said: str
) -> None:
    """Then python3 does it."""
    replace(programs, "cksum", CKSUM.format(said=said))
    (programs / "python3").unlink()
    (programs / "python3").symlink_to(sys.executable)
    (here / "file").write_bytes(data_of(SIZE))
    async with vsock.guest_session("alpha") as guest:
        await guest.copy_in(here / "file", str(there))
    assert (there / "file").read_bytes() == data_of(SIZE)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"3421780262 9", 3421780262),
        (b"0", 0),
        (b" 7\t12 -", 7),
        (b"", None),
        (b" ", None),
        (b"-1 9", None),
        (b"4294967296 9", None),
        (b"00000000007 9", None),
        (b"1e3 9", None),
        (b"CRC32B (-) = cbf43926", None),
        ("٣ 9".encode(), None),
    ],
)
def test_crc_is_the_first_word_of_a_line(line: bytes, value: int | None) -> None:
    """A decimal number of 32 bits, and nothing else is taken for one."""
    assert read_crc(line) == (None if value is None else value.to_bytes(4))


def test_crc_is_the_one_of_catalogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each segment, however the data comes in pieces."""
    digest = KINDS[CRC32]()
    digest.update(CHECKED.encode())
    assert digest.digest() == CHECK_VALUE.to_bytes(4)
    monkeypatch.setattr(digests, "SEGMENT", 9)
    for size in (1, 4, 9, 10, 27):
        digest = KINDS[CRC32]()
        data = CHECKED.encode() * 3
        for begin in range(0, len(data), size):
            digest.update(data[begin : begin + size])
        assert digest.digest() == CHECK_VALUE.to_bytes(4) * 3


@pytest.mark.parametrize("by", ["python3"], indirect=True)
async def test_stream_ends_with_the_session_whatever_the_guest_sends(
    sshd: SshServer, programs: Path, here: Path, there: Path
) -> None:
    """Its program has ended, as sshd says, and a child of it goes on sending a little at a time."""
    gone = here / "gone"
    child = f"""os.close(2); parent=os.getpid()
  if os.fork(): os._exit(0)
  while os.getppid()==parent: pass
  open("{gone}","w")
  while 1: put(1,bytes(4096)); __import__("time").sleep(.01)
"""
    change(programs, "  os.lseek(f,begin,0)\n", f"  {child}")
    (there / "file").touch()
    with (there / "file").open("r+b") as file:
        file.truncate(1 << 40)
    async with vsock.guest_session("alpha") as guest, asyncio.timeout(DEADLINE):
        closing: list[asyncio.Task[None]] = []
        seen: list[Progress] = []

        def close(progress: Progress) -> None:
            seen.extend([progress] * gone.exists())
            if len(seen) == 2:  # sshd has told the end meanwhile
                closing.append(asyncio.create_task(guest.close()))

        with pytest.raises(SessionError, match="the session with alpha ended during the copy"):
            await guest.copy_out(f"{there}/file", here / "file", progress=close)
        await closing[0]
    assert not (here / "file").exists()
