"""Starts processes from an event loop."""

import asyncio
from contextlib import suppress
from typing import Any

__all__ = ["start_process"]


async def start_process(*words: str, **options: Any) -> asyncio.subprocess.Process:
    """Do as `asyncio.create_subprocess_exec`, and kill the process if this is cancelled.

    asyncio itself then waits for ever, if the process runs and its pipes are not connected yet (seen with Python 3.11).

    Raises:
        OSError: it cannot be started.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*words, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(OSError):  # it could not be started
            process = await starting
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
        raise
