"""What can go wrong, cut by whose fault it was.

::

    VsockError
    ├── UsageError (ValueError)             you: an argument that can never work
    │   ├── MissingExtra (ImportError)        an optional dependency is not installed
    │   └── AddressError                      an address that cannot be read
    │       └── AddressTypeError (TypeError)    it is not even text or a pair of numbers
    ├── ProtocolError (OSError)             the peer: it broke the client or hybrid protocol
    ├── SessionError (OSError)              the guest: its sshd gave no session, or the session ended
    │   ├── HostKeyChanged                    EACCES: its host key is not the one that is pinned
    │   └── KeyRefused (PermissionError)      EACCES: its sshd does not take our key
    ├── CopyError (OSError)                 the message says who: files were not copied to or from a guest
    └── TransportError (OSError)            the world: the errno is what AF_VSOCK would give
        ├── NoSwitch                          ENODEV: there is no switch to talk to
        ├── SwitchGone                        ENODEV: there was one, and it went away
        ├── NoSuchGuest                       ENODEV: nothing has this CID or name
        ├── ConnectRefused (ConnectionResetError)     ECONNRESET: nobody listens there
        ├── ConnectTimeout (TimeoutError)     ETIMEDOUT: no answer in time
        └── AccessDenied (PermissionError)    EACCES, EPERM: policy or privilege forbids it

Misuse of a socket's state (a second `bind`, `listen` before it, …) is a plain ``OSError`` with
the kernel's errno, as `AF_VSOCK` gives it, and waiting is a plain ``BlockingIOError`` or
``TimeoutError``. This module is not for turning native errors into Python ones: the native module
does that itself.
"""

# ruff: noqa: N818 - names say what happened, as ConnectRefused does; an Error suffix adds nothing

import errno as _errno
import os

TYPE_CHECKING = False  # as `typing` has it, whose import is most of what ours would cost
if TYPE_CHECKING:
    from collections.abc import Iterable


class VsockError(Exception):
    """The root of all errors of this package."""


class UsageError(VsockError, ValueError):
    """An argument that cannot work, whatever the world looks like."""


class MissingExtra(UsageError, ImportError):
    """A part of this package has dependencies that are not installed; the message says how to install them."""


class AddressError(UsageError):
    """A text or tuple that is no VSOCK address; the message says which part and why."""


class AddressTypeError(AddressError, TypeError):
    """What is no address because of its type, where every Python socket raises a ``TypeError``."""


class ProtocolError(VsockError, OSError):
    """The other end of the client protocol or of a hybrid socket said what it must not (``EPROTO``)."""


class SessionError(VsockError, OSError):
    """There was no SSH session with a guest, or it ended too early; the message says who did what."""


class HostKeyChanged(SessionError):
    """A guest has another host key than the one that is pinned (``EACCES``); the message says how to accept it."""


class KeyRefused(SessionError, PermissionError):
    """The sshd of a guest does not take this user's key (``EACCES``)."""


class CopyError(VsockError, OSError):
    """Files were not copied to or from a guest (``EIO``); `failures` has a line for each, with the side at fault."""

    failures: "tuple[str, ...]" = ()


class TransportError(VsockError, OSError):
    """The world failed; ``errno`` is what `AF_VSOCK` would give."""


class NoSwitch(TransportError):
    """There is no switch to talk to (``ENODEV``, as a kernel without a transport says); the message names the alternatives."""


class SwitchGone(TransportError):
    """The switch went away, or did not answer in 5 seconds, while it was asked something (``ENODEV``)."""


class NoSuchGuest(TransportError):
    """No guest has this CID or name, or there is no way to it (``ENODEV``, of `vsock_assign_transport`)."""


class ConnectRefused(TransportError, ConnectionResetError):
    """The other side answered with a reset: nobody listens there, or its queue is full.

    AF_VSOCK says ``ECONNRESET`` here, never ``ECONNREFUSED``.
    """


class ConnectTimeout(TransportError, TimeoutError):
    """The other side did not answer within the connect timeout (``ETIMEDOUT``, of `vsock_connect`)."""


class AccessDenied(TransportError, PermissionError):
    """A missing privilege or a rule forbids it (``EACCES``, ``EPERM``): a port below 1024, another user's switch."""


_CLASSES: dict[int, tuple[type[TransportError], str]] = {
    _errno.ENODEV: (NoSuchGuest, "no such guest, or no way to it"),
    _errno.ECONNRESET: (ConnectRefused, "refused: nobody accepts connections there"),
    _errno.ETIMEDOUT: (ConnectTimeout, "no answer within the connect timeout"),
    _errno.EACCES: (AccessDenied, "permission denied"),
    _errno.EPERM: (AccessDenied, "operation not permitted by the switch"),
    _errno.EPROTO: (TransportError, "the other side broke the virtio-vsock protocol"),
    _errno.ESOCKTNOSUPPORT: (TransportError, "no guest runs there that knows this socket type"),
}


def transport_error(errno: int, doing: str) -> TransportError:
    """Return the exception for `errno`, an answer of the switch, met while `doing` something."""
    kind, text = _CLASSES.get(errno, (TransportError, os.strerror(errno)))
    return kind(errno, f"{doing}: {text}")


def no_switch(directory: "str | os.PathLike[str]", instead: str = "") -> NoSwitch:
    """Return the exception for a `directory` that no switch answers in; `instead` names what else there is."""
    return NoSwitch(
        _errno.ENODEV,
        f"no switch answers in {os.fspath(directory)}: start one with `vsock switch`, or say where "
        f"it is with VSOCK_RUNTIME_DIR or --runtime-dir{instead}",
    )


def no_guest(guest: "str | int", known: "Iterable[str]") -> NoSuchGuest:
    """Return the exception for a `guest`, a name or CID, that is none of the `known` ones."""
    names = ", ".join(sorted(known)) or "none yet"
    return NoSuchGuest(_errno.ENODEV, f"no guest {guest!r} (guests: {names})")


def missing_extra(error: ModuleNotFoundError, what: str, extra: str) -> MissingExtra:
    """Return the exception for `what`, which needs the package named by `error`; `extra` installs it."""
    package = (error.name or "another package").partition(".")[0]
    return MissingExtra(f"{what} needs {package}: pip install 'vsock[{extra}]'")


def path_too_long(path: "str | os.PathLike[str]") -> UsageError:
    """Return the exception for the `path` of a socket in a runtime directory that is too long."""
    size = len(os.fsencode(path))
    return UsageError(
        f"the runtime directory's path is too long: that of a socket in it would have {size} bytes, "
        "and a Unix socket takes at most 107 bytes; choose a shorter one than "
        f"{os.path.dirname(os.fspath(path))}"  # noqa: PTH120 - pathlib is not paid for by sockets
    )


def state_error(errno: int) -> OSError:
    """Return the plain ``OSError`` the kernel gives for an operation in the wrong socket state."""
    return OSError(errno, os.strerror(errno))
