"""The scene of the demo: a switch, two guests, and the host; set up and taken down here."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from vsock.address import CID_HOST
from vsock.demo.places import LinuxPlace, Place, ProcessPlace
from vsock.demo.report import GuestReport, Rate
from vsock.guest import Guest
from vsock.switch import Switch
from vsock.testing import GuestUnavailable, boot
from vsock.testing.images import Vmm

FIRST_PORT = 7000

GUESTS: tuple[tuple[str, int, Vmm], ...] = (("alpha", 3, "qemu"), ("beta", 4, "uml"))
"""Name, CID and VMM of each guest."""

Step = Callable[[str, str], None]
"""Called with a guest's name and what it is doing."""


@dataclass
class Lab:
    """What the checks work with."""

    runtime_dir: Path
    host: Place
    alpha: Place
    beta: Place
    guests: list[GuestReport]
    notes: list[str]
    rates: list[Rate] = field(default_factory=list)
    _ports: Iterator[int] = field(default_factory=lambda: count(FIRST_PORT))

    def port(self) -> int:
        """A port that no check has used before."""
        return next(self._ports)


@contextmanager
def open_lab(step: Step) -> Iterator[Lab]:
    """Start a switch, then both guests at once; everything is gone after the block."""
    with ExitStack() as stack:
        runtime_dir = Path(tempfile.mkdtemp(prefix="vsock-demo-"))
        stack.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
        switch = stack.enter_context(Switch(runtime_dir=runtime_dir, control=True))
        for name, cid, _ in GUESTS:
            switch.add_guest(name, cid, groups=["demo"])
        builder = _Builder(switch, stack, step)
        with ThreadPoolExecutor(len(GUESTS)) as pool:
            alpha, beta = pool.map(builder.start, *zip(*GUESTS, strict=True))
        host = ProcessPlace("host", CID_HOST, runtime_dir)
        yield Lab(runtime_dir, host, alpha, beta, builder.reports(), builder.notes)


class _Builder:
    """Starts guests, from several threads."""

    def __init__(self, switch: Switch, stack: ExitStack, step: Step) -> None:
        self._switch = switch
        self._stack = stack
        self._step = step
        self._lock = threading.Lock()
        self._reports: dict[int, GuestReport] = {}
        self.notes: list[str] = []

    def reports(self) -> list[GuestReport]:
        """The guests in order of their CIDs."""
        return [report for _, report in sorted(self._reports.items())]

    def start(self, name: str, cid: int, vmm: Vmm) -> Place:
        """Boot a Linux guest, or start a userspace guest if that cannot be had here."""
        guest = boot(self._switch, name, vmm=vmm, progress=lambda what: self._step(name, what))
        try:
            guest.start()
        except GuestUnavailable as missing:
            with self._lock:
                self.notes.append(f"{name} is a userspace guest, not Linux: {missing}")
            return self._start_userspace(name, cid)
        with self._lock:
            self._stack.callback(guest.kill)
            self._reports[cid] = GuestReport(name, cid, vmm, guest.kernel_release)
        return LinuxPlace(guest, cid)

    def _start_userspace(self, name: str, cid: int) -> Place:
        self._step(name, "joining as a userspace guest")
        guest = Guest(self._switch.socket_path(name), cid=cid)
        guest.start()
        with self._lock:
            self._stack.callback(guest.stop)
            self._reports[cid] = GuestReport(name, cid, "userspace", None)
        self._step(name, "ready: userspace guest")
        return ProcessPlace(name, cid, guest.transport.directory, guest)
