"""The switch itself: its guests, its runtime directory, the control API's server, the daemon.

Only `Switch` is public here. It is imported when it is first used: whoever only looks for the name should
not wait for asyncio.
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
