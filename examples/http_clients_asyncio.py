"""Many GETs at once with httpx or aiohttp. The URL is an ordinary one: its host is a guest, its port a vsock port.

vsock guest run alpha python3 http_over_vsock.py serve 8080
python3 http_clients_asyncio.py aiohttp http://alpha:8080/README

Each function shows what the library needs: one object of `vsock.adapters`.
"""

import asyncio
import sys

MANY = 20


async def get_with_httpx(url: str) -> list[str]:
    """Give a client our transport; it works in trio too."""
    import httpx

    from vsock.adapters.httpx import AsyncVsockTransport

    async with httpx.AsyncClient(transport=AsyncVsockTransport(), timeout=5) as client:
        replies = await asyncio.gather(*(client.get(url) for _ in range(MANY)))
    return [reply.raise_for_status().text for reply in replies]


async def get_with_aiohttp(url: str) -> list[str]:
    """Give a session our connector."""
    import aiohttp

    from vsock.adapters.aiohttp import VsockConnector

    async with aiohttp.ClientSession(connector=VsockConnector(), raise_for_status=True) as session:

        async def get() -> str:
            async with session.get(url) as reply:
                return await reply.text()

        return await asyncio.gather(*(get() for _ in range(MANY)))


if __name__ == "__main__":
    library, url = sys.argv[1:]
    for text in sorted(set(asyncio.run(globals()[f"get_with_{library}"](url)))):
        print(text, end="")
