"""The files of a guest for fsspec, and so for pandas, xarray, Dask and others: over SFTP of a session with the guest.

    with fsspec.open("vsock://alpha/var/log/dpkg.log", "rt") as file:
        print(file.readline())

    pandas.read_parquet("vsock://joe@alpha/srv/measured.parquet")

URLs are ``vsock://[USER@]GUEST[:PORT]/PATH``. GUEST is as for `vsock.guest_session`, PORT that of its sshd, and the path is
written as it is, without escapes. Keys, trust and connecting are the session's. The calls of fsspec are those of the package
``sshfs``; here are the session, a cache of blocks for reading, and checks of what a guest says. Needs ``vsock[fsspec]``.

A guest's file is as trustworthy as the guest. fsspec copies whole trees with `get`, into the names that the guest lists: names
that lead elsewhere are refused. `vsock cp` also checks, resumes and renames what it copies.
"""

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from vsock._system.text import printable
from vsock.errors import AddressError, ProtocolError, SessionError, VsockError, missing_extra
from vsock.ssh.session import DEFAULT_USER, LOGIN_SECONDS, SSH_PORT, guest_session

try:
    import asyncssh
    from fsspec.asyn import sync, sync_wrapper
    from fsspec.spec import AbstractBufferedFile
    from fsspec.utils import stringify_path
    from sshfs import SSHFileSystem
    from sshfs.file import SSHFile
    from sshfs.pools import SFTPSoftChannelPool
    from sshfs.utils import as_progress_handler
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "fsspec over vsock", "fsspec") from None

if TYPE_CHECKING:
    from vsock._socket.transport import Transport

__all__ = ["MOST_ENTRIES", "GuestFileSystem"]

MOST_ENTRIES: Final = 1_000_000
"""How many entries are taken from a guest in one listing, and in all listings of one walk."""

_LONGEST_PATH: Final = 4095
_MOST_DIGITS: Final = 10
_LONGEST_REASON: Final = 200
_SHELL_CHANNELS: Final = 2
_BLOCK: Final = 256 << 10


class GuestFileSystem(SSHFileSystem):  # type: ignore[misc] # sshfs has no types
    """The files of a guest; ``fsspec.filesystem("vsock", guest="alpha")`` makes one.

    Errors are those of files (`FileNotFoundError`, `PermissionError`, …) and those of `vsock.guest_session`; what no guest could
    say is a `ProtocolError`. When the session is
    lost, what is open fails with `SessionError`, and the next `fsspec.open` or `fsspec.filesystem` makes another one.

    Args:
        guest: as for `vsock.guest_session`.
        user: a user of the guest.
        port: the vsock port of its sshd.
        timeout: seconds that connecting and logging in may take.
        transport: where to connect from, as for `vsock.create_connection`.
        options: as of every file system of fsspec.
    """

    protocol = "vsock"

    def __init__(
        self,
        guest: str | int,
        *,
        user: str = DEFAULT_USER,
        port: int = SSH_PORT,
        timeout: float = LOGIN_SECONDS,
        transport: "Transport | str | None" = None,
        **options: Any,
    ) -> None:
        self._session = guest_session(
            guest, user=user, port=port, timeout=timeout, transport=transport
        )
        # Names of files are bytes: what is no UTF-8 is kept as Python keeps it in names of this machine.
        encoding = {"path_encoding": "utf-8", "path_errors": "surrogateescape"}
        super().__init__(str(guest), sftp_client_kwargs=encoding, **options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        path = stringify_path(path)
        if path.startswith("vsock://"):
            path = "/" + path.removeprefix("vsock://").partition("/")[2]
        return path.rstrip("/") or path[:1]

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        if not path.startswith("vsock://"):
            return {}
        user, _, place = path.removeprefix("vsock://").partition("/")[0].rpartition("@")
        guest, _, port = place.partition(":")
        found: dict[str, Any] = {"guest": guest}
        if user:
            found["user"] = user
        if port:
            if not (port.isascii() and port.isdecimal() and len(port) <= _MOST_DIGITS):
                raise AddressError(f"{path!r}: the port {port!r} is no decimal number")
            found["port"] = int(port)
        return found

    async def _connect(
        self,
        host: str,
        pool_type: Any,
        max_sftp_channels: int,
        connect_args: Any,
        sftp_client_kwargs: Any,
    ) -> Any:
        self._client_lock = asyncio.Semaphore(_SHELL_CHANNELS)
        session = await self._stack.enter_async_context(self._session)
        # Says why, if there is no SFTP.
        (await session.sftp()).exit()
        options = {"max_channels": max_sftp_channels, "sftp_client_kwargs": sftp_client_kwargs}
        return session.connection, _Pool(session.connection, self, **options)

    connect = sync_wrapper(_connect)

    def close(self) -> None:
        """End the session. The next `fsspec.open` makes another one."""
        self.forget()
        sync(self.loop, self._stack.aclose)

    def forget(self) -> None:
        """Let fsspec make another instance the next time."""
        self._cache.pop(self._fs_token, None)

    @contextmanager
    def as_os_errors(self) -> Iterator[None]:
        """Turn errors of SFTP into those of files, and the end of the session into a SessionError."""
        try:
            yield
        except (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost) as error:
            raise self._ended(error.reason) from error
        except asyncssh.SFTPError as error:
            number = _ERRNOS.get(type(error), errno.EIO)
            said = printable(error.reason, _LONGEST_REASON)
            raise OSError(number, f"{self._session.name}: {said}") from error
        except asyncssh.DisconnectError as error:
            raise self._ended(error.reason) from error
        except ConnectionError as error:  # asyncssh passes on what its socket says
            raise self._ended(error.strerror or str(error)) from error

    def _ended(self, reason: str) -> SessionError:
        self.forget()
        name = self._session.name
        return SessionError(
            errno.ECONNRESET, f"the session with {name} ended: {printable(reason, _LONGEST_REASON)}"
        )

    def _decode_attributes(self, attributes: asyncssh.SFTPAttrs) -> Any:
        try:
            return super()._decode_attributes(attributes)
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise ProtocolError(
                errno.EPROTO, f"{self._session.name} describes a file as none can be: {error}"
            ) from error

    async def _ls(
        self, path: str, detail: bool = True, *, seen: "_Seen | None" = None, **_: Any
    ) -> list[Any]:
        path = self._strip_protocol(path)
        seen = seen or _Seen(self._session.name)
        found: list[dict[str, Any]] = []
        async with self._pool.get() as channel:
            if not await channel.isdir(path or "."):
                info = await self._info(path)
                return [info] if detail else [info["name"]]
            async for entry in channel.scandir(path or "."):
                seen.one_more(path)
                name = entry.filename
                if name not in (".", ".."):
                    found.append(self._checked(path, name) | self._decode_attributes(entry.attrs))
        return found if detail else [info["name"] for info in found]

    async def _walk(
        self,
        path: str,
        maxdepth: int | None = None,
        on_error: Any = "omit",
        seen: "_Seen | None" = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        # fsspec hands options that it does not know to the walks of subfolders, and to `_ls`.
        seen = seen or _Seen(self._session.name)

        def judge(error: OSError) -> None:
            # A folder that may not be read is omitted, as fsspec has it; that the session ended is no empty folder.
            if isinstance(error, VsockError) or on_error == "raise":
                raise error
            if callable(on_error):
                on_error(error)

        async for found in super()._walk(path, maxdepth, on_error=judge, seen=seen, **options):
            yield found

    def _checked(self, folder: str, name: str) -> dict[str, str]:
        """Return the path of an entry: it is one of the folder, whatever the guest says."""
        path = f"{folder.rstrip('/')}/{name}" if folder else name
        if not name or "/" in name or "\0" in name or len(path) > _LONGEST_PATH:
            raise ProtocolError(
                errno.EPROTO,
                f"{self._session.name} lists a name that none can be: {printable(name, _LONGEST_REASON)!r}",
            )
        return {"name": path}

    async def _info(self, path: str, **_: Any) -> Any:
        path = self._strip_protocol(path)
        async with self._pool.get() as channel:
            found = self._decode_attributes(await channel.stat(path or "."))
        return {**found, "name": path}

    async def _get_file(self, rpath: str, lpath: Any, callback: Any = None, **_: Any) -> None:
        # fsspec makes the folders of a tree by this call too.
        if await self._isdir(rpath):
            await asyncio.to_thread(os.makedirs, lpath, exist_ok=True)
            return
        async with self._pool.get() as channel:
            # What a link leads to in the guest is copied. A link made here by the guest's words would lead the next copy
            # to any file of the host.
            progress = as_progress_handler(callback)
            await channel.get(rpath, lpath, follow_symlinks=True, progress_handler=progress)

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        async with self._pool.get() as channel, channel.open(path, "rb") as file:
            first, last = start or 0, end
            if first < 0 or (last or 0) < 0:
                size = (await file.stat()).size or 0
                first = max(0, size + first) if first < 0 else first
                last = size + last if last is not None and last < 0 else last
            wanted = -1 if last is None else max(0, last - first)
            data: bytes = await file.read(wanted, first)
        return data if wanted < 0 else data[:wanted]

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **options: Any,
    ) -> Any:
        if mode not in ("rb", "wb", "ab", "xb"):  # "r+b" and others: one file, read and written
            with self.as_os_errors():
                return SSHFile(self, path, mode)
        return _File(
            self,
            path,
            mode,
            block_size or _BLOCK,
            autocommit=autocommit,
            cache_options=cache_options,
            **options,
        )


class _Seen:
    """Counts what a guest lists."""

    def __init__(self, guest: str) -> None:
        self._guest = guest
        self._entries = 0

    def one_more(self, path: str) -> None:
        """Count an entry; ProtocolError if that is more than any listing has."""
        self._entries += 1
        if self._entries > MOST_ENTRIES:
            raise ProtocolError(
                errno.EPROTO, f"{self._guest} lists more than {MOST_ENTRIES} entries in {path}"
            )


_ERRNOS: Final = {
    asyncssh.SFTPNoSuchFile: errno.ENOENT,
    asyncssh.SFTPNoSuchPath: errno.ENOENT,
    asyncssh.SFTPPermissionDenied: errno.EACCES,
    asyncssh.SFTPWriteProtect: errno.EROFS,
    asyncssh.SFTPFileAlreadyExists: errno.EEXIST,
    asyncssh.SFTPDirNotEmpty: errno.ENOTEMPTY,
    asyncssh.SFTPNotADirectory: errno.ENOTDIR,
    asyncssh.SFTPFileIsADirectory: errno.EISDIR,
    asyncssh.SFTPNoSpaceOnFilesystem: errno.ENOSPC,
    asyncssh.SFTPQuotaExceeded: errno.EDQUOT,
    asyncssh.SFTPOpUnsupported: errno.EOPNOTSUPP,
}
"""Versions of SFTP before 6 have few of these; OpenSSH says "Failure" for the others."""


class _Pool(SFTPSoftChannelPool):  # type: ignore[misc] # sshfs has no types
    """The SFTP channels of a session."""

    def __init__(
        self, client: asyncssh.SSHClientConnection, files: GuestFileSystem, **options: Any
    ) -> None:
        super().__init__(client, **options)
        self._files = files

    @asynccontextmanager
    async def get(self) -> AsyncIterator[Any]:
        with self._files.as_os_errors():
            async with super().get() as channel:
                yield channel


class _File(AbstractBufferedFile):  # type: ignore[misc] # fsspec has no types
    """An open file: reads go through fsspec's cache of blocks, writes through its buffer."""

    def __init__(
        self, fs: GuestFileSystem, path: str, mode: str, block_size: int, **options: Any
    ) -> None:
        self._part = f"{path}.{secrets.token_hex(6)}" if not options["autocommit"] else None
        self._handle: Any = None
        with fs.as_os_errors():
            self._handle = SSHFile(fs, self._part or path, mode)
        try:
            super().__init__(fs, path, mode, block_size, **options)
        except BaseException:
            self._handle.close()
            raise

    def _fetch_range(self, start: int, end: int) -> bytes:
        with self.fs.as_os_errors():
            self._handle.seek(start)
            data: bytes = self._handle.read(end - start)
        return data[: end - start]

    def _upload_chunk(self, final: bool = False) -> bool:
        with self.fs.as_os_errors():
            self._handle.write(self.buffer.getvalue())
        return True

    def close(self) -> None:
        """Write what is left, and close the file."""
        try:
            super().close()
        finally:
            handle, self._handle = self._handle, None
            if handle:
                with self.fs.as_os_errors():
                    handle.close()

    def commit(self) -> None:
        """Give a file of a transaction its name."""
        if self._part:
            self.fs.mv(self._part, self.path)

    def discard(self) -> None:
        """Remove a file of a transaction that failed."""
        if self._part:
            self.fs.rm_file(self._part)
