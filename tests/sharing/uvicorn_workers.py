"""A uvicorn server with two workers and a `vsock.socket` listener."""

import multiprocessing
import os
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

import vsock


async def app(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer with the process id."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


def main() -> None:
    """Serve until a signal arrives."""
    multiprocessing.set_start_method("spawn", force=True)
    listener = vsock.create_server(5000)
    # uvloop calls accept(2) itself, which does not work with a `vsock.socket` listener.
    config = uvicorn.Config(
        "uvicorn_workers:app", workers=2, loop="asyncio", lifespan="off", log_level="error"
    )
    print("listens", flush=True)
    Multiprocess(config, sockets=[listener]).run()


if __name__ == "__main__":
    main()
