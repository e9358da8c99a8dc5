"""What the policy says about two parties, as people and programs are told.

The rules themselves are in the data plane (crates/core/src/admission.rs), which asks them about every
connection, datagram and port; `Switch.explain` asks them there, too, so that the answer is what
happens.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["HOST_NAME", "Verdict"]

HOST_NAME: Final = "host"
"""What the machine that the switch runs on is called among guests."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allowed or not, which rule said so, and why."""

    is_allowed: bool
    rule: str
    reason: str
