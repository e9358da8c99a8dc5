"""The `sftp-server` of a userspace guest: asyncssh's server, with standard input and output as OpenSSH's has them.

`install` makes it a program of that name, which runs until it has read or written so many bytes: then it ends, or it
makes a file, `silent`, beside itself and answers nothing any more.
"""

import asyncio
import os
import shlex
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.logging import logger
from asyncssh.sftp import SFTPServerHandler

__all__ = ["install"]

ENDLESS = 1 << 60
_SFTP_VERSION = 3


def install(folder: Path, breaks_after: int = ENDLESS, *, is_silent: bool = False) -> Path:
    """Make the program in a folder, which is made if need be; returns the folder."""
    folder.mkdir(exist_ok=True)
    program = folder / "sftp-server"
    words = [str(breaks_after), *([str(folder / "silent")] if is_silent else [])]
    command = shlex.join([sys.executable, str(Path(__file__).resolve()), *words])
    program.write_text(f"#!/bin/sh\nexec {command}\n")
    program.chmod(0o755)
    return folder


class _Channel:
    """What asyncssh's server calls of the reader, writer and channel of SSH."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.logger = logger
        self.channel = self
        self.readexactly = reader.readexactly
        self.write = writer.write
        self.close = writer.close
        self.is_closing = writer.is_closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """It takes the names of a link as OpenSSH does."""
        return "OpenSSH" if name == "client_version" else default

    def get_connection(self) -> Any:
        """There is none."""
        return None

    get_environment = get_connection


class _Breaking(asyncssh.SFTPServer):
    left = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else ENDLESS

    def _count(self, size: int) -> None:
        _Breaking.left -= size
        if _Breaking.left < 0 and sys.argv[2:]:
            Path(sys.argv[2]).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if _Breaking.left < 0:
            os._exit(1)

    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        self._count(len(data))
        return super().write(file_obj, offset, data)

    def read(self, file_obj: object, offset: int, size: int) -> Any:
        self._count(size)
        return super().read(file_obj, offset, size)


async def _streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Standard input and output: one socket, or the pipes that ncat gives."""
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        return await asyncio.open_connection(sock=socket.socket(fileno=os.dup(0)))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await loop.connect_read_pipe(lambda: protocol, os.fdopen(0, "rb"))
    flow = asyncio.streams.FlowControlMixin(loop)
    transport, _ = await loop.connect_write_pipe(lambda: flow, os.fdopen(1, "wb"))
    return reader, asyncio.StreamWriter(transport, flow, reader, loop)


async def _serve() -> None:
    channel: Any = _Channel(*await _streams())
    await SFTPServerHandler(_Breaking(channel), channel, channel, _SFTP_VERSION).run()


if __name__ == "__main__":
    asyncio.run(_serve())
