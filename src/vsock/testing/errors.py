"""Errors of Linux guests; each message ends with the last lines of the guest's console."""

# ruff: noqa: N818 - the names say what happened, as those in vsock.errors do

from vsock.errors import VsockError


class GuestError(VsockError):
    """The base class: a Linux guest failed."""


class GuestUnavailable(GuestError):
    """This machine cannot boot such a guest; the message says what is missing and how to get it."""


class GuestTimeout(GuestError, TimeoutError):
    """The guest did not reach a state in time."""


class GuestGone(GuestError):
    """The guest ended or rebooted during a wait."""


class CommandFailed(GuestError):
    """A command in the guest ended with a status other than 0; the message has its output."""
