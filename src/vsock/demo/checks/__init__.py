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
from vsock.demo.lab import Lab

__all__ = ["CHECKS", "Check"]


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
