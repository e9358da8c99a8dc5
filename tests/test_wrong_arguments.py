"""N13: arguments of a wrong type are reported as such, not by an operator somewhere inside."""

from collections.abc import Callable
from typing import Any

import pytest

import vsock
from vsock.errors import AddressError, UsageError

ANY: Any = vsock
"""The package, typed as Any: these calls are wrong on purpose."""


@pytest.mark.parametrize(
    ("call", "kind", "reason"),
    [
        (lambda: ANY.Switch(["alpha"]), UsageError, "GuestSpec objects, not 'alpha'"),
        (lambda: ANY.Switch("alpha"), UsageError, "GuestSpec objects, not 'a'"),
        (lambda: ANY.Switch(5), UsageError, "GuestSpec objects, not 5"),
        (lambda: ANY.Switch(None), UsageError, "GuestSpec objects, not None"),
        (lambda: ANY.Switch([("alpha", 3)]), UsageError, "not \\('alpha', 3\\)"),
        (
            lambda: ANY.Switch({"alpha": "3"}).start(),
            UsageError,
            "cid must be a whole number, not '3'",
        ),
        (
            lambda: ANY.Switch({"alpha": None}).start(),
            UsageError,
            "cid must be a whole number, not None",
        ),
        (
            lambda: ANY.Switch({"alpha": True}).start(),
            UsageError,
            "cid must be a whole number, not True",
        ),
        (
            lambda: ANY.Switch({"alpha": 3.5}).start(),
            UsageError,
            "cid must be a whole number, not 3.5",
        ),
        (lambda: ANY.Switch({5: 3}).start(), UsageError, "name must be a string, not 5"),
        (lambda: ANY.Switch(poll_us="x"), UsageError, "poll_us must be a whole number, not 'x'"),
        (lambda: ANY.parse(5), AddressError, "is text, not int"),
        (lambda: ANY.parse(None), AddressError, "is text, not NoneType"),
        (lambda: ANY.parse(b"3:5"), AddressError, "is text, not bytes"),
        (lambda: ANY.socket("x"), TypeError, "a socket's type is an integer, not 'x'"),
        (lambda: ANY.socket(None), TypeError, "a socket's type is an integer, not None"),
    ],
)
@pytest.mark.usefixtures("runtime_dir")
def test_wrong_type_is_told_with_its_reason(
    call: Callable[[], object], kind: type[Exception], reason: str
) -> None:
    """With the value and the right type; for sockets as Python's own sockets do."""
    with pytest.raises(kind, match=reason):
        call()


def test_guest_added_with_a_wrong_type_leaves_the_switch_as_it_was(switch: Any) -> None:
    """Calls on a running switch."""
    for name, cid, options in (
        ("x", "9", {}),
        (9, 9, {}),
        ("x", 9, {"groups": [5]}),
        ("x", 9, {"groups": [None]}),
    ):
        with pytest.raises(UsageError, match="must be a|is not a string"):
            switch.add_guest(name, cid, **options)
    assert len(switch.guests()) == 3
