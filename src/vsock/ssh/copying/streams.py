"""Large files as plain streams: a data connection with nothing between the bytes but one line before each file.

sftp-server reads and writes 32 KiB at a time, and under emulation these many system calls are what is slow. A stream
has no requests. SFTP makes the file, gives it mode and time, and renames it, as for any other file.

Behind the connection are the guest's dd and cksum, or its python3: both copy a file, and then say its CRC. A CRC finds
errors. A guest that lies would lie about any digest.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from socket import MSG_WAITALL, SHUT_RDWR
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from vsock.ssh.attached import in_thread
from vsock.ssh.copying.digests import CRC32, read_crc
from vsock.ssh.copying.in_use import InUse
from vsock.ssh.copying.sides import CHUNK
from vsock.ssh.data_connection import DataConnectionError, open_data_connection

if TYPE_CHECKING:
    from vsock.ssh.data_connection import DataConnection
    from vsock.ssh.session import GuestSession

__all__ = ["PIECE", "STREAM_FROM", "GuestStream", "fill"]

STREAM_FROM: Final = 8 << 20
"""Bytes of a file from which on a stream is quicker; to open one takes as long as some MiB by SFTP."""

PIECE: Final = 1 << 20
"""Bytes of a file that are sent or received before the next look."""

_READY: Final = b"ready\n"
_NONE: Final = "none"
_NO_SENDFILE: Final = (errno.EINVAL, errno.ENOSYS)
"""Errors of a file system without it."""

_T = TypeVar("_T")
_MOST_SAID: Final = 256
"""Bytes that a guest may say after the data."""

# dd says how much it has copied. If that is too little, the guest says nothing more, and closes. Nobody may put a link
# in the place of the file that SFTP has made. A file that grows ends where it did when it was opened. Another copy may write
# to the same part, so that each writes at offsets, and the CRC is of what the file is then.
_BY_TOOLS: Final = f"""\
export LC_ALL=C
exec 3>&1
sum() {{ if [ "$kind" = {_NONE} ]; then echo 0; else cksum -a {CRC32}b <"$path"; fi; }}
echo ready
while IFS= read -r path && IFS=" " read -r way kind chunks length; do
  if [ "$way" = send ]
  then said=$(dd bs={CHUNK} iflag=count_bytes skip="$chunks" count="$length" if="$path" 2>&1 >&3)
  else said=$(dd bs={CHUNK} iflag=fullblock,count_bytes count="$length" \
    of="$path" seek="$chunks" oflag=nofollow conv=notrunc,nocreat 2>&1)
  fi
  case "$said" in *"
$length byte"*) sum || exit;; *) exit 1;; esac
done
"""

# One process for all: to start one takes User-Mode Linux a tenth of a second.
_BY_PYTHON: Final = f"""\
import os,zlib
b=memoryview(bytearray({PIECE}))
def put(f,m):
  while m: m=m[os.write(f,m):]
def copy(i,o,left):
  while left>0:
    n=os.readv(i,[b[:left]])
    if not n: break
    put(o,b[:n]); left-=n
  return left
def crc(f,left):
  c=0
  os.lseek(f,0,0)
  while left>0:
    n=os.readv(f,[b[:left]])
    if not n: break
    c=zlib.crc32(b[:n],c); left-=n
  return c
def line():
  r=b""
  while r[-1:]!=b"\\n":
    x=os.read(0,1)
    if not x: os._exit(0)
    r+=x
  return r[:-1]
put(1,b"ready\\n")
while 1:
  path=line(); way,kind,chunks,length=line().split(); begin=int(chunks)*{CHUNK}; length=int(length)
  f=os.open(path,os.O_RDONLY if way==b"send" else os.O_RDWR|os.O_NOFOLLOW)
  os.lseek(f,begin,0)
  if copy(f,1,length) if way==b"send" else copy(0,f,length): break
  put(1,b"%d\\n"%(0 if kind==b"{_NONE}" else crc(f,begin+length)))
  os.close(f)
"""

_LINE: Final = f"""\
if cksum -a {CRC32}b </dev/null >/dev/null 2>&1 && dd iflag=count_bytes,nofollow count=0 </dev/null 2>/dev/null
then {_BY_TOOLS}
else exec python3 -IS -c '{_BY_PYTHON}'
fi
"""


def fill(sock: socket.socket, buffer: memoryview) -> bool:
    """Receive until the buffer is full; returns False at the end of the data."""
    while buffer:
        # A signal, or a stop of this process, cuts it short.
        count = sock.recv_into(buffer, len(buffer), MSG_WAITALL)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def _send(sock: socket.socket, file: InUse[int], offset: int, size: int) -> int:
    with file as descriptor:
        try:
            return os.sendfile(sock.fileno(), descriptor, offset, size)
        except OSError as error:
            if error.errno not in _NO_SENDFILE:
                raise
        data = os.pread(descriptor, size, offset)
        sock.sendall(data)
        return len(data)


class GuestStream:
    """A stream to and from files of the guest, one after the other.

    Threads wait for it: asyncio would be woken for each few packets. The caller bounds the time, and ends it.
    """

    def __init__(self, data: "DataConnection") -> None:
        self._data = data
        sock = socket.socket(fileno=data.detach().detach())
        sock.setblocking(True)
        self._sock = InUse(sock, socket.socket.close)
        self._watch = asyncio.create_task(self._end_with_session())

    @classmethod
    async def open(cls, session: "GuestSession") -> Self:
        """Let the guest connect.

        Raises:
            DataConnectionError: it lacks what that needs.
        """
        data = await open_data_connection(session, ["sh"], ["-c", _LINE])
        try:
            # It says nothing more before it is asked to, so that what it says then is not read here.
            if await data.reader.readexactly(len(_READY)) == _READY:
                return cls(data)
        except (asyncio.IncompleteReadError, OSError) as error:
            data.abort()
            raise DataConnectionError("it begins no stream") from error
        except BaseException:
            data.abort()
            raise
        data.abort()
        raise DataConnectionError("it begins no stream")

    async def _end_with_session(self) -> None:
        await self._data.wait_closed()
        self._end()

    def _end(self) -> None:
        with suppress(OSError), self._sock as sock:  # the other side has ended it
            sock.shutdown(SHUT_RDWR)

    async def take(self, path: bytes, begin: int, length: int, *, verify: bool) -> None:
        """Let the guest write what is sent to a file that is there, from an offset."""
        await self._order("take", path, begin, length, verify=verify)

    async def give(self, path: bytes, begin: int, length: int, *, verify: bool) -> None:
        """Let the guest send a part of a file."""
        await self._order("send", path, begin, length, verify=verify)

    async def _order(self, way: str, path: bytes, begin: int, length: int, *, verify: bool) -> None:
        words = f"{way} {CRC32 if verify else _NONE} {begin // CHUNK} {length}\n"
        await self._in_thread(socket.socket.sendall, path + b"\n" + words.encode())

    async def send(self, file: InUse[int], offset: int, size: int) -> int:
        """Send from a file, and return how many bytes; none at its end.

        Raises:
            ConnectionError: the guest's program has ended.
        """
        return await self._in_thread(_send, file, offset, size)

    async def receive(self, buffer: memoryview) -> None:
        """Receive until the buffer is full.

        Raises:
            ConnectionError: less has come.
        """
        if not await self._in_thread(fill, buffer):
            raise ConnectionResetError("the guest's program has ended")

    async def crc(self) -> bytes | None:
        """The CRC of its whole file, which the guest says after the last byte; None if it says something else.

        Raises:
            ConnectionError: its program has failed, or has ended before.
        """
        said = b""
        while b"\n" not in said:
            more = await self._in_thread(socket.socket.recv, _MOST_SAID)
            if not more:
                raise ConnectionResetError("the guest's program has ended")
            said += more
            if len(said) >= _MOST_SAID:
                return None
        return read_crc(said)

    async def _in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await in_thread(self._work, call, *arguments)

    def _work(self, call: Callable[..., _T], *arguments: Any) -> _T:
        with self._sock as sock:
            return call(sock, *arguments)

    def close(self) -> None:
        """End it, and the guest's program by that; a thread that waits for it goes on, and fails."""
        self._watch.cancel()
        self._end()
        self._data.abort()
        self._sock.close()
