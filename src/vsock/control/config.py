"""`vsock.toml`: text in, frozen `Config` or every fault at once out.

    [switch]
    runtime_dir = "/run/vsock"    # optional
    poll_us = 50                  # optional: microseconds to look for packets before sleeping
    linger_timeout = 600          # optional: seconds that data of a closed socket may wait
    sandbox = true                # optional: threads give up what they do not need

    [[guest]]
    name = "alpha"
    cid = 3
    groups = ["lab"]              # optional: guests that share one may talk to each other
    hybrid = true                 # optional: a path, or true for the usual place
    socket = "/run/vm/alpha.sock" # optional: where the VMM connects
    socket_group = "kvm"          # optional: lets a VMM of this group connect, with
    socket_mode = "0660"          # optional: as SocketMode= of systemd.socket(5)
    memory_slots = true           # optional: for a guest with more than 8 memory regions
    file_memory = true            # optional: its memory may be in files on any file system
    memory_limit_gib = 64         # optional: its memory at most
    buffer_limit_mib = 64         # optional: of it, for programs that do not read, at most
    bytes_per_second = 50000000   # optional: from it, and to it, at most
    host_aliases = [3]            # optional: CIDs by which it reaches the host besides 2

    [[forward]]                   # vsock forward 8080 alpha:80, for as long as the switch runs
    name = "web"
    listen = "8080"
    to = "alpha:80"

    [[proxy]]                     # vsock proxy --allow index.example.org --allow '*.files.example.org:443'
    name = "packages"
    allow = ["index.example.org", "*.files.example.org:443"]
    log = "/var/log/vsock-proxy.log"
    listen = ["host:3128"]        # optional, as are the other options of `vsock proxy`
    guests = ["alpha"]
    header_files = ["api.internal=/etc/vsock/token"]
    connections = 64
    rate = 50
    idle_timeout = 3600

Each fault says file, line, what is wrong and what would be right. `tomllib` keeps no line
numbers, so they are looked up afterwards, and only when there is a fault to report.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from vsock.control.model import GuestSpec, SwitchSpec, conflicts, settings, with_paths
from vsock.control.schema import Fault, SchemaError, faults, read, unknown
from vsock.control.services import ForwardSpec, ProxySpec, Service
from vsock.control.toml_lines import Place, line_of
from vsock.errors import UsageError
from vsock.runtime import RuntimeFiles, default_runtime_dir

__all__ = ["Config", "ConfigError", "ConfigFault", "load", "parse"]

_T = TypeVar("_T")

_SERVICES: Final[tuple[type[Service], ...]] = (ForwardSpec, ProxySpec)
_TABLES: Final = ("switch", "guest", *(kind.kind for kind in _SERVICES))


@dataclass(frozen=True, slots=True)
class Config(SwitchSpec):
    """The contents of a config file: a switch, the guests that it starts with, and its services."""

    runtime_dir: Path
    guests: tuple[GuestSpec, ...] = ()
    services: tuple[Service, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigFault:
    """One thing wrong with a config file."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class ConfigError(UsageError):
    """A config file that cannot be used; `faults` has all that is wrong with it."""

    def __init__(self, faults: list[ConfigFault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


def load(path: Path, *, runtime_dir: Path | None = None) -> Config:
    """Reads a config file. `runtime_dir` wins over what the file says.

    Raises ConfigError with all faults, or OSError when the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([ConfigFault(str(path), line, "not UTF-8")]) from None
    return parse(text, file=str(path), runtime_dir=runtime_dir)


def parse(text: str, *, file: str = "vsock.toml", runtime_dir: Path | None = None) -> Config:
    """The config in `text`; `file` is its name in faults. Raises ConfigError with all faults."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_fault(error, text, file)]) from None
    except ValueError:
        raise ConfigError([_long_number(text, file)]) from None
    reader = _Reader()
    config = reader.config(document, runtime_dir)
    if reader.found:
        located = {
            ConfigFault(file, line_of(text, place), reason) for place, reason in reader.found
        }
        raise ConfigError(sorted(located, key=lambda fault: (fault.line, fault.reason)))
    return config


def _syntax_fault(error: tomllib.TOMLDecodeError, text: str, file: str) -> ConfigFault:
    reason, _, where = str(error).rpartition(" (at ")
    at_line = re.match(r"line (\d+)", where)
    line = int(at_line[1]) if at_line else text.count("\n") + 1
    return ConfigFault(file, line, f"not TOML: {reason or error}")


def _long_number(text: str, file: str) -> ConfigFault:
    """Python refuses to read numbers of thousands of digits, and does not say where they are."""
    longest = max(re.finditer(r"[0-9_]+", text), key=lambda digits: len(digits.group()))
    line = text.count("\n", 0, longest.start()) + 1
    return ConfigFault(file, line, f"a number of {len(longest.group())} digits")


class _Reader:
    """Reads the tables of a document, and collects faults with their places."""

    def __init__(self) -> None:
        self.found: list[tuple[Place, str]] = []

    def config(self, document: Mapping[str, Any], runtime_dir: Path | None) -> Config:
        for key in document.keys() - set(_TABLES):
            self.found.append(((key,), str(unknown(key, _TABLES))))
        switch = self._record(SwitchSpec, ("switch",), document.get("switch", {})) or SwitchSpec()
        directory = runtime_dir or switch.runtime_dir or default_runtime_dir()
        guests = self._guests(self._list(document, "guest"), RuntimeFiles(directory.absolute()))
        return Config(
            runtime_dir=directory,
            guests=guests,
            services=self._services(document),
            sandbox=switch.sandbox,
            **settings(switch),
        )

    def _list(self, document: Mapping[str, Any], key: str) -> list[object]:
        tables = document.get(key, [])
        if isinstance(tables, list):
            return tables
        self.found.append(((key,), f"write [[{key}]], with two brackets, once per {key}"))
        return []

    def _services(self, document: Mapping[str, Any]) -> tuple[Service, ...]:
        services: dict[str, Service] = {}
        for kind in _SERVICES:
            for index, table in enumerate(self._list(document, kind.kind)):
                place = (kind.kind, index)
                if service := self._record(kind, place, table):
                    if other := services.get(service.name):
                        reason = f"{other.kind} {other.name} exists already"
                        self._note(place, Fault("name", reason))
                    services[service.name] = service
        return tuple(services.values())

    def _guests(self, tables: list[object], files: RuntimeFiles) -> tuple[GuestSpec, ...]:
        guests: list[GuestSpec] = []
        for index, table in enumerate(tables):
            place = ("guest", index)
            if guest := self._record(GuestSpec, place, table):
                guest = with_paths(guest, files)
                # `read` has checked paths from the file, but not the default path of a hybrid socket.
                for fault in (*faults(guest), *conflicts(guest, guests)):
                    self._note(place, fault)
                guests.append(guest)
        return tuple(guests)

    def _record(self, kind: type[_T], place: Place, table: object) -> _T | None:
        if not isinstance(table, dict):
            self.found.append((place, f"{place[0]} must be a table"))
            return None
        try:
            return read(kind, table)
        except SchemaError as error:
            for fault in error.faults:
                self._note(place, fault)
            return None

    def _note(self, place: Place, fault: Fault) -> None:
        if fault.is_missing:
            self.found.append((place, f"{place[0]} has no {fault.field}"))
        else:
            self.found.append(((*place, fault.field), str(fault)))
