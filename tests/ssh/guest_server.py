"""`vsock-sshd` on a Unix socket, as a process of this machine."""

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from vsock.ssh.guest_server import server_path
from vsock.ssh.identity import Identity

SECONDS = 30


async def until(condition: Callable[[], bool]) -> None:
    """Wait until another process has made it true."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - no event of this process tells
            await asyncio.sleep(0.02)


class GuestServer:
    """The program, which lets in `identity`; it ends with the block."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.socket = folder / "sshd"
        self._keys = folder / "authorized_keys"
        self._keys.write_text(f"{identity.public_key()}\n")
        self._command = [
            str(server_path()),
            *("--listen", f"unix:{self.socket}"),
            *("--authorized-keys", str(self._keys)),
            *("--host-key", str(folder / "host_key")),
        ]

    @property
    def host(self) -> str:
        """What `guest_session` takes."""
        return f"unix{self.socket}"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close_log(self) -> None:
        """Nobody reads its stderr any more."""
        assert self._process.stderr
        self._process.stderr.close()

    def memory(self) -> int:
        """Bytes of memory that are its own."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) * 1024

    def descriptors(self) -> set[int]:
        """Those that it has open."""
        return {int(path.name) for path in Path(f"/proc/{self.pid}/fd").iterdir()}

    def children(self) -> list[int]:
        """The processes that it has started."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(word) for word in text.split()]

    async def until_childless(self) -> None:
        """Wait until all of them have ended."""
        await until(lambda: not self.children())

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        self.said = self._process.stderr.readline()
        assert "listening" in self.said, self.said + self._process.stderr.read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lived = self._process.poll() is None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stderr
        said = "" if self._process.stderr.closed else self._process.stderr.read()
        self._process.stderr.close()
        assert lived, said
