"""Asks a control master. Blocking, and imports little: what a command costs is mostly what is imported for it."""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, Self

from vsock.errors import SessionError
from vsock.ssh.master.messages import LONGEST, Key, Status, at, decode, encode, sessions_dir

__all__ = ["MasterClient", "masters"]

_ANSWER_SECONDS: Final = 40.0
"""More than a master waits for the guest's sshd before it says that this started no command."""


class MasterClient:
    """A connection to a master; a context manager that closes it.

    Attributes:
        sock: the socket, for who waits for the end of a command with other things.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(_ANSWER_SECONDS)

    @classmethod
    def find(cls, key: Key) -> Self | None:
        """Connect to the master of a session; None if there is none."""
        return cls._connect(key.file_name)

    @classmethod
    def _connect(cls, name: str) -> Self | None:
        try:
            directory = os.open(sessions_dir(), os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(str(at(directory, name)))
        except OSError:  # it has ended, or ends
            sock.close()
            return None
        finally:
            os.close(directory)
        return cls(sock)

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
        line: str | None,
        terminal: dict[str, Any] | None,
        pipes: Sequence[int],
        seconds: float | None,
    ) -> bool:
        """Start a command, within `seconds`, whose standard streams are `pipes`; False if its line is too long.

        Raises:
            SessionError: it did not start; the message says why.
        """
        try:
            packet = encode({"ask": "run", "line": line, "terminal": terminal})
        except ValueError:
            return False
        if seconds is not None:
            self.sock.settimeout(min(seconds, _ANSWER_SECONDS))
        answer = self._exchange(packet, pipes)
        if "error" in answer:
            raise SessionError(errno.ECONNABORTED, str(answer["error"]))
        self.sock.settimeout(None)
        return True

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
        return self._exchange(encode(message), ())

    def _exchange(self, packet: bytes, descriptors: Sequence[int]) -> dict[str, Any]:
        try:
            socket.send_fds(self.sock, [packet], descriptors)
            answer = self.sock.recv(LONGEST)
        except OSError as error:
            raise SessionError(
                errno.ETIMEDOUT, f"the session's master does not answer: {error}"
            ) from None
        if not answer:
            raise SessionError(errno.ECONNRESET, "the session's master has ended")
        return decode(answer)


def masters() -> list[MasterClient]:
    """Connect to all masters of this user."""
    try:
        names = sorted(one.name for one in sessions_dir().iterdir())
    except FileNotFoundError:
        return []
    return [found for name in names if (found := MasterClient._connect(name))]
