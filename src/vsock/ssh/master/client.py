"""Asks a control master. Blocking, and imports little: what a command costs is mostly what is imported for it."""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, Self

from vsock.errors import SessionError
from vsock.ssh.command_line import START_SECONDS
from vsock.ssh.master.messages import (
    GREETING,
    LONGEST,
    Key,
    Status,
    at,
    decode,
    encode,
    open_directory,
    sessions_dir,
)

__all__ = ["MasterClient", "masters"]

_ANSWER_SECONDS: Final = 2.0
"""How long a master may take for what needs no guest."""
_START_SECONDS: Final = START_SECONDS + 10
"""A master says that sshd started no command; it is not to be forestalled."""


class MasterClient:
    """A connection to a master; a context manager that closes it.

    Attributes:
        sock: the socket, for who waits for the end of a command with other things.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    def find(cls, key: Key) -> Self | None:
        """Connect to the master of a session; None if there is none that serves."""
        try:
            return cls.connect(key.file_name)
        except SessionError:
            return None

    @classmethod
    def connect(cls, name: str) -> Self | None:
        """Connect to a master by the name of its socket; None if it has ended, ends, or is another version's.

        Raises:
            SessionError: it does not answer (ETIMEDOUT).
        """
        try:
            directory = open_directory()
        except OSError:
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(_ANSWER_SECONDS)
        try:
            sock.connect(str(at(directory, name)))
            if decode(sock.recv(LONGEST)) == GREETING:
                return cls(sock)
        except TimeoutError:
            sock.close()
            raise _silent() from None
        except (OSError, ValueError):
            pass
        finally:
            os.close(directory)
        sock.close()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def status(self) -> Status:
        """Ask how the master is.

        Raises:
            SessionError: it does not answer.
        """
        return Status(**self._ask({"ask": "status"}))

    def close_session(self) -> None:
        """End the session, its commands, and the master.

        Raises:
            SessionError: it does not answer.
        """
        self._ask({"ask": "close"})

    def run(
        self,
        guest: str,
        line: str | None,
        terminal: dict[str, Any] | None,
        pipes: Sequence[int],
        seconds: float | None,
    ) -> bool:
        """Start a command, within `seconds`, whose standard streams are `pipes`; False if the master declines.

        Raises:
            SessionError: it did not start; the message says why.
        """
        try:
            packet = encode({"ask": "run", "line": line, "terminal": terminal})
        except ValueError:
            return False
        patience = min(seconds or _START_SECONDS, _START_SECONDS)
        self.sock.settimeout(patience)
        try:
            answer = self._exchange(packet, pipes)
        except ConnectionError:
            return False  # it has closed the connection before it read the request
        except TimeoutError:
            raise SessionError(
                errno.ETIMEDOUT, f"sshd of {guest} started no command within {patience:g} s"
            ) from None
        if "error" in answer:
            raise SessionError(errno.ECONNABORTED, str(answer["error"]))
        self.sock.settimeout(None)
        return "declined" not in answer

    def tell(self, message: dict[str, Any]) -> None:
        """Tell about a signal or a new size; lost if the command has ended."""
        try:
            self.sock.send(encode(message))
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise

    def ended(self) -> tuple[int | None, str | None]:
        """Read how the command ended: its exit code, or the name of a signal; neither if the session ended first.

        Raises:
            TimeoutError: the time of the socket is over.
        """
        try:
            packet = self.sock.recv(LONGEST)
        except ConnectionError:
            packet = b""
        message = decode(packet) if packet else {}
        return message.get("status"), message.get("signal")

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._exchange(encode(message), ())
        except ConnectionError:
            raise _ended() from None
        except TimeoutError:
            raise _silent() from None

    def _exchange(self, packet: bytes, descriptors: Sequence[int]) -> dict[str, Any]:
        socket.send_fds(self.sock, [packet], descriptors)
        answer = self.sock.recv(LONGEST)
        if not answer:
            raise _ended()
        return decode(answer)


def _ended() -> SessionError:
    return SessionError(errno.ENOTCONN, "the master of the session has ended")


def _silent() -> SessionError:
    return SessionError(
        errno.ETIMEDOUT, "the master of a session does not answer: is its process stopped?"
    )


def masters() -> list[str]:
    """The names of the sockets of this user's masters, some of which may have ended."""
    try:
        return sorted(one.name for one in sessions_dir().iterdir())
    except FileNotFoundError:
        return []
