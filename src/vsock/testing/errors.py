"""What can go wrong with a Linux guest; each message ends with the last lines of its console."""

# ruff: noqa: N818 - the names say what happened, as those in vsock.errors do

from vsock.errors import VsockError


class GuestError(VsockError):
    """A Linux guest did not do what was asked of it."""


class GuestUnavailable(GuestError):
    """This machine cannot boot such a guest; the message says what is missing and how to get it."""


class GuestTimeout(GuestError, TimeoutError):
    """The guest did not get somewhere in time."""


class GuestGone(GuestError):
    """The guest ended or rebooted while something was waited for."""


class CommandFailed(GuestError):
    """A command in the guest ended with a status other than 0; what it said is in the message."""
