"""A small client of QMP, QEMU's machine protocol: commands and their answers.

Fifty lines here replace the package qemu.qmp: the JSON-lines channel is needed for the agent anyway,
and booting a test guest should need no further package.
"""

# ruff: noqa: ASYNC109 - each wait says in its signature how long it takes at most, and the
# error names the event that was waited for, which an asyncio.timeout around the call could not.

import asyncio
import socket
from typing import Any

from vsock.testing._lines import JsonLines, Message
from vsock.testing.errors import GuestError, GuestGone


class QmpError(GuestError):
    """QEMU refused a command; `kind` is the class of its error."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(f"{kind}: {description}")
        self.kind = kind


class Qmp:
    """One QMP connection."""

    def __init__(self) -> None:
        self._lines: JsonLines | None = None
        self._greeted = asyncio.Event()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._is_gone = False

    async def open(self, sock: socket.socket) -> None:
        """Greet the QEMU at the other end of `sock`, and own `sock`."""
        self._lines = await JsonLines.over(sock, self._on_message, self._on_end)
        await self._greeted.wait()
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, timeout: float = 20, **arguments: Any) -> Any:
        """Run a command and return its answer.

        Raises:
            QmpError: QEMU refused it.
            GuestGone: QEMU has ended.
            TimeoutError: no answer came within `timeout` seconds.
        """
        if self._lines is None or self._is_gone:
            raise GuestGone("QEMU has ended")
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        request: Message = {"execute": command, "id": self._number}
        if arguments:
            request["arguments"] = arguments
        try:
            async with asyncio.timeout(timeout):
                await self._lines.send(request)
                return await answer
        except ConnectionError:  # QEMU ended during the write
            raise GuestGone("QEMU has ended") from None
        finally:
            self._answers.pop(request["id"], None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # retrieve the exception, also if sending failed

    async def close(self) -> None:
        """End the connection."""
        if self._lines is not None:
            await self._lines.close()

    def _on_message(self, message: Message) -> None:
        if "QMP" in message:
            self._greeted.set()
        elif (answer := self._answers.get(message.get("id", 0))) and not answer.done():
            if "error" in message:
                error = message["error"]
                answer.set_exception(QmpError(error["class"], error["desc"]))
            else:
                answer.set_result(message.get("return"))

    def _on_end(self) -> None:
        self._is_gone = True
        self._greeted.set()  # the first command in `open` then fails at once
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(GuestGone("QEMU has ended"))
