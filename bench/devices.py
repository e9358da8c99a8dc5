"""Devices under test: each is one process with a vhost-user and a hybrid socket per guest."""

import re
import shlex
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Device", "DeviceError", "Seat", "node", "peer", "switch"]

FIRST_CID = 3


class DeviceError(Exception):
    """A device did not start."""


@dataclass(frozen=True)
class Seat:
    """The sockets of one guest: for the guest's front end, and for host programs."""

    cid: int
    socket: Path
    hybrid: Path


class Device:
    """A running device process."""

    def __init__(
        self,
        name: str,
        command: list[str],
        seats: list[Seat],
        log: Path,
        *,
        programs: Path | None = None,
        start: float = 20.0,
    ) -> None:
        self.name = name
        self.command = command
        self.seats = seats
        self.programs = programs  # directory of the switch's own sockets for programs
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
            )
        self.pid = self._process.pid
        try:
            self._wait(start)
        except BaseException:
            self.close()
            raise

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not all(seat.socket.exists() for seat in self.seats):
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self.log.read_text(errors="replace")[-400:]
                raise DeviceError(f"{self.name} did not start: {words}")
            time.sleep(0.01)
        time.sleep(0.05)  # between bind and listen

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _seats(directory: Path, count: int) -> list[Seat]:
    directory.mkdir(parents=True, exist_ok=True)
    cids = range(FIRST_CID, FIRST_CID + count)
    return [Seat(cid, directory / f"{cid}.sock", directory / f"{cid}.vsock") for cid in cids]


def node(load: Path, directory: Path, guests: int) -> Device:
    """The data plane alone in a process, which `cargo build` rebuilds quickly."""
    seats = _seats(directory, guests)
    words = [f"{seat.cid},{seat.socket},{seat.hybrid}" for seat in seats]
    command = [str(load), "device", str(directory), *words]
    return Device("ours", command, seats, directory / "log", programs=directory)


def switch(
    vsock: Path,
    directory: Path,
    guests: int,
    *,
    without_hybrid: int = 0,
    log_level: str = "warning",
    sandbox: bool = True,
) -> Device:
    """The product: `vsock switch`; the last guests may be without a hybrid socket."""
    directory.mkdir(parents=True, exist_ok=True)
    cids = range(FIRST_CID, FIRST_CID + guests)
    config = directory / "vsock.toml"
    tables = [
        f'[[guest]]\nname = "g{cid}"\ncid = {cid}\ngroups = ["all"]\n'
        + ("hybrid = true\n" if number < guests - without_hybrid else "")
        for number, cid in enumerate(cids)
    ]
    config.write_text("\n".join(tables))
    run = directory / "run"
    run.mkdir(mode=0o700)
    inside = run / "guests"
    seats = [Seat(cid, inside / f"g{cid}.sock", inside / f"g{cid}.vsock") for cid in cids]
    command = [str(vsock), "switch", "--config", str(config), "--runtime-dir", str(run)]
    command += ["--log-level", log_level, *([] if sandbox else ["--no-sandbox"])]
    return Device("ours", command, seats, directory / "log", programs=run, start=60)


def peer(name: str, template: str, directory: Path, guests: int) -> Device:
    """Any other vhost-user-vsock device.

    The template's `{socket}`, `{cid}` and `{uds}` are filled in; a part in square brackets is
    repeated for each guest. Without one the device has one guest.
    """
    repeated = re.search(r"\[(.*?)\]", template)
    seats = _seats(directory, guests if repeated else 1)

    def fill(text: str, seat: Seat) -> str:
        return text.format(socket=seat.socket, cid=seat.cid, uds=seat.hybrid)

    if repeated:
        parts = " ".join(fill(repeated[1], seat) for seat in seats)
        command = template[: repeated.start()] + parts + template[repeated.end() :]
    else:
        command = fill(template, seats[0])
    return Device(name, shlex.split(command), seats, directory / "log")
