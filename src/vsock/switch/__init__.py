"""The control plane: what the switch should be, what it is, and the API to change and see it.

Only `Switch` is public here. It is imported when it is first used: command line tools come by
this package for its light parts (`client`, `records`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsock.switch.switch import Switch

__all__ = ["Switch"]


def __getattr__(name: str) -> Any:
    if name == "Switch":
        from vsock.switch.switch import Switch

        return Switch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
