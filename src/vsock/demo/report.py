"""The results of the demo, as plain values; `--json` prints exactly these."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class GuestReport:
    """A guest of the demo."""

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
    """The result of a check."""

    name: str
    ok: bool
    seconds: float
    detail: str


@dataclass(slots=True)
class Report:
    """The results of the whole demo."""

    guests: list[GuestReport] = field(default_factory=list)
    checks: list[CheckReport] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    begun: float = 0.0
    """When the demo began, by the monotonic clock."""

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begun

    @property
    def is_well(self) -> bool:
        """Whether there were checks, and all passed."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        values = asdict(self)
        del values["begun"]
        return {"ok": self.is_well, **values, "seconds": round(self.seconds, 1)}
