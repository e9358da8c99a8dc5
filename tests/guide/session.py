"""Runs the listings of a page of docs/guide in order, and compares their output.

```python    a whole program; a ```text block directly after it is its output
```console   commands with their output, where … stands for any text. `$ ` is a command on the host,
             `alpha# ` one in the Linux guest alpha. A command that ends in `# leave it running` has a
             terminal of its own: it goes on, and must have its output by the end of the page
```toml      a file, whose name is in its first line

Other blocks are not run. A reader waits until a program is ready before typing the next command, so a
command is repeated for a while until its output is that of the page.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from vsock.runtime import RuntimeFiles
from vsock.testing import GuestProcess, UmlGuest

DEADLINE = 60
GUEST = "alpha"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(rf"(\$|{GUEST}#) (.*)")
_LEFT_RUNNING = re.compile(r" +# leave it running.*")


@dataclass
class Command:
    """One command of a page, with the lines of its output."""

    where: str
    text: str
    lines: list[str] = field(default_factory=list)
    is_left_running: bool = False

    @property
    def output(self) -> str | None:
        """Its output on the page; None if the page shows none."""
        return "\n".join(self.lines) if self.lines else None


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: (language, content)."""
    return _BLOCK.findall(page)


def commands(block: str) -> Iterator[Command]:
    """The commands of a ```console block."""
    command: Command | None = None
    for line in block.splitlines():
        if prompt := _PROMPT.fullmatch(line):
            if command:
                yield command
            text, is_left = _LEFT_RUNNING.subn("", prompt[2])
            command = Command(prompt[1], text.partition("  # ")[0], is_left_running=bool(is_left))
        else:
            assert command, f"output of no command: {line}"
            command.lines.append(line)
    if command:
        yield command


def matches(expected: str, output: str) -> bool:
    """Whether `output` is that of a page; the number of spaces does not matter."""
    pattern = ".*?".join(map(re.escape, _spaced(expected).split("…")))
    return re.fullmatch(pattern, _spaced(output), re.DOTALL) is not None


def _spaced(text: str) -> str:
    """The text with single spaces, because the width of columns depends on their content."""
    return re.sub(r" *\n *", "\n", re.sub(" +", " ", text)).strip()


class Session:
    """A reader in an empty directory, with the package installed and a link to the examples."""

    def __init__(self, directory: Path, runtime_dir: Path) -> None:
        self._directory = directory
        self._runtime_dir = runtime_dir
        (directory / "examples").symlink_to(Path(__file__).parents[2] / "examples")
        tools = Path(sys.executable).parent
        self._environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "VSOCK_RUNTIME_DIR": str(runtime_dir),
            "COLUMNS": "100",
        }
        self._running: list[tuple[Command, subprocess.Popen[str], Path]] = []
        self._guest: UmlGuest | None = None
        self._in_guest: list[tuple[Command, GuestProcess]] = []

    def run_programs(self, page: str) -> None:
        """Run only the whole programs of a page."""
        for (language, content), follower in pairwise([*blocks(page), ("", "")]):
            if language == "python":
                self._program(content, follower[1] if follower[0] == "text" else None)

    def read(self, page: str) -> None:
        """Run all listings of a page."""
        found = blocks(page)
        for number, (language, content) in enumerate(found):
            if language == "python":
                follower = found[number + 1] if number + 1 < len(found) else ("", "")
                self._program(content, follower[1] if follower[0] == "text" else None)
            elif language == "console":
                for command in commands(content):
                    self._do(command)
            elif language == "toml":
                name = content.partition("\n")[0].removeprefix("# ")
                (self._directory / name).write_text(content)
        for command, _, log in self._running:
            if command.output:
                _until(command, partial(_printed, log))
        for command, running in self._in_guest:
            for line in command.lines:
                assert matches(line, running.read_line(DEADLINE)), command.text

    def close(self) -> None:
        """End all commands that were left running."""
        for _, process, _ in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)
        if self._guest:
            self._guest.kill()

    def _program(self, source: str, output: str | None) -> None:
        status, said = self._run([sys.executable, "-W", "error", "-c", source])
        assert status == 0, said
        assert output is None or matches(output, said), said

    def _do(self, command: Command) -> None:
        if command.where != "$":
            self._do_in_guest(command)
        elif command.is_left_running:
            log = self._directory / f"log-{len(self._running)}"
            with log.open("w") as sink:
                process = subprocess.Popen(
                    ["sh", "-c", command.text],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    text=True,
                    cwd=self._directory,
                    env=self._environment,
                    start_new_session=True,
                )
            self._running.append((command, process, log))
        else:
            _until(command, lambda: self._run(["sh", "-c", command.text]))

    def _do_in_guest(self, command: Command) -> None:
        if self._guest is None:
            self._guest = UmlGuest(RuntimeFiles(self._runtime_dir).guest_socket(GUEST), GUEST)
            self._guest.start()
        guest = self._guest
        if command.is_left_running:
            self._in_guest.append((command, guest.spawn(command.text)))
            return

        def attempt() -> tuple[int, str]:
            done = guest.run(f"{command.text} 2>&1", check=False)
            return done.status, done.stdout

        _until(command, attempt)

    def _run(self, arguments: list[str]) -> tuple[int, str]:
        """Run a command to its end; returns status and output."""
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._directory,
            env=self._environment,
            timeout=DEADLINE,
            check=False,
        )
        return done.returncode, done.stdout


def _printed(log: Path) -> tuple[int, str]:
    """The output so far of a command that still runs."""
    return 0, log.read_text()


def _until(command: Command, attempt: Callable[[], tuple[int, str]]) -> None:
    """Try until the output is that of the page; if the page shows none, until the status is 0."""
    deadline = time.monotonic() + DEADLINE
    while True:
        status, said = attempt()
        expected = command.output
        if status == 0 if expected is None else matches(expected, said):
            return
        assert time.monotonic() < deadline, (
            f"{command.text}\nends with {status} and prints\n{said}\nand not\n{expected}"
        )
        time.sleep(0.05)
