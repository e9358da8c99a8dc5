"""The switch itself: its guests, its runtime directory, the server of the control API, the daemon.

Only `Switch` is public here. It is imported on first use, because it imports asyncio.
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
