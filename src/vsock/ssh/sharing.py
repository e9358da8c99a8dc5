"""A folder of this host in a guest: sshfs there, and here an SFTP server that is confined to the folder.

The server is `vsock-sshd --sftp --folder`, a process for each share, which holds against a hostile guest by itself
(crates/sftp/src/tree.rs). The guest gets an order over ssh. What sshfs and the server say to each other passes over a
plain data connection, which is the server's standard input and output; without one, over ssh.
"""

import asyncio
import errno
import os
import posixpath
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import asyncssh

from vsock._system.processes import start_process
from vsock._system.text import printable
from vsock.errors import SessionError
from vsock.ssh.data_connection import DataConnectionError, open_data_connection
from vsock.ssh.guest_server import server_path
from vsock.ssh.session import end, translated
from vsock.ssh.sftp_server import join_over_ssh, notes

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from vsock.ssh.session import GuestSession

__all__ = ["Shared", "shared"]

_PREPARE_SECONDS: Final = 60.0
_MOUNT_SECONDS: Final = 120.0
"""How long sshfs may take to start and mount; an emulated guest on a busy machine needs seconds."""
_END_SECONDS: Final = 10.0
"""How long sshfs may take to unmount when its connection has ended."""
_SERVER_SECONDS: Final = 2.0
"""How long the server may go on when its connection has ended: a disk may be slow."""
_GOING_DOWN_SECONDS: Final = 2.0
"""How long after its programs the session of a guest that goes down may end."""

_MOST_SAID: Final = 4096
"""Bytes of what a program has said; its last line is the reason."""
_MOST_ANSWERED: Final = 16 << 10
"""Bytes that a guest may answer, with a path among them; one that says more is not listened to."""
_LONGEST_REASON: Final = 200

_FAULTS: Final = {
    91: "it has no sshfs: install its package sshfs (fuse-sshfs on Fedora)",
    92: "it has no /dev/fuse: its kernel needs FUSE, as a module or built in",
    93: "something is mounted there already",
    94: "not empty; share at an empty folder, or one that is not there",
}

_UNMOUNT: Final = 'fusermount3 -uz "$1" || fusermount -uz "$1" || umount -l "$1"'

# 1: the folder, which begins with `/` or `./`.
_PREPARE: Final = f"""\
unmount() {{ {_UNMOUNT}; }}
has() {{ command -v "$1" >/dev/null 2>&1; }}
has sshfs || exit 91
[ -c /dev/fuse ] || modprobe fuse 2>/dev/null
[ -c /dev/fuse ] || exit 92
# A sshfs that was killed has left it dead.
case $(LC_ALL=C stat -c %d "$1" 2>&1) in *"ot connected") unmount "$1" ;; esac
mkdir -p -- "$1" && cd -- "$1" || exit
[ "$(stat -c %d .)" = "$(stat -c %d ..)" ] || exit 93
[ -z "$(ls -A .)" ] || exit 94
# What they have depends on the version. Links of the host lead where they lead among the guest's files.
knows() {{ sshfs --help 2>&1 | grep -q "$1"; }}
if knows ' passive '; then mode=passive; else mode=slave; fi
if knows contain_symlinks; then mode=$mode,no_contain_symlinks; fi
echo "$mode"
pwd -P
"""

_MOUNTED: Final = b"vsock: mounted\n"

# 1: the options, 2: the folder. It waits for a line, because what sshfs says first must not come before there is a server.
# A folder in which another file system is mounted is on another device.
_MOUNT: Final = """\
read -r go || exit
before=$(stat -c %d "$2") || exit
{
  while kill -0 $$ 2>/dev/null; do
    now=$(stat -c %d "$2" 2>/dev/null) && [ "$now" != "$before" ] && echo vsock: mounted >&2 && break
    sleep 0.1 2>/dev/null || sleep 1
  done
} </dev/null >/dev/null &
exec sshfs -f -o "$1" host:/ "$2"
"""

_NAMES_SECONDS: Final = 1
"""How long names and attributes are kept in the guest; its kernel keeps them for a second anyway."""


class Shared:
    """A folder of this host that is mounted in a guest.

    Attributes:
        path: where, as an absolute path of the guest.
        notes: what the user should know of it, in lines.
    """

    def __init__(
        self,
        session: "GuestSession",
        path: str,
        server: "Process",
        sshfs: "asyncssh.SSHClientProcess[bytes]",
        remarks: Sequence[str],
    ) -> None:
        self.path = path
        self.notes = list(remarks)
        self._session = session
        self._server = server
        self._sshfs = sshfs
        self._said_by_server = b""
        self._said_by_sshfs = b""
        self._is_mounted = asyncio.Event()
        self._hearing = [
            asyncio.create_task(self._hear_server()),
            asyncio.create_task(self._hear_sshfs()),
        ]
        self._ends = [
            asyncio.ensure_future(server.wait()),
            asyncio.ensure_future(sshfs.wait_closed()),
            asyncio.ensure_future(session.connection.wait_closed()),
        ]

    async def over(self) -> str:
        """Wait until it is not shared any more, and return why."""
        await asyncio.wait(self._ends, return_when=asyncio.FIRST_COMPLETED)
        # A guest that goes down ends its programs first, and sshfs then unmounts as it does otherwise.
        _, of_sshfs, of_session = self._ends
        await asyncio.wait([of_session], timeout=_GOING_DOWN_SECONDS)
        if of_session.done():
            return "the session with it ended"
        await self._hear_last_words()
        if code := self._server.returncode:
            return f"the SFTP server of this host ended: {_last_line(self._said_by_server) or code}"
        await asyncio.wait([of_sshfs], timeout=_END_SECONDS)
        if code := self._sshfs.returncode:
            return f"sshfs of the guest ended: {_last_line(self._said_by_sshfs) or code}"
        return "it was unmounted in the guest"

    async def _mounted(self) -> None:
        """Wait until it is there; SessionError if it is not."""
        mounted = asyncio.ensure_future(self._is_mounted.wait())
        try:
            async with asyncio.timeout(_MOUNT_SECONDS):
                await asyncio.wait([mounted, *self._ends], return_when=asyncio.FIRST_COMPLETED)
                if not mounted.done():
                    await self._hear_last_words()
        except TimeoutError:
            text = f"{self._place}: sshfs did not mount it within {_MOUNT_SECONDS:g} s"
            raise SessionError(errno.ETIMEDOUT, text) from None
        finally:
            mounted.cancel()
        self.notes += [
            f"the SFTP server of this host says: {printable(line, _LONGEST_REASON)}"
            for line in self._said_by_server.decode(errors="replace").splitlines()
        ]
        if not self._is_mounted.is_set():
            said = _last_line(self._said_by_server) or _last_line(self._said_by_sshfs)
            raise SessionError(errno.EIO, f"{self._place}: {said or 'sshfs ended'}")

    async def _hear_last_words(self) -> None:
        """Wait for what programs have said that have ended."""
        pairs = zip(self._hearing, self._ends, strict=False)
        if hearing := [one for one, end in pairs if end.done()]:
            await asyncio.wait(hearing, timeout=_END_SECONDS)

    @property
    def _place(self) -> str:
        return printable(f"{self._session.name}:{self.path}")

    async def _hear_server(self) -> None:
        assert self._server.stderr
        while piece := await self._server.stderr.read(_MOST_SAID):
            self._said_by_server = (self._said_by_server + piece)[-_MOST_SAID:]

    async def _hear_sshfs(self) -> None:
        with suppress(asyncssh.Error, OSError):
            while piece := await self._sshfs.stderr.read(_MOST_SAID):
                self._said_by_sshfs = (self._said_by_sshfs + piece)[-_MOST_SAID:]
                if _MOUNTED in self._said_by_sshfs:
                    self._is_mounted.set()

    async def _end(self, connection: AsyncExitStack) -> None:
        """End the server and the connection; sshfs unmounts by itself then."""
        of_server, of_sshfs, of_session = self._ends
        try:
            await asyncio.wait([of_server], timeout=_SERVER_SECONDS)
            if not of_server.done():
                self._server.kill()
            await of_server
            await connection.aclose()
            await asyncio.wait(
                [of_sshfs, of_session],
                timeout=_END_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            has_unmounted = of_sshfs.done() and self._sshfs.returncode == 0
            if not has_unmounted and not of_session.done():
                with suppress(SessionError, asyncssh.Error, OSError):
                    order = ["sh", "-c", _UNMOUNT, "sh", self.path]
                    await self._session.run(order, timeout=_END_SECONDS)
        finally:
            if self._server.returncode is None:  # cancelled before
                with suppress(ProcessLookupError):
                    self._server.kill()
            for one in (*self._hearing, *self._ends):
                one.cancel()
            await asyncio.gather(*self._hearing, *self._ends, return_exceptions=True)
            self._sshfs.close()


@asynccontextmanager
async def shared(
    session: "GuestSession",
    folder: str,
    path: bytes,
    *,
    writable: bool,
    encrypted: bool,
    all_users: bool,
) -> AsyncIterator[Shared]:
    """Show a folder of this host in a guest, until the end of the block.

    Args:
        session: an open session with the guest.
        folder: an absolute path of this host.
        path: where in the guest, from the home of the user on; made if it is missing.
        writable: whether the guest may change what is in the folder.
        encrypted: let ssh carry the data.
        all_users: let all users of the guest in, and not only the session's.

    Raises:
        SessionError: it is not mounted; the message says why.
        UsageError: this installation has no `vsock-sshd`.
    """
    program = str(server_path())
    mode, place = await _prepare(session, path)
    options = ",".join(
        [
            mode,
            "rw" if writable else "ro",
            "nosuid,nodev,idmap=user",
            f"dcache_timeout={_NAMES_SECONDS}",
            *(["allow_other,default_permissions"] if all_users else []),
        ]
    )
    command = ["sh", "-c", _MOUNT, "sh", options, place]
    serve = [program, "--sftp", "--folder", folder, *(["--writable"] if writable else [])]
    async with AsyncExitStack() as stack:
        remarks: list[str] = []
        sshfs, sock = await _connection(session, command, stack, remarks, encrypted=encrypted)
        stack.callback(sock.close)
        server = await start_process(
            *serve,
            stdin=sock.fileno(),
            stdout=sock.fileno(),
            stderr=asyncio.subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,  # Ctrl-C is this process's
        )
        share = Shared(session, place, server, sshfs, remarks)
        try:
            await share._mounted()
            yield share
        finally:
            with suppress(OSError):  # it has ended
                sock.shutdown(socket.SHUT_RDWR)  # the end of the server's input, and of sshfs's
            await share._end(stack)


async def _prepare(session: "GuestSession", path: bytes) -> tuple[str, str]:
    """Look whether the guest can mount, and make the folder; return options of its sshfs, and the folder's path."""
    asked = os.fsdecode(path)
    order = ["sh", "-c", _PREPARE, "sh", asked if asked.startswith("/") else f"./{asked}"]
    process = await session.open_process(order, encoding=None, start_timeout=_PREPARE_SECONDS)
    try:
        async with asyncio.timeout(_PREPARE_SECONDS):
            with translated(session.name):
                out, err = await asyncio.gather(_first(process.stdout), _first(process.stderr))
                await process.wait_closed()
    except TimeoutError:
        text = f"{session.name} did not answer within {_PREPARE_SECONDS:g} s"
        raise SessionError(errno.ETIMEDOUT, text) from None
    finally:
        end(process)
    if process.returncode is None:
        raise SessionError(errno.ECONNRESET, f"the session with {session.name} ended")
    if code := process.returncode:
        reason = _FAULTS.get(code) or _last_line(err) or f"exit code {code}"
        place = session.name if code in (91, 92) else f"{session.name}:{asked}"
        raise SessionError(errno.EIO, f"{printable(place)}: {reason}")
    mode, _, place = os.fsdecode(out).partition("\n")
    place = place.removesuffix("\n")
    if not _is_canonical(place):
        text = f"{session.name} says that the folder is {place!r}, which is no absolute path"
        raise SessionError(errno.EPROTO, printable(text, _LONGEST_REASON))
    return mode, place


def _is_canonical(path: str) -> bool:
    """Whether it looks as `pwd -P` prints it."""
    is_absolute = path.startswith("/") and not path.startswith("//")
    return is_absolute and "\0" not in path and posixpath.normpath(path) == path


async def _first(reader: "asyncssh.SSHReader[bytes]") -> bytes:
    """All that a program says, or as much as it may."""
    try:
        return await reader.readexactly(_MOST_ANSWERED)
    except asyncio.IncompleteReadError as error:
        return error.partial


async def _connection(
    session: "GuestSession",
    command: list[str],
    stack: AsyncExitStack,
    remarks: list[str],
    *,
    encrypted: bool,
) -> "tuple[asyncssh.SSHClientProcess[bytes], socket.socket]":
    """Start a command in the guest whose standard streams are a socket here; `stack` ends the connection."""
    if not encrypted:
        shell, *arguments = command
        try:
            data = await open_data_connection(session, (shell,), arguments)
        except DataConnectionError as error:
            remarks += notes(session.name, refused=error.refused, is_late=error.is_late)
            if not error.is_late:
                remarks.append(f"ssh carries the data of {session.name}: {error}")
        else:
            remarks += notes(session.name, refused=data.refused)
            stack.callback(data.writer.transport.abort)
            sock = data.detach()
            sock.setblocking(True)  # for the server
            with _unbroken(session):
                sock.sendall(b"\n")
            return data.process, sock
    process = await session.open_process(command, encoding=None, start_timeout=_PREPARE_SECONDS)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stack.callback(ours.close)
    with _unbroken(session):
        process.stdin.write(b"\n")
    joined = asyncio.create_task(join_over_ssh(ours, process.stdin, process.stdout))

    async def end() -> None:
        joined.cancel()
        await asyncio.gather(joined, return_exceptions=True)
        with suppress(asyncssh.Error, OSError):
            process.stdin.write_eof()

    stack.push_async_callback(end)
    return process, theirs


@contextmanager
def _unbroken(session: "GuestSession") -> Iterator[None]:
    """The block writes to the guest, which may have hung up."""
    try:
        yield
    except OSError as error:
        raise SessionError(errno.ECONNRESET, f"the session with {session.name} ended") from error


def _last_line(said: bytes) -> str:
    lines = said.replace(_MOUNTED, b"").decode(errors="replace").strip().splitlines()
    return printable(lines[-1], _LONGEST_REASON) if lines else ""
