"""A plain vsock connection beside a session: a program of the guest, with the connection as its standard streams.

What passes between a guest and its host never leaves the machine, and under emulation ssh's cipher costs more than
all the rest. So the order to connect goes over ssh, and the data does not. The guest connects, to a port that this
process listens on; the switch's policy rules on that as on any connection. Only the guest of the session may connect,
and only with a token that it got over ssh, which is good for one connection.

What connects is a program that the guest has: perl, python3, socat or ncat. Nothing of ours is installed there.
"""

import asyncio
import hmac
import secrets
import shlex
from contextlib import suppress
from socket import SOCK_STREAM
from typing import TYPE_CHECKING, Any, Final

from vsock._socket.transport import ListenOptions
from vsock._system.text import printable
from vsock.address import CID_ANY, PORT_ANY, Address
from vsock.aio.server import Server
from vsock.errors import SessionError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from asyncssh import SSHClientConnection, SSHClientProcess

    from vsock.ssh.session import GuestSession

__all__ = ["DataConnection", "DataConnectionError", "open_data_connection"]

OPEN_SECONDS: Final = 30.0
"""How long the guest may take to connect; an emulated one on a busy machine needs seconds to start a program."""

_TOKEN_SECONDS: Final = 10.0
_MOST_WAITING: Final = 8
"""Connections whose token has not come yet; more are closed at once."""

_READ_AHEAD: Final = 512 << 10
"""Bytes that are read from the guest before anybody wants them; asyncio reads up to twice as many."""

_MOST_SAID: Final = 4096
"""Bytes of what a program that failed has said; its last line is the reason."""

_TOKEN_VARIABLE: Final = "VSOCK_TOKEN"
_NO_PROGRAM, _NO_OPENER = 93, 94

_PERL: Final = """\
socket(S,40,1,0) && connect(S,pack("SSLLx4",40,0,$ARGV[1],$ARGV[0])) or die "connect: $!\\n";
$t=delete $ENV{VSOCK_TOKEN};
syswrite(S,$t)==length($t) or die "send: $!\\n";
open(STDIN,"<&S"); open(STDOUT,">&S"); shift; shift; exec {$ARGV[0]} @ARGV; die "exec: $!\\n"
"""

_PYTHON: Final = """\
import os,sys,_socket as s
c=s.socket(40,1); c.connect((int(sys.argv[1]),int(sys.argv[2])))
t=os.environ.pop("VSOCK_TOKEN").encode(); assert c.send(t)==len(t)
os.dup2(c.fileno(),0); os.dup2(c.fileno(),1); os.execv(sys.argv[3],sys.argv[3:])
"""

# The token comes by standard input: all users of the guest may read the arguments of a process, and only its own its
# environment. socat and ncat give the words to a shell, so these come to it by the environment, too, quoted: without IFS
# and names of files in them, they are one word until `eval` reads them.
_OPENER: Final = f"""\
IFS= read -r {_TOKEN_VARIABLE} && export {_TOKEN_VARIABLE} || exit
has() {{ command -v "$1" >/dev/null 2>&1; }}
cid=$1 port=$2 arguments=$3; shift 3
for program do has "$program" && break; done
has "$program" || exit {_NO_PROGRAM}
eval "set -- $arguments"
if has perl; then exec perl -e '{_PERL}' "$cid" "$port" "$program" "$@"; fi
export VSOCK_COMMAND="$program $arguments"
run='printf %s ${_TOKEN_VARIABLE}; unset {_TOKEN_VARIABLE}; IFS=; set -f; eval exec $VSOCK_COMMAND'
if has socat && socat -V | grep -q 'WITH_VSOCK 1'; then
  exec socat "VSOCK-CONNECT:$cid:$port" "SYSTEM:$run,nofork"
fi
if has python3 && python3 -IS -c 'import _socket; _socket.AF_VSOCK' 2>/dev/null; then
  exec python3 -IS -c '{_PYTHON}' "$cid" "$port" "$(command -v "$program")" "$@"
fi
if has ncat && ncat --help 2>&1 | grep -q -e --vsock; then
  exec ncat --vsock --sh-exec "$run" "$cid" "$port"
fi
exit {_NO_OPENER}
"""


class DataConnectionError(Exception):
    """There is no data connection; the text says why, in a few words.

    Attributes:
        refused: as of `DataConnection`.
        is_late: the guest was told to connect, and nothing came of it in time: something between them may be wrong.
    """

    def __init__(self, text: str, *, refused: int = 0, is_late: bool = False) -> None:
        super().__init__(text)
        self.refused = refused
        self.is_late = is_late


class DataConnection:
    """The connection, and the guest's program behind it.

    Attributes:
        reader: what the program writes.
        writer: what it reads; `write_eof` ends its standard input.
        process: the program, with its standard error; its standard input and output are not those of this object.
        refused: how many connections were closed before it came: of other guests, with a wrong token, or silent ones.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: "SSHClientProcess[bytes]",
        refused: int,
        session: "SSHClientConnection",
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.refused = refused
        self.process = process
        self._session = session
        self._watch = asyncio.create_task(self._end_with_session())

    async def _end_with_session(self) -> None:
        """Who closes the session wants nothing more to be copied.

        A program that ends of its own has an exit status; then the connection ends by itself, after its last bytes,
        and not later than the session: a guest may say that the program has ended, and send for ever.
        """
        await self.process.wait_closed()
        if self.process.returncode is not None:
            await self._session.wait_closed()
        self.writer.transport.abort()

    async def last_words(self) -> tuple[str, int | None]:
        """Wait for the end of the program; returns the end of its standard error, and its status.

        The status is negative for a signal, and None if sshd does not tell it.
        """
        said = b""
        while piece := await self.process.stderr.read(_MOST_SAID):
            said = (said + piece)[-_MOST_SAID:]
        await self.process.wait_closed()
        return said.decode(errors="replace"), self.process.returncode

    def detach(self) -> "socket.socket":
        """The connection as a socket, for a caller that copies by itself, before anything was read or written here.

        A program that speaks before it was spoken to may have been read here already.

        It is the caller's to close. This object is kept until then: it ends the program.
        """
        self.writer.transport.pause_reading()  # type: ignore[attr-defined] # of every transport that reads
        sock: socket.socket = self.writer.get_extra_info("socket").dup()
        return sock

    def abort(self) -> None:
        """End it at once, and the program by that."""
        self._watch.cancel()
        self.writer.transport.abort()
        self.process.close()

    async def wait_closed(self) -> None:
        """Wait until it is closed, by either side."""
        with suppress(OSError):
            await self.writer.wait_closed()
        self._watch.cancel()
        self.process.close()


async def open_data_connection(
    session: "GuestSession", programs: "Sequence[str]", arguments: "Sequence[str]" = ()
) -> DataConnection:
    """Let the guest connect, with the first of these programs that it has.

    Args:
        session: an open session with the guest.
        programs: names or paths of programs in the guest, without blanks.
        arguments: for the program.

    Raises:
        DataConnectionError: it does not; ssh works as before.
    """
    route = session.route
    if route is None:
        raise DataConnectionError("it is not a guest of a switch")
    transport, cid = route
    try:
        listener = transport.listen(
            Address(CID_ANY, PORT_ANY), ListenOptions(SOCK_STREAM, _MOST_WAITING, reconnect=False)
        )
    except OSError as error:
        raise DataConnectionError(f"no port of the host is free: {error.strerror}") from error
    listener.setblocking(False)
    port = listener.getsockname()[1]
    door = _Door(cid)
    server = Server(listener, door.greet, admit=door.admits, limit=_READ_AHEAD)
    try:
        await server.start_serving()
        host = await asyncio.to_thread(transport.local_cid)
        order = ["sh", "-c", _OPENER, "sh", str(host), str(port), shlex.join(arguments), *programs]
        return await _ordered(session, order, door)
    except TimeoutError:
        reason = f"it did not connect within {OPEN_SECONDS:g} s"
        raise DataConnectionError(reason, refused=door.refused, is_late=True) from None
    except (SessionError, OSError) as error:
        raise DataConnectionError(f"it starts no command: {error}") from error
    finally:
        server.close()
        door.close()


async def _ordered(session: "GuestSession", order: "list[str]", door: "_Door") -> DataConnection:
    """Give the order over ssh, and wait until the guest has connected, or has failed to."""
    async with asyncio.timeout(OPEN_SECONDS):
        process = await session.open_process(order, encoding=None)
        try:
            process.stdin.write(door.token + b"\n")
            process.stdin.write_eof()
            ended = asyncio.ensure_future(process.wait_closed())
            either: set[asyncio.Future[Any]] = {door.came, ended}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            if not door.came.done():
                reason = await _reason(process)
                raise DataConnectionError(reason, refused=door.refused)
            reader, writer = door.came.result()
            return DataConnection(reader, writer, process, door.refused, session.connection)
        except BaseException:
            door.abandon()
            process.close()
            raise


async def _reason(process: "SSHClientProcess[bytes]") -> str:
    """Why the order was not carried out."""
    if process.returncode == _NO_OPENER:
        return "it has no perl, python3, socat or ncat that knows vsock"
    if process.returncode == _NO_PROGRAM:
        return "it has no sftp-server of its own"
    said = (await process.stderr.read(_MOST_SAID)).decode(errors="replace").strip().splitlines()
    return printable(said[-1], 100) if said else f"its command ended with {process.returncode}"


class _Door:
    """Lets the right connection in, and counts the others; what they can hold of ours is bounded."""

    def __init__(self, cid: int) -> None:
        self.token = secrets.token_hex(32).encode()
        self.came: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )
        self.refused = 0
        self._cid = cid
        self._waiting = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def admits(self, peer: Address) -> bool:
        """Asked of each connection, with its peer: only the guest's own may say a token."""
        is_admitted = peer.cid == self._cid and self._waiting < _MOST_WAITING
        self._waiting += is_admitted
        self.refused += not is_admitted
        return is_admitted

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the token."""
        self._writers.add(writer)
        said = b""
        try:
            with suppress(TimeoutError, asyncio.IncompleteReadError, OSError):
                async with asyncio.timeout(_TOKEN_SECONDS):
                    said = await reader.readexactly(len(self.token))
        finally:
            self._waiting -= 1
            self._writers.discard(writer)
        # The first one takes the token: `came` is done, or cancelled, for all after it.
        if hmac.compare_digest(said, self.token) and not self.came.done():
            self.came.set_result((reader, writer))
        else:
            self.refused += 1
            writer.transport.abort()

    def abandon(self) -> None:
        """Close the right one too, if it came: nobody takes it."""
        if self.came.done() and not self.came.cancelled():
            _, writer = self.came.result()
            writer.transport.abort()

    def close(self) -> None:
        """Close all connections but the right one."""
        self.came.cancel()
        for writer in self._writers:
            writer.transport.abort()
