"""Files that threads use are closed behind their last use, so that no other file has their descriptor's number before."""

import asyncio
import fcntl
import os
import threading
from pathlib import Path
from typing import Final

import pytest
from tests.waiting import until

from vsock.ssh.copying.host import HostSide
from vsock.ssh.copying.in_use import InUse
from vsock.ssh.copying.sides import CHUNK, EntryError, part_name

DEADLINE: Final = 30.0


def test_file_is_closed_once_and_behind_its_last_use() -> None:
    """Nobody else can begin to use it meanwhile."""
    closed: list[int] = []
    file = InUse(7, closed.append)
    with file as one, file as other:
        assert (one, other) == (7, 7)
        file.close()
        assert file.is_closed
        with pytest.raises(OSError, match="Bad file descriptor"), file:
            pass
        assert closed == []
    file.close()
    assert closed == [7]


async def test_what_a_cancelled_copy_still_writes_reaches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the piece that is at work, and does not keep the next copy from the part."""
    begun, goes_on = threading.Event(), threading.Event()
    descriptors: list[int] = []
    write = os.pwrite

    def late(descriptor: int, data: memoryview, offset: int) -> int:
        descriptors.append(descriptor)
        begun.set()
        assert goes_on.wait(DEADLINE)
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", late)  # a disk that takes its time
    folder = await HostSide().folder(os.fsencode(tmp_path))
    writer = await folder.writer(b"file", "tag", resume=False)
    writing = asyncio.create_task(writer.write(0, memoryview(bytes(3 * CHUNK))))
    assert await asyncio.to_thread(begun.wait, DEADLINE)
    writing.cancel()
    await asyncio.wait([writing])
    await writer.close()
    with (tmp_path / "other").open("wb", buffering=0):
        again = await folder.writer(b"file", "tag", resume=True)
        goes_on.set()
        until(lambda: not is_open(descriptors[0]))
    await again.close()
    await folder.close()
    assert (tmp_path / "other").stat().st_size == 0
    assert (tmp_path / ".file.tag.part").stat().st_size == CHUNK


def is_open(descriptor: int) -> bool:
    """Whether this process has a file of this number."""
    return Path(f"/proc/self/fd/{descriptor}").is_symlink()


async def test_part_that_gets_its_name_before_it_is_locked_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another copy with --resume has finished it in between: what is under the final name stays whole."""
    part = tmp_path / os.fsdecode(part_name(b"file", "tag"))
    part.write_bytes(b"whole")
    lock = fcntl.flock

    def late(descriptor: int, kind: int) -> None:
        part.rename(tmp_path / "file")
        lock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)  # this process is not at work for a moment
    folder = await HostSide().folder(os.fsencode(tmp_path))
    try:
        with pytest.raises(EntryError, match="file: another `vsock cp` has written it meanwhile"):
            await folder.writer(b"file", "tag", resume=True)
    finally:
        await folder.close()
    assert (tmp_path / "file").read_bytes() == b"whole"
