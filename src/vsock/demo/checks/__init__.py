"""The checks of the demo, in the order in which they are shown.

A check gets the lab and returns one line of detail for people; it raises an exception if it fails. Each
kind of check has a module of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vsock.demo.checks.half_close import check_half_close
from vsock.demo.checks.many import check_many
from vsock.demo.checks.messages import check_messages
from vsock.demo.checks.ping import check_ping
from vsock.demo.checks.refusal import check_refusal
from vsock.demo.checks.transfer import check_transfer
from vsock.demo.checks.work import check_copy, check_exec, check_forward, prepare
from vsock.demo.lab import Lab
from vsock.demo.places import LinuxPlace

__all__ = ["CHECKS", "Check", "checks_for"]


@dataclass(frozen=True, slots=True)
class Check:
    """A check and its name."""

    name: str
    run: Callable[[Lab], str]


CHECKS = (
    Check("ping alpha", lambda lab: check_ping(lab, lab.alpha)),
    Check("ping beta", lambda lab: check_ping(lab, lab.beta)),
    Check("refused port", check_refusal),
    Check("64 MiB host to alpha", lambda lab: check_transfer(lab, lab.host, lab.alpha)),
    Check("64 MiB alpha to host", lambda lab: check_transfer(lab, lab.alpha, lab.host)),
    Check("64 MiB host to beta", lambda lab: check_transfer(lab, lab.host, lab.beta)),
    Check("64 MiB beta to host", lambda lab: check_transfer(lab, lab.beta, lab.host)),
    Check("64 MiB alpha to beta", lambda lab: check_transfer(lab, lab.alpha, lab.beta)),
    Check("64 MiB beta to alpha", lambda lab: check_transfer(lab, lab.beta, lab.alpha)),
    Check("100 connections at once", check_many),
    Check("half-close", check_half_close),
    Check("SEQPACKET messages", check_messages),
)
"""Those for guests of every kind."""


def checks_for(lab: Lab) -> tuple[Check, ...]:
    """All checks that can be made here; a note of the lab says why others cannot."""
    # User-Mode Linux first: it is not emulated.
    linux = [place for place in (lab.beta, lab.alpha) if isinstance(place, LinuxPlace)]
    if not linux:
        return CHECKS
    guest = linux[0]
    if obstacle := prepare(lab):
        lab.notes.append(obstacle)
        return CHECKS
    return (
        *CHECKS,
        Check("a command in a guest", lambda lab: check_exec(lab, guest)),
        Check("a file there and back", lambda lab: check_copy(lab, guest)),
        Check("a TCP port of a guest", lambda lab: check_forward(lab, guest)),
    )
