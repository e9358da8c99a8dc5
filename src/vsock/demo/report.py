"""What the demo found out, as plain values; `--json` prints exactly this."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class GuestReport:
    """A guest that took part."""

    name: str
    cid: int
    vmm: str
    kernel: str | None


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a transfer was, from the first byte to the receipt, the receiver's checksum included."""

    source: str
    destination: str
    bytes: int
    seconds: float
    megabytes_per_second: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """How a check went."""

    name: str
    ok: bool
    seconds: float
    detail: str


@dataclass(slots=True)
class Report:
    """All of it."""

    guests: list[GuestReport] = field(default_factory=list)
    checks: list[CheckReport] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    begun: float = 0.0
    """When the demo began, by the monotonic clock."""

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.begun

    @property
    def is_well(self) -> bool:
        """Whether every check passed, and there were any."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        values = asdict(self)
        del values["begun"]
        return {"ok": self.is_well, **values, "seconds": round(self.seconds, 1)}
