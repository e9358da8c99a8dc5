"""A switch inside a Python program: the data plane, its guests and, if asked for, the control API.

    async with vsock.Switch({"alpha": 3, "beta": 4}, runtime_dir="/tmp/lab") as switch:
        print(switch.socket_path("alpha"))  # for the VMM's command line

In a program without asyncio use `with`: a thread then handles events and the control API.
`vsock.switch.daemon` runs this class with signal handlers. No data passes through Python, because the
data plane has its own native thread.
"""

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Final, Self

from vsock import _native
from vsock.address import CID_HOST
from vsock.control.model import (
    DatagramRecord,
    FlowRecord,
    GuestRecord,
    GuestSpec,
    ListenerRecord,
    SwitchRecord,
    SwitchSpec,
    conflicts,
    with_paths,
)
from vsock.control.policy import HOST_NAME, Verdict
from vsock.control.schema import about, checked, fields_of, read, read_changes, types_of
from vsock.control.services import ServiceRecord
from vsock.errors import NoSuchGuest, TransportError, UsageError, missing_extra, no_guest
from vsock.runtime import RuntimeFiles, default_runtime_dir
from vsock.switch import listing
from vsock.switch.access import to_native
from vsock.switch.attendant import Attendant, AttendantThread
from vsock.switch.claims import RuntimeClaim, clear_socket, remove_socket
from vsock.switch.events import log_events
from vsock.switch.readiness import Message, NotifyServer, Readiness
from vsock.transports import SwitchTransport

if TYPE_CHECKING:
    from vsock.switch.server import ControlServer

__all__ = ["Switch"]

_log: Final = logging.getLogger("vsock.switch")

_TELLING_SECONDS: Final = 1.0
"""The longest wait until a guest has received its new CID, which takes a running guest milliseconds."""


class Switch:
    """The vsock devices of many guests, and the connections between them and host programs.

    Args:
        guests: CIDs by name, or specifications (`vsock.control.model.GuestSpec`).
        runtime_dir: the directory of the switch's sockets; by default the user's usual one.
        control: also serve the control API, which the `vsock` command uses, and hear on port `NOTIFY_PORT` when
            guests say that they are ready. This needs `vsock[switch]`.
        settings: fields of `vsock.control.model.SwitchSpec`: `poll_us`, in microseconds, and `linger_timeout`,
            in seconds (docs/reference/tuning.md); `sandbox=False` leaves its threads what they do not need.

    `with`, `async with` or `start` starts a switch. It can be started only once.

    Raises:
        UsageError: an argument is invalid.
        MissingExtra: `control` needs packages that are not installed.
    """

    _directory_option: ClassVar[str] = "runtime_dir="
    """The argument that chooses another runtime directory, for error messages."""

    def __init__(
        self,
        guests: Mapping[str, int] | Iterable[GuestSpec] = (),
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
        control: bool = False,
        **settings: object,
    ) -> None:
        """Make a switch without starting it; the class describes the arguments."""
        self._first_guests = _specs(guests)
        directory = Path(runtime_dir) if runtime_dir is not None else default_runtime_dir()
        self._wanted = read(SwitchSpec, {"runtime_dir": directory.absolute(), **settings})
        self._files = RuntimeFiles(directory.absolute())
        self._server = self._make_server() if control else None
        # Never modified, only replaced: other threads read it while guests are added and removed.
        self._guests: dict[str, GuestSpec] = {}
        self._readiness = Readiness()
        self._node: _native.Node | None = None
        self._claim: RuntimeClaim | None = None
        self._started = 0.0
        self._changing = threading.Lock()
        self._setting = threading.Lock()
        self._attendant: Attendant | None = None
        self._thread: AttendantThread | None = None

    # Life

    def start(self) -> None:
        """Claims the runtime directory, starts the data plane and adds the first guests.

        `start` alone neither logs events nor serves the control API: prefer `with` or `async with`.

        Raises:
            TransportError: the directory or a socket path is in use, and the message names the owner; or it
                cannot be created.
            UsageError: a guest's specification is invalid.
        """
        if self._claim:
            raise UsageError("this switch was started before; make another one")
        self._claim = RuntimeClaim(self.runtime_dir, option=self._directory_option)
        try:
            self._node = _native.Node(
                cid=CID_HOST, socket_dir=str(self.runtime_dir), sandbox=self._wanted.sandbox
            )
            sandbox = self._node.snapshot()["sandbox"]
            is_wanted = sandbox == "on" or not self._wanted.sandbox
            _log.log(logging.INFO if is_wanted else logging.WARNING, "sandbox: %s", sandbox)
            _tell(self._node, self._wanted)
            self._node.set_wants_flows(_log.isEnabledFor(logging.DEBUG))
            self._started = time.monotonic()
            for guest in self._first_guests:
                self.add(guest)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all flows and attachments and removes the sockets. A second call has no effect.

        Guests receive RST for each connection first. `stop` waits until they have, for at most a second.
        """
        node, self._node = self._node, None
        if node:
            node.stop()
            for guest in self._guests.values():
                _remove_sockets(guest)
        if self._claim:
            self._claim.release()

    def change_settings(self, **changes: object) -> None:
        """Changes settings, also while the switch runs.

        Args:
            changes: fields of `SwitchSpec`, such as `poll_us` or `linger_timeout`. None keeps a value.

        Raises:
            UsageError: a value is invalid, or there is no such setting.
        """
        wanted = read_changes(SwitchSpec, changes)
        with self._setting:
            self._wanted = replace(self._wanted, **wanted)
            if self._node:
                _tell(self._node, self._wanted)

    def set_polling(self, microseconds: int) -> None:
        """Changes `poll_us`; 0 disables polling.

        Raises:
            UsageError: `microseconds` is not 0 to 1000.
        """
        self.change_settings(poll_us=microseconds)

    def set_linger_timeout(self, seconds: float) -> None:
        """Changes `linger_timeout` for sockets that are closed from now on.

        Raises:
            UsageError: `seconds` is not above 0 and at most a day.
        """
        self.change_settings(linger_timeout=seconds)

    def __enter__(self) -> Self:
        self.start()
        try:
            self._thread = AttendantThread(self._make_attendant())
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread:
            self._thread.end()
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        try:
            self._attendant = self._make_attendant()
            await self._attendant.__aenter__()
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._attendant:
                await self._attendant.__aexit__(kind, error, traceback)
        finally:
            await asyncio.to_thread(self.stop)

    # Guests

    def add_guest(self, name: str, cid: int, **fields: object) -> GuestRecord:
        """Adds a guest while the others run.

        Args:
            name: its name; unique in the switch.
            cid: its CID, 3 or more; unique in the switch.
            fields: other fields of `GuestSpec`, such as `groups`, `socket` or `hybrid`. A relative path starts
                at this process's working directory.

        Raises:
            UsageError: the name, the CID or another field is invalid.
            TransportError: EADDRINUSE if another guest or process has the name, the CID or a path.
        """
        return self.add(read(GuestSpec, {"name": name, "cid": cid, **_absolute(fields)}))

    def add(self, guest: GuestSpec) -> GuestRecord:
        """Adds the guest that a specification describes; raises as `add_guest`."""
        guest = self._with_paths(guest)
        assert guest.socket
        with self._changing:
            node, options = self._running(), to_native(guest)
            _check_conflicts(guest, self._guests.values())
            clear_socket(guest.socket)
            if isinstance(guest.hybrid, Path):
                clear_socket(guest.hybrid)
            node.add_guest(options)
            self._guests = {**self._guests, guest.name: guest}
        _log.info("guest added: guest=%s cid=%d socket=%s", guest.name, guest.cid, guest.socket)
        return self.guest(guest.name)

    def remove_guest(self, guest: str | int) -> None:
        """Removes a guest, by name or CID, and ends its flows and its attachment.

        The guest receives RST for each connection first. The call waits until it has, for at most a second.

        Raises:
            NoSuchGuest: no guest has this name or CID.
        """
        with self._changing:
            spec = self._find(guest)
            self._running().remove_guest(spec.cid)
            self._guests = {n: it for n, it in self._guests.items() if n != spec.name}
            _remove_sockets(spec)
            self._readiness.forget(spec.name)
        _log.info("guest removed: guest=%s cid=%d", spec.name, spec.cid)

    def set_guest_cid(self, guest: str | int, cid: int) -> GuestRecord:
        """Changes the CID of a guest, by name or CID, while it runs; vsock(7) calls this migration.

        All connections of the guest end. Listeners in the guest that are bound to the wildcard CID continue at
        the new CID, and listeners of host programs stay. Returns when the guest has received its new CID, if
        its device can tell it (userspace guests, User-Mode Linux), and after a second at the latest.

        Raises:
            NoSuchGuest: there is none.
            UsageError: `cid` is not one a guest can have.
            TransportError: EADDRINUSE when another guest has it.
        """
        return self.change_guest(guest, cid=cid)

    def set_guest_groups(self, guest: str | int, groups: Sequence[str]) -> GuestRecord:
        """Replaces the groups of a guest, by name or CID, while it runs.

        The new groups apply to new connections; open connections continue.

        Raises:
            NoSuchGuest: no guest has this name or CID.
            UsageError: a group's name is invalid.
        """
        return self.change_guest(guest, groups=groups)

    def change_guest(self, guest: str | int, **changes: object) -> GuestRecord:
        """Changes a guest, by name or CID, while it runs, as `set_guest_cid` and `set_guest_groups` do.

        Args:
            guest: its name or CID.
            changes: fields of `GuestSpec` that can change at run time, such as `cid`, `groups` or `hybrid`.
                None keeps a value. Connections over the old hybrid socket stay open.

        Raises:
            NoSuchGuest, UsageError, TransportError: as those two.
        """
        wanted = read_changes(GuestSpec, _absolute(changes))
        return self._change(guest, lambda old: replace(old, **wanted))

    def change(self, guest: GuestSpec) -> GuestRecord:
        """Changes the guest with this name to match a specification.

        Raises:
            UsageError: it differs in a field that cannot change at run time.
            NoSuchGuest, TransportError: as `change_guest`.
        """
        return self._change(guest.name, lambda _: guest)

    def _change(self, guest: str | int, become: Callable[[GuestSpec], GuestSpec]) -> GuestRecord:
        with self._changing:
            old = self._find(guest)
            wanted = become(old)
            new = replace(self._with_paths(wanted), socket=wanted.socket or old.socket)
            _check_fixed(old, new)
            _check_conflicts(new, [spec for spec in self._guests.values() if spec is not old])
            node = self._running()
            if isinstance(new.hybrid, Path) and new.hybrid != old.hybrid:
                clear_socket(new.hybrid)
            node.change_guest(old.cid, to_native(new))
            self._guests = {**self._guests, new.name: new}
        _log_change(old, new)
        if new.cid != old.cid:
            with suppress(OSError):  # removed meanwhile
                node.wait_told(new.cid, _TELLING_SECONDS)
        return self.guest(new.name)

    # Questions

    @property
    def runtime_dir(self) -> Path:
        """The directory of the switch's sockets. Programs find it in `VSOCK_RUNTIME_DIR`."""
        return self._files.directory

    @property
    def transport(self) -> SwitchTransport:
        """The value of ``transport=`` with which this package's functions act as a host program of this switch."""
        return SwitchTransport(str(self.runtime_dir))

    def socket_path(self, name: str) -> Path:
        """The socket to which the VMM of guest `name` connects; the default path if there is no such guest."""
        spec = self._guests.get(name)
        return spec.socket if spec and spec.socket else self._files.guest_socket(name)

    def hybrid_path(self, name: str) -> Path:
        """The path of the hybrid socket of guest `name`; the default path if it has none."""
        spec = self._guests.get(name)
        path = spec.hybrid if spec else None
        return path if isinstance(path, Path) else self._files.hybrid_socket(name)

    def info(self) -> SwitchRecord:
        """The switch itself."""
        node = self._running()
        snapshot = node.snapshot()
        return SwitchRecord(
            version=version("vsock"),
            pid=os.getpid(),
            runtime_dir=str(self.runtime_dir),
            cid=node.cid,
            uptime=time.monotonic() - self._started,
            sandbox=snapshot["sandbox"],
            guests=len(snapshot["guests"]),
            listeners=len(snapshot["listeners"]),
            flows=len(snapshot["flows"]),
            counters=snapshot["counters"],
        )

    def guests(self) -> list[GuestRecord]:
        """All guests, by CID."""
        found = (
            listing.guest(info, self._readiness) for info in self._running().snapshot()["guests"]
        )
        return sorted(found, key=lambda guest: guest.cid)

    def guest(self, guest: str | int) -> GuestRecord:
        """One guest, by name or CID. Raises NoSuchGuest."""
        spec = self._find(guest)
        for record in self.guests():
            if record.cid == spec.cid:
                return record
        raise NoSuchGuest(errno.ENODEV, f"guest {spec.name} was removed just now")

    def listeners(self) -> list[ListenerRecord]:
        """All host programs that listen, by port."""
        found = map(listing.listener, self._running().snapshot()["listeners"])
        return sorted(found, key=lambda listener: (listener.port, listener.cid))

    def datagrams(self) -> list[DatagramRecord]:
        """All datagram sockets of host programs, by port."""
        found = map(listing.datagram, self._running().snapshot()["datagrams"])
        return sorted(found, key=lambda socket: (socket.port, socket.cid))

    def flows(self) -> list[FlowRecord]:
        """All connections, oldest first."""
        found = map(listing.flow, self._running().snapshot()["flows"])
        return sorted(found, key=lambda flow: flow.id)

    def services(self) -> list[ServiceRecord]:
        """Forwards and proxies that run with the switch: those of a daemon's config file, and in a program none."""
        return []

    def explain(self, source: str | int, destination: str | int) -> Verdict:
        """Whether `source` may connect to `destination`, and why. Both are names or CIDs, or "host"."""
        if self._is_host_alias(source, destination):
            destination = CID_HOST
        cids = self._cid_of(source), self._cid_of(destination)
        return Verdict(*self._running().explain(*cids))

    def _is_host_alias(self, source: str | int, destination: str | int) -> bool:
        """Whether `source` is a guest to which the CID `destination` is the host."""
        if _is_host(source):
            return False
        return str(destination) in map(str, self._find(source).host_aliases)

    # Inside

    def _with_paths(self, guest: GuestSpec) -> GuestSpec:
        """Checks a specification, and fills in the paths of its sockets. Raises UsageError."""
        guest = checked(with_paths(checked(guest), self._files))
        return replace(guest, socket=guest.socket or self._files.guest_socket(guest.name))

    def _cid_of(self, who: str | int) -> int:
        return CID_HOST if _is_host(who) else self._find(who).cid

    def _find(self, guest: str | int) -> GuestSpec:
        for spec in self._guests.values():
            if guest in (spec.name, spec.cid, str(spec.cid)):
                return spec
        raise no_guest(guest, self._guests)

    def _running(self) -> "_native.Node":
        if self._node is None:
            raise UsageError("the switch does not run")
        return self._node

    def _make_server(self) -> "ControlServer":
        try:
            from vsock.switch.server import ControlServer
        except ModuleNotFoundError as error:
            raise missing_extra(error, "the control API of a switch", "switch") from None
        return ControlServer(self, self._files.control)

    def _make_attendant(self) -> Attendant:
        servers: list[AbstractAsyncContextManager[object]] = []
        if self._server:
            servers = [NotifyServer(self.transport, self._hear), self._server]
        return Attendant(self._running().event_fd(), self._log_events, servers)

    def _hear(self, cid: int, message: Message) -> None:
        """Takes what a guest says of itself; nothing if it has gone meanwhile, or the switch is stopped."""
        node = self._node
        for guest in self._guests.values():
            if guest.cid == cid and node:
                with suppress(OSError, RuntimeError):
                    self._readiness.hear(guest.name, node.driver_starts(cid), message)

    def _log_events(self) -> bool:
        """Logs the events since the last call; returns whether there were any."""
        node = self._node
        if node is None:  # stopped by hand inside `with`: its eventfd is gone or about to be
            return False
        events = node.events()
        log_events(
            events, {CID_HOST: HOST_NAME} | {it.cid: it.name for it in self._guests.values()}
        )
        return bool(events)


def _tell(node: _native.Node, wanted: SwitchSpec) -> None:
    """Give a node its settings: an order for each."""
    node.set_polling(wanted.poll_us)
    node.set_linger_timeout(wanted.linger_timeout)


def _is_host(who: str | int) -> bool:
    return who in (HOST_NAME, CID_HOST, str(CID_HOST))


def _log_change(old: GuestSpec, new: GuestSpec) -> None:
    if new.cid != old.cid:
        _log.info("guest renumbered: guest=%s cid=%d before=%d", new.name, new.cid, old.cid)
    for name in fields_of(GuestSpec):
        if name != "cid" and (value := getattr(new, name)) != getattr(old, name):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            _log.info("guest changed: guest=%s cid=%d %s=%s", new.name, new.cid, name, text)


def _absolute(fields: Mapping[str, object]) -> dict[str, object]:
    """Makes the paths among the values absolute."""
    known = fields_of(GuestSpec)
    return {
        name: Path(value).absolute()
        if name in known and Path in types_of(known[name].type) and isinstance(value, str | Path)
        else value
        for name, value in fields.items()
    }


def _specs(guests: object) -> tuple[GuestSpec, ...]:
    """Converts the argument `guests` of `Switch` to specifications. Raises UsageError."""
    if isinstance(guests, Mapping):
        return tuple(GuestSpec(name=name, cid=cid) for name, cid in guests.items())
    found = tuple(guests) if isinstance(guests, Iterable) else (guests,)
    for one in found:
        if not isinstance(one, GuestSpec):
            raise UsageError(
                f"guests are a mapping of names to CIDs, or GuestSpec objects, not {one!r}"
            )
    return found


def _remove_sockets(guest: GuestSpec) -> None:
    for path in (guest.socket, guest.hybrid):
        if isinstance(path, Path):
            remove_socket(path)


def _check_fixed(old: GuestSpec, new: GuestSpec) -> None:
    """Raises UsageError if `new` differs in a field that cannot change while the guest runs."""
    for name, field in fields_of(GuestSpec).items():
        if about(field).is_fixed and getattr(new, name) != getattr(old, name):
            raise UsageError(
                f"{name} of guest {old.name} cannot change while it is there: remove it, and add it anew"
            )


def _check_conflicts(guest: GuestSpec, others: Iterable[GuestSpec]) -> None:
    """Raises TransportError (EADDRINUSE) if `guest` claims what one of `others` has."""
    taken = conflicts(guest, others)
    # A guest of that name has the sockets of that name too: this alone says nothing new.
    taken = [fault for fault in taken if fault.field == "name"] or taken
    if taken:
        raise TransportError(errno.EADDRINUSE, "; ".join(fault.reason for fault in taken))
