"""One connection of a client with a proxy: what it asks for, the bytes of both directions, and its entry in the log.

Decisions are the server's. Bytes are copied by `vsock.forwarding`, but for the body of a plain request, which is framed anew.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from vsock.forwarding.splicing import Carried, carry, join, reset
from vsock.proxy.clients import Client
from vsock.proxy.credentials import Header
from vsock.proxy.http import HttpOpening
from vsock.proxy.log import Entry
from vsock.proxy.request import Reason, Refusal, Request
from vsock.proxy.socks import VERSION, SocksOpening

__all__ = ["Connection"]

_PIECE: Final = 16384
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1 << 20


class Connection:
    """One client's connection.

    Args:
        caller: the connected socket, which its owner closes.
        client: whose it is.
        listener: by which it came.
        number: which of the proxy's connections it is.

    Attributes:
        guest: the name of the guest, where it is known.
        refusal: why the request is not carried out.
        loss: how the connection was lost.
    """

    def __init__(self, caller: socket.socket, client: Client, listener: str, number: int) -> None:
        self.client = client
        self.guest: str | None = None
        self.refusal: Refusal | None = None
        self.loss: str | None = None
        self._caller = caller
        self._listener = listener
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._time = datetime.now(UTC)
        self._opening: HttpOpening | SocksOpening | None = None
        self._request: Request | None = None
        self._has_answer = False
        self._answered = asyncio.Event()
        self._carried = Carried()

    @property
    def cid(self) -> int | None:
        """The guest's; None if it has none."""
        return self.client.key if isinstance(self.client.key, int) else None

    async def read_request(self) -> Request | None:
        """Read until the request is whole; None if the client ended without a byte.

        Raises:
            Refusal: it asks for nothing that a proxy does.
        """
        data = await self._loop.sock_recv(self._caller, _PIECE)
        if not data:
            return None
        self._opening = SocksOpening() if data[0] == VERSION else HttpOpening()
        while True:
            request = self._opening.receive(data)
            if answer := self._opening.answer:
                await self._loop.sock_sendall(self._caller, answer)
            if request:
                self._request = request
                return request
            data = await self._loop.sock_recv(self._caller, _PIECE)

    async def join(self, callee: socket.socket, seconds: float, idle: float) -> None:
        """Say that there is a connection, and copy until both directions have ended.

        Raises:
            OSError: a side was lost, or no bytes have moved for `idle` seconds.
        """
        assert self._opening
        try:
            async with asyncio.timeout(seconds):
                await self._loop.sock_sendall(self._caller, self._opening.granted())
                if rest := self._opening.rest:
                    await self._loop.sock_sendall(callee, rest)
                    self._carried.there += len(rest)
        except BaseException:
            reset(self._caller)
            reset(callee)
            callee.close()
            raise
        await self._while_active(join(self._caller, callee, self._carried), idle)

    async def exchange(
        self, callee: socket.socket, added: Sequence[Header], seconds: float, idle: float
    ) -> None:
        """Send a plain request, and copy the answer while the body is still on its way.

        Raises:
            OSError: a side was lost, or no bytes have moved for `idle` seconds.
            Refusal: the body is malformed; or there is no answer, for `seconds` once the body is sent.
        """
        assert isinstance(self._opening, HttpOpening)
        await self._while_active(self._exchange(callee, self._opening, added, seconds), idle)

    async def _while_active(self, work: Coroutine[None, None, None], idle: float) -> None:
        """Do it for as long as bytes move: what is abandoned ends after `idle` to twice as many seconds."""
        task = asyncio.create_task(work)
        try:
            before = -1
            while self._carried.total != before:
                before = self._carried.total
                await asyncio.wait([task], timeout=idle)
                if task.done():
                    task.result()
                    return
            raise TimeoutError(f"no bytes for {idle:g} s")
        finally:
            await _cancelled([task])

    async def _exchange(
        self, callee: socket.socket, opening: HttpOpening, added: Sequence[Header], seconds: float
    ) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            head = opening.head_for_server(tuple(added))
            async with asyncio.timeout(seconds):
                await self._loop.sock_sendall(callee, head)
            self._carried.there += len(head)
            body = asyncio.create_task(self._send_body(callee, opening))
            answer = asyncio.create_task(self._pass_answer(callee, opening))
            tasks = [body, answer]
            while not answer.done():
                running = [one for one in tasks if not one.done()]
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
                if body in done:
                    tasks.append(asyncio.create_task(self._expect_answer(seconds)))
                    tasks.append(asyncio.create_task(self._expect_caller()))
            await _cancelled(tasks)  # a server may answer before it has the whole body
            await self._linger()
        except BaseException as error:
            reset(callee)
            if isinstance(error, Refusal):
                if not self._has_answer:
                    raise
                error = ConnectionResetError(errno.ECONNRESET, error.text)
            reset(self._caller)
            raise error from None
        finally:
            await _cancelled(tasks)
            callee.close()

    async def _pass_answer(self, callee: socket.socket, opening: HttpOpening) -> None:
        """Pass the server's answer on; the kernel copies what is behind its status line."""
        is_final = False
        while not is_final:
            try:
                data = await self._loop.sock_recv(callee, _PIECE)
            except OSError as error:
                raise self._no_answer(os.strerror(error.errno or errno.ECONNRESET)) from None
            self._count_back(len(data))
            piece = opening.answer_for_client(data)
            is_final = opening.has_answer
            if is_final:
                self._answered.set()
            if piece:
                self._has_answer = True
                await self._loop.sock_sendall(self._caller, piece)
            elif not data:
                raise self._no_answer("it closed without an answer")
        await carry(callee, self._caller, self._count_back)

    async def _expect_answer(self, seconds: float) -> None:
        """Wait until the answer's status line is there, which comes behind interim answers.

        Raises:
            Refusal: it takes too long.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._answered.wait()
        except TimeoutError:
            raise Refusal(Reason.TIMED_OUT, self._too_late(seconds)) from None

    async def _expect_caller(self) -> None:
        """Read what the caller sends behind its request, which goes nowhere: only so is its loss seen.

        Raises:
            OSError: it is lost. Its end is no loss: it may still read.
        """
        left = _LINGER_BYTES
        while left > 0 and (data := await self._loop.sock_recv(self._caller, _PIECE)):
            left -= len(data)

    def _too_late(self, seconds: float) -> str:
        assert self._request
        return f"{self._request.target}: no answer within {seconds:g} s"

    def _no_answer(self, reason: str) -> Refusal:
        assert self._request
        return Refusal(Reason.UNREACHABLE, f"{self._request.target}: {reason}")

    def _count_back(self, count: int) -> None:
        self._carried.back += count

    async def _send_body(self, callee: socket.socket, opening: HttpOpening) -> None:
        data: bytes | None = None
        while True:
            body, is_over = opening.body_for_server(data)
            try:
                await self._loop.sock_sendall(callee, body)
            except OSError:
                return  # the server reads no more; its answer, if it has sent one, is what counts
            self._carried.there += len(body)
            if is_over:
                return
            data = await self._loop.sock_recv(self._caller, _PIECE)

    async def answer_refusal(self) -> None:
        """Tell the client, if it has said anything that can be answered."""
        if self._opening is None or self.refusal is None:
            return
        with suppress(OSError):  # it is gone, or does not read; the log has the reason
            async with asyncio.timeout(_LINGER_SECONDS):
                answer = self._opening.answer + self._opening.refused(self.refusal)
                await self._loop.sock_sendall(self._caller, answer)
                self._caller.shutdown(socket.SHUT_WR)
            await self._linger()

    async def _linger(self) -> None:
        """Read what the client still sends, for a moment: closing a TCP socket with unread data would undo the answer."""
        left = _LINGER_BYTES
        with suppress(TimeoutError, OSError):  # it is closed in any case
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0 and (data := await self._loop.sock_recv(self._caller, _PIECE)):
                    left -= len(data)

    def opened(self) -> Entry:
        """What the log has of it before the client hears that it has its connection."""
        return self._entry("opened", None, 0)

    def entry(self) -> Entry:
        """What the log has of it when it is over."""
        refusal = self.refusal
        verdict, reason = "allowed", None
        if refusal:
            verdict = "refused" if refusal.reason.is_refusal else "failed"
            reason = f"{refusal.text} ({refusal.details})" if refusal.details else refusal.text
        elif self.loss:
            verdict, reason = "failed", self.loss
        return self._entry(verdict, reason, self.client.take_turned_away())

    def _entry(self, verdict: str, reason: str | None, turned_away: int) -> Entry:
        opening = self._opening
        request = opening.request if opening and self._request is None else self._request
        return Entry(
            time=self._time.isoformat(timespec="milliseconds"),
            number=self._number,
            cid=self.cid,
            guest=self.guest,
            listener=self._listener,
            protocol=request.protocol if request else None,
            method=request.method if request else opening.method if opening else None,
            target=request.target if request else None,
            path=request.path if request else None,
            verdict=verdict,
            reason=reason,
            bytes_out=self._carried.there,
            bytes_in=self._carried.back,
            seconds=round(self._loop.time() - self._began, 3),
            turned_away=turned_away,
        )


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
