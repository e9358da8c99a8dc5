"""The lab of the demo: a switch, two guests, and the host; started and stopped here."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue

from vsock.address import CID_HOST
from vsock.demo.places import ANSWER_SECONDS, LinuxPlace, Place, ProcessPlace, ProcessTask
from vsock.demo.report import GuestReport, Rate
from vsock.guest import Guest
from vsock.switch import Switch
from vsock.testing import GuestUnavailable, boot, start_all
from vsock.testing.images import Vmm

FIRST_PORT = 7000

GUESTS: tuple[tuple[str, int, Vmm], ...] = (("alpha", 3, "qemu"), ("beta", 4, "uml"))
"""Name, CID and VMM of each guest."""

Step = Callable[[str, str], None]
"""Called with a guest's name and what it is doing."""


@dataclass
class Lab:
    """The switch, the guests and the host for the checks."""

    runtime_dir: Path
    host: ProcessPlace
    alpha: Place
    beta: Place
    guests: list[GuestReport]
    notes: list[str]
    rates: list[Rate] = field(default_factory=list)
    server_guest: str | None = None
    """The name of the guest that has an SSH server, if one has."""

    _ports: Iterator[int] = field(default_factory=lambda: count(FIRST_PORT))

    def port(self) -> int:
        """A port that no check has used before."""
        return next(self._ports)

    @property
    def state_home(self) -> Path:
        """The value of XDG_STATE_HOME for commands: the demo has keys of its own."""
        return self.runtime_dir / "state"

    @property
    def server_archive(self) -> Path:
        """Where `checks.work` has its SSH server for guests."""
        return self.runtime_dir / "server.tar"

    def start_command(self, *words: str) -> ProcessTask:
        """Start a command of `vsock` on the host."""
        return self.host.start_command(words, {"XDG_STATE_HOME": str(self.state_home)})

    def command(self, *words: str, given: bytes = b"") -> bytes:
        """Run a command of `vsock` on the host to its end, and return its output."""
        return self.start_command(*words).output(given, timeout=ANSWER_SECONDS)


@contextmanager
def open_lab(step: Step) -> Iterator[Lab]:
    """Start a switch, then both guests at the same time; all of them are ended after the block."""
    with ExitStack() as stack:
        runtime_dir = Path(tempfile.mkdtemp(prefix="vsock-demo-"))
        stack.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
        switch = stack.enter_context(Switch(runtime_dir=runtime_dir, control=True))
        for name, cid, vmm in GUESTS:
            # User-Mode Linux has its memory in /tmp where /dev/shm is small, as in many containers.
            switch.add_guest(name, cid, groups=["demo"], file_memory=vmm == "uml")
        host = ProcessPlace("host", CID_HOST, runtime_dir)
        stack.callback(host.end)
        lab = Lab(runtime_dir, host, host, host, [], [])
        lab.alpha, lab.beta = _start_guests(switch, lab, stack, step)
        yield lab


def _start_guests(switch: Switch, lab: Lab, stack: ExitStack, step: Step) -> list[Place]:
    """Boot the Linux guests at the same time; a userspace guest replaces one that cannot be booted."""
    # Written by the threads that boot, shown by this thread, which may be interrupted.
    steps: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def told(name: str) -> Callable[[str], None]:
        return lambda what: steps.put(partial(step, name, what))

    guests = [boot(switch, name, vmm=vmm, progress=told(name)) for name, _, vmm in GUESTS]
    for guest in guests:
        stack.callback(guest.kill)
    places: list[Place] = []
    for (name, cid, vmm), guest, fault in zip(
        GUESTS, guests, start_all(guests, steps), strict=True
    ):
        if fault is None:
            lab.guests.append(GuestReport(name, cid, vmm, guest.kernel_release))
            places.append(LinuxPlace(guest, cid))
        elif isinstance(fault, GuestUnavailable):
            lab.notes.append(f"{name} is a userspace guest, not Linux: {fault}")
            lab.guests.append(GuestReport(name, cid, "userspace", None))
            places.append(_start_userspace(switch, name, cid, stack))
            step(name, "ready: userspace guest")
        else:
            raise fault
    return places


def _start_userspace(switch: Switch, name: str, cid: int, stack: ExitStack) -> Place:
    guest = stack.enter_context(Guest(switch.socket_path(name), cid=cid))
    place = ProcessPlace(name, cid, guest.transport.directory, guest)
    stack.callback(place.end)
    return place
