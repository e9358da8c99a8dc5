"""`vsock.toml`: text in, frozen `Config` or every fault at once out.

    [switch]
    runtime_dir = "/run/vsock"    # optional
    poll_us = 50                  # optional: microseconds to look for packets before sleeping
    linger_timeout = 600          # optional: seconds that data of a closed socket may wait

    [[guest]]
    name = "alpha"
    cid = 3
    groups = ["lab"]              # optional: guests that share one may talk to each other
    hybrid = true                 # optional: a path, or true for the usual place
    socket = "/run/vm/alpha.sock" # optional: where the VMM connects
    memory_slots = true           # optional: for a guest with more than 8 memory regions
    host_aliases = [3]            # optional: CIDs by which it reaches the host besides 2

Each fault says file, line, what is wrong and what would be right. `tomllib` keeps no line
numbers, so they are looked up afterwards, and only when there is a fault to report.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from vsock.errors import UsageError
from vsock.runtime import RuntimeFiles, default_runtime_dir
from vsock.switch.model import (
    FIRST_GUEST_CID,
    LINGER_TIMEOUT,
    POLL_US,
    GuestSpec,
    checked_linger,
    checked_poll,
    conflicts,
    faults,
)
from vsock.switch.toml_lines import line_of

__all__ = ["Config", "ConfigError", "ConfigFault", "load", "parse"]

_T = TypeVar("_T")
_N = TypeVar("_N", int, float)

Place = tuple[str | int, ...]
"""Where something is in the document: ("guest", 1, "cid")."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a config file says."""

    runtime_dir: Path
    guests: tuple[GuestSpec, ...] = ()
    poll_us: int = POLL_US
    linger_timeout: float = LINGER_TIMEOUT


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


_KINDS: Final[dict[type, str]] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    list: "a list",
    bool: "true or false",
}
_TABLES: Final = {
    "switch": ("runtime_dir", "poll_us", "linger_timeout"),
    "guest": tuple(GuestSpec.__dataclass_fields__),
}


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


@dataclass
class _Reader:
    """Walks a document, takes what is right and notes what is not."""

    found: list[tuple[Place, str]] = field(default_factory=list)

    def config(self, document: Mapping[str, Any], runtime_dir: Path | None) -> Config:
        self._unknown((), document, tuple(_TABLES))
        switch = self._table(("switch",), document.get("switch", {}), "switch")
        said = self._typed(("switch", "runtime_dir"), switch, str)
        directory = runtime_dir or (Path(said) if said else default_runtime_dir())
        poll_us = self._checked(switch, "poll_us", int, checked_poll, POLL_US)
        # A whole number is a time as good as any.
        kind = int if type(switch.get("linger_timeout")) is int else float
        linger = self._checked(switch, "linger_timeout", kind, checked_linger, LINGER_TIMEOUT)
        tables = document.get("guest", [])
        if not isinstance(tables, list):
            self.found.append((("guest",), "write [[guest]], with two brackets, once per guest"))
            tables = []
        files = RuntimeFiles(directory.absolute())
        guests: list[GuestSpec] = []
        for index, table in enumerate(tables):
            place = ("guest", index)
            guest = self._guest(place, self._table(place, table, "guest"), files)
            if guest:
                for fault in (*faults(guest), *conflicts(guest, guests)):
                    reason = f"{fault.field}: {fault.reason}"
                    self.found.append(((*place, fault.field), reason))
                guests.append(guest)
        return Config(directory, tuple(guests), poll_us, linger)

    def _checked(
        self,
        switch: Mapping[str, Any],
        key: str,
        kind: type[_N],
        check: Callable[[_N], _N],
        default: _N,
    ) -> _N:
        said = self._typed(("switch", key), switch, kind)
        try:
            return default if said is None else check(said)
        except UsageError as error:
            self.found.append((("switch", key), str(error)))
            return default

    def _guest(
        self, place: Place, table: Mapping[str, Any], files: RuntimeFiles
    ) -> GuestSpec | None:
        before = len(self.found)
        name = self._typed((*place, "name"), table, str, is_required=True)
        cid = self._typed((*place, "cid"), table, int, is_required=True)
        groups = self._typed((*place, "groups"), table, list) or []
        for group in groups:
            if not isinstance(group, str):
                self.found.append(((*place, "groups"), f"group {group!r} is not a string"))
        socket = self._typed((*place, "socket"), table, str)
        memory_slots = self._typed((*place, "memory_slots"), table, bool) or False
        aliases = self._typed((*place, "host_aliases"), table, list) or []
        for alias in aliases:
            if not isinstance(alias, int) or isinstance(alias, bool):
                reason = f"alias {alias!r} is not a whole number"
                self.found.append(((*place, "host_aliases"), reason))
        hybrid = table.get("hybrid", False)
        if not isinstance(hybrid, str | bool):
            self.found.append(((*place, "hybrid"), "hybrid must be true, false or a path"))
        if len(self.found) > before or name is None or cid is None:
            self._rest_of_faults(place, name, cid)
            return None
        if hybrid is True:
            hybrid = str(files.hybrid_socket(name))
        return GuestSpec(
            name=name,
            cid=cid,
            groups=tuple(groups),
            socket=Path(socket) if socket else None,
            hybrid=Path(hybrid) if hybrid else None,
            memory_slots=memory_slots,
            host_aliases=tuple(aliases),
        )

    def _rest_of_faults(self, place: Place, name: str | None, cid: int | None) -> None:
        """Notes what is wrong with a name and a CID although there is no whole guest."""
        whole = GuestSpec(
            name="none" if name is None else name, cid=FIRST_GUEST_CID if cid is None else cid
        )
        for fault in faults(whole):
            self.found.append(((*place, fault.field), f"{fault.field}: {fault.reason}"))

    def _table(self, place: Place, value: object, kind: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.found.append((place, f"{kind} must be a table"))
            return {}
        self._unknown(place, value, _TABLES[kind])
        return value

    def _typed(
        self, place: Place, table: Mapping[str, Any], kind: type[_T], *, is_required: bool = False
    ) -> _T | None:
        key = str(place[-1])
        value = table.get(key)
        if value is None:
            if is_required:
                self.found.append((place[:-1], f"{place[0]} has no {key}"))
            return None
        # In Python True is a number; in a config file it is a mistake.
        if isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
            return value
        self.found.append((place, f"{key} must be {_KINDS[kind]}, not {value!r}"))
        return None

    def _unknown(self, place: Place, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                self.found.append(((*place, key), f"unknown key {key}: {hint}"))
