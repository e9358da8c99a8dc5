"""A GET with httpx, requests or urllib3. The URL is an ordinary one: its host is a guest, its port a vsock port.

vsock guest run alpha python3 http_over_vsock.py serve 8080
python3 http_clients.py httpx http://alpha:8080/README

Each function shows what the library needs: one object of `vsock.adapters`.
"""

import sys


def get_with_httpx(url: str) -> str:
    """Give a client our transport."""
    import httpx

    from vsock.adapters.httpx import VsockTransport

    with httpx.Client(transport=VsockTransport(), timeout=5) as client:
        return client.get(url).raise_for_status().text


def get_with_requests(url: str) -> str:
    """Mount our adapter, at ``http://alpha`` for one guest, or for all."""
    import requests

    from vsock.adapters.requests import VsockAdapter

    with requests.Session() as session:
        session.mount("http://", VsockAdapter())
        reply = session.get(url, timeout=5)
        reply.raise_for_status()
        return reply.text


def get_with_urllib3(url: str) -> str:
    """Use our pool manager."""
    from vsock.adapters.urllib3 import VsockPoolManager

    with VsockPoolManager(timeout=5) as http:
        return http.request("GET", url).data.decode()


if __name__ == "__main__":
    library, url = sys.argv[1:]
    print(globals()[f"get_with_{library}"](url), end="")
