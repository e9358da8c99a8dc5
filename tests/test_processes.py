"""`start_process`: a start that is cancelled ends, and leaves no process."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from vsock._system.processes import start_process

SECONDS = 30
PIPE = asyncio.subprocess.PIPE


def running(word: str) -> bool:
    """Whether a process of this one has it as its last argument."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if word.encode() in words:
                return True
    return False


@pytest.mark.parametrize("turns", range(12))
async def test_start_that_is_cancelled_ends(turns: int) -> None:
    """Whatever asyncio is doing just then."""
    word = f"{1000 + turns}.{os.getpid()}"
    starting = asyncio.ensure_future(start_process("sleep", word, stdout=PIPE, stderr=PIPE))
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    async with asyncio.timeout(SECONDS):
        try:
            process = await starting
        except asyncio.CancelledError:
            pass
        else:  # it was started before
            process.kill()
            await process.communicate()
    assert not running(word)


async def test_program_that_is_missing_is_an_error() -> None:
    """As asyncio says it."""
    with pytest.raises(FileNotFoundError):
        await start_process("/nonexistent/program")
