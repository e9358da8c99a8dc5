"""One match: vsock_test between two sides, one the client and one the server, all cases.

The program ends at the first case that fails. The match then continues after that case, so that each
case has a result of its own.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tests.conformance.sides import Running, Side
from tests.conformance.verdicts import Outcome, Verdict, judge

from vsock.testing import CommandFailed, GuestError
from vsock.testing.remote import RESULT_MARK

PROGRAM_SECONDS = 90.0
"""Timeout of one run of the program; all cases take about ten seconds."""

LINE_SECONDS = PROGRAM_SECONDS + 30
"""Longest silence on the control connection, after which both programs have been killed."""


@dataclass(frozen=True, slots=True)
class Match:
    """Two sides, as client and server."""

    client: Side
    server: Side

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"client {self.client.name}, server {self.server.name}"

    async def play(self, cases: Mapping[int, str], skipped: Collection[int]) -> dict[int, Verdict]:
        """Run all `cases` except the skipped ones; returns a verdict on each."""
        verdicts: dict[int, Verdict] = {}
        while open_cases := [case for case in cases if case not in verdicts]:
            outputs = await self._run_program({*skipped, *verdicts})
            # At least one case gets a verdict each time, otherwise this loop would not end.
            not_begun = Verdict(Outcome.FAILED, f"did not begin: {'; '.join(outputs)}")
            verdicts = {open_cases[0]: not_begun, **judge(*outputs), **verdicts}
        return verdicts

    async def _run_program(self, skipped: Collection[int]) -> tuple[str, str]:
        """Run both ends once; returns what they printed."""
        options = [f"--skip={case}" for case in sorted(skipped)]
        server = await self.server.start(
            ["--mode=server", f"--peer-cid={self.client.cid}", *options], PROGRAM_SECONDS
        )
        client = await self.client.start(
            ["--mode=client", f"--peer-cid={self.server.cid}", *options], PROGRAM_SECONDS
        )
        await asyncio.gather(_carry_lines(server, client), _carry_lines(client, server))
        return await _last_words(client), await _last_words(server)


async def _carry_lines(source: Running, sink: Running) -> None:
    """One direction of the control connection."""
    try:
        while not (line := await source.read_line(LINE_SECONDS)).startswith(RESULT_MARK):
            await sink.write(line.encode() + b"\n")
    except CommandFailed:
        pass  # it ended without a result; its output has the reason
    await sink.write(b"", eof=True)


async def _last_words(end: Running) -> str:
    try:
        result = await end.wait()
    except GuestError as error:
        return str(error)
    return result.stderr
