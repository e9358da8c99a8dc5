"""A VMM's process: its console, its end, and that no process outlives the test."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vsock.testing._process import VmmProcess

DEADLINE = 10


async def start(script: str, work_dir: Path | None = None) -> VmmProcess:
    """A shell in place of a VMM."""
    return await VmmProcess.start(
        ["/bin/sh", "-c", script],
        fds=[],
        environment={"WORD": "hello"},
        work_dir=work_dir,
        on_line=lambda line: None,
    )


def group_is_gone(group: int) -> bool:
    """Whether no process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


async def test_console_is_kept_and_the_status_told() -> None:
    """Standard output and error are one console."""
    process = await start("echo $WORD; echo err >&2; printf end; exit 3")
    async with asyncio.timeout(DEADLINE):
        assert await process.wait() == 3
        await process.kill()
    assert sorted(process.console()) == ["end", "err", "hello"]


async def test_kill_ends_helpers_too() -> None:
    """User-Mode Linux has helper processes that outlive the first one."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    process = await VmmProcess.start(
        ["/bin/sh", "-c", "sleep 1000 & echo started; wait"],
        fds=[],
        environment={},
        work_dir=None,
        on_line=lines.put_nowait,
    )
    async with asyncio.timeout(DEADLINE):
        assert await lines.get() == "started"
        await process.kill()
        await process.kill()  # harmless
    assert process.status == -signal.SIGKILL


PROGRAM = """
import asyncio, sys
from pathlib import Path
from vsock.testing._process import VmmProcess

async def main():
    process = await VmmProcess.start(
        ["/bin/sh", "-c", "sleep 1000 & wait"],
        fds=[], environment={}, work_dir=Path(sys.argv[1]), on_line=print)
    print(process.pid, flush=True)
    await process.wait()

asyncio.run(main())
"""


def test_group_and_files_are_gone_when_the_program_is_killed(tmp_path: Path) -> None:
    """After SIGKILL of the program, a watcher cleans up."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    (work_dir / "file").touch()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(work_dir)], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        group = int(program.stdout.readline())
        program.kill()
        program.wait(DEADLINE)
        # The whole group has the console: it ends when the last process has ended.
        program.stdout.read()
    deadline = Deadline()
    while not group_is_gone(group) or work_dir.exists():
        deadline.check()


class Deadline:
    """Limits a loop that waits for other processes without an event for their end."""

    def __init__(self) -> None:
        self._left = DEADLINE * 100

    def check(self) -> None:
        """Wait a hundredth of a second; fails after too many calls."""
        self._left -= 1
        if self._left == 0:
            pytest.fail("processes or files are left")
        signal.sigtimedwait([], 0.01)
