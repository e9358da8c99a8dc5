"""Work in a session with a guest that begins again, with `--reconnect`, when the guest has gone and has come back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from vsock.ssh import GuestSession

__all__ = ["again", "notice_silence"]

_KEEPALIVE_SECONDS: Final = 15.0
_MOST_UNANSWERED: Final = 3
"""So many questions without an answer end the session: the guest was stopped, or hangs."""

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0
_GROWTH: Final = 1.5
"""Between attempts to reach a guest that has gone."""

_T = TypeVar("_T")


def notice_silence(session: "GuestSession") -> None:
    """Have a session end whose guest says nothing any more."""
    session.connection.set_keepalive(_KEEPALIVE_SECONDS, _MOST_UNANSWERED)


async def again(work: Callable[[], Awaitable[_T]], say: Callable[[str], None]) -> _T:
    """Try until the work begins, and return what it does: why it is over, for instance.

    Args:
        work: raises OSError if it cannot begin.
        say: is called when attempts fail, once for those that fail alike.

    Raises:
        HostKeyChanged, KeyRefused: time does not change that.
    """
    from vsock.errors import HostKeyChanged, KeyRefused

    pause, said = _FIRST_PAUSE, ""
    while True:
        await asyncio.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)
        try:
            return await work()
        except (HostKeyChanged, KeyRefused):
            raise
        except OSError as error:
            text = error.strerror or str(error)
            if text != said:
                say(text)
            said = text
