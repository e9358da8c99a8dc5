"""An ASGI application on a vsock port, with uvicorn or hypercorn.

    python3 serve_asgi.py uvicorn 8080
    vsock guest run alpha python3 http_over_vsock.py get host:8080 /

Both servers accept at a listener of vsock.create_server. uvloop does not: it calls accept(2) itself.
"""

import asyncio
import sys
from typing import Any

import vsock


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """Say who asks: a CID and a port, if the server tells."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"client: {scope['client']}\n".encode()})


def serve_with_uvicorn(listener: vsock.socket) -> None:
    """Until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(app, loop="asyncio", lifespan="off", log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


def serve_with_hypercorn(listener: vsock.socket) -> None:
    """Until Ctrl-C."""
    from hypercorn.asyncio import serve
    from hypercorn.config import Config, Sockets

    class VsockConfig(Config):
        def create_sockets(self) -> Sockets:
            listener.setblocking(False)
            return Sockets([], [listener], [])

    asyncio.run(serve(app, VsockConfig()))


if __name__ == "__main__":
    server, port = sys.argv[1], int(sys.argv[2])
    listener = vsock.create_server(port)
    print(f"{server} on port {port}", flush=True)
    globals()[f"serve_with_{server}"](listener)
