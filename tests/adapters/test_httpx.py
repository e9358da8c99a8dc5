"""`vsock.adapters.httpx`: httpx over vsock, blocking and in the event loops of asyncio and trio."""

import asyncio
import os
import ssl
import threading
from contextlib import aclosing, contextmanager

import anyio
import httpx
import hypercorn.asyncio
import hypercorn.config
import pytest
from tests.adapters.conftest import PORT, TLS_PORT
from tests.adapters.web import WebServer

import vsock
from vsock.adapters.httpx import AsyncVsockTransport, VsockTransport

URL = f"http://alpha:{PORT}"
TLS_URL = f"https://alpha:{TLS_PORT}/"
LARGE = os.urandom(3_000_000)


class _Blocking:
    """A blocking client with the methods of this test's asynchronous ones."""

    def __init__(self, address=None, **options) -> None:
        timeout = options.pop("timeout", 30)
        self._client = httpx.Client(transport=VsockTransport(address, **options), timeout=timeout)

    async def request(self, method, url, **options):
        return self._client.request(method, url, **options)

    async def aclose(self) -> None:
        self._client.close()


def _asynchronous(address=None, **options):
    timeout = options.pop("timeout", 30)
    return httpx.AsyncClient(transport=AsyncVsockTransport(address, **options), timeout=timeout)


@pytest.fixture(params=["blocking", "asyncio", "trio"])
def run(request):
    """Runs `play(client)` with a client of each kind; `client` makes one with arguments of the transport."""
    kind = request.param
    make = _Blocking if kind == "blocking" else _asynchronous

    def run(play, address=None, **options):
        async def main():
            async with aclosing(make(address, **options)) as client:
                return await play(client)

        return anyio.run(main, backend="trio" if kind == "trio" else "asyncio")

    return run


async def _get(client, url, **options):
    return await client.request("GET", url, **options)


@pytest.mark.parametrize("host", ["alpha", "alpha.vsock", "3"])
def test_get_by_name_and_cid(web, run, host):
    """The server sees the host as it was written."""

    async def play(client):
        return await _get(client, f"http://{host}:{PORT}/a?b=c")

    said = run(play).json()
    assert (said["path"], said["host"]) == ("/a?b=c", f"{host}:{PORT}")


def test_large_bodies_go_both_ways(web, run):
    """More than any buffer holds."""

    async def play(client):
        return await client.request("POST", URL, content=LARGE)

    assert run(play).content == LARGE


def test_connection_is_kept_and_made_anew_when_it_ended(web, run):
    """Requests take one connection; after the server hung up there is another."""

    async def play(client):
        paths = ("/", "/", "/last")
        numbers = [(await _get(client, URL + path)).json()["connection"] for path in paths]
        with anyio.fail_after(30):
            while True:
                try:
                    return [*numbers, (await _get(client, URL)).json()["connection"]]
                except httpx.TransportError:  # the end had not arrived yet
                    await anyio.sleep(0.01)

    assert run(play) == [1, 1, 1, 2]


def test_redirect_stays_with_the_guest(web, run):
    """Relative locations."""

    async def play(client):
        return await _get(client, f"{URL}/moved", follow_redirects=True)

    assert run(play).json()["path"] == "/there"


def test_address_is_where_all_requests_go(guest, run):
    """A port that no URL can have; the server sees the URL's host."""

    async def play(client):
        return await _get(client, "http://example.org/x")

    with WebServer(guest.create_server(100_000)):
        assert run(play, "alpha:100000").json()["host"] == "example.org"


def test_tls_checks_the_name_of_the_guest(tls_web, run, certificate):
    """A certificate for `alpha` is that of `alpha`, and not that of the CID."""
    context = ssl.create_default_context(cafile=str(certificate))

    async def play(client):
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await _get(client, TLS_URL.replace("alpha", "3"))
        return await _get(client, TLS_URL)

    assert run(play, verify=context).json()["path"] == "/"


def test_tls_without_the_certificate_is_refused(tls_web, run):
    """Nothing is trusted by default."""

    async def play(client):
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await _get(client, TLS_URL)

    run(play)


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://alpha:9", "refused"), ("http://delta:80", "no such guest"), ("http://9/", "no such")],
)
def test_who_is_not_there_is_a_connect_error(guest, run, url, words):
    """With the words of `vsock.errors`, and its exception as the cause."""

    async def play(client):
        with pytest.raises(httpx.ConnectError, match=words) as caught:
            await _get(client, url)
        causes = []
        error: BaseException | None = caught.value
        while error := error and (error.__cause__ or error.__context__):
            causes.append(error)
        assert any(isinstance(cause, vsock.TransportError) for cause in causes)

    run(play)


def test_guest_that_does_not_answer_is_a_connect_timeout(switch, run):
    """Nobody is attached as `beta`."""

    async def play(client):
        with pytest.raises(httpx.ConnectTimeout):
            await _get(client, "http://beta/")

    run(play, timeout=0.2)


def test_silent_server_is_a_read_timeout(web, run):
    """And the client goes on."""

    async def play(client):
        with pytest.raises(httpx.ReadTimeout):
            await _get(client, f"{URL}/silent", timeout=0.2)
        return await _get(client, URL)

    assert run(play).status_code == 200


def test_no_switch_is_a_connect_error(runtime_dir, run):
    """The message names what to do."""

    async def play(client):
        with pytest.raises(httpx.ConnectError, match="vsock switch"):
            await _get(client, URL)

    run(play)


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/"])
def test_host_that_is_no_guest_is_an_invalid_url(switch, run, url):
    """Nothing is ever connected to over TCP."""

    async def play(client):
        with pytest.raises(httpx.InvalidURL, match="CID"):
            await _get(client, url)

    run(play)


def test_many_requests_at_once_have_a_connection_each(web):
    """Up to the limit of the pool, which others wait for."""

    async def main():
        transport = AsyncVsockTransport(limits=httpx.Limits(max_connections=5))
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            return await asyncio.gather(*(client.get(URL) for _ in range(50)))

    assert {reply.status_code for reply in asyncio.run(main())} == {200}
    assert web.connections <= 5


def test_cancelled_request_closes_its_connection(web):
    """The server sees the end."""

    async def main():
        async with httpx.AsyncClient(transport=AsyncVsockTransport(), timeout=30) as client:
            with anyio.move_on_after(0.1):
                await client.get(f"{URL}/silent")
            return await client.get(URL)

    assert asyncio.run(main()).status_code == 200


def test_mounts_choose_guests_by_their_suffix(web):
    """One client for guests and for everything else."""
    mounts = {"all://*.vsock": VsockTransport()}
    with httpx.Client(mounts=mounts, trust_env=False) as client:
        assert client.get(f"http://alpha.vsock:{PORT}/").status_code == 200


def test_threads_share_a_client(web):
    """As httpx allows."""
    with httpx.Client(transport=VsockTransport(), timeout=30) as client:
        statuses = []
        threads = [
            threading.Thread(target=lambda: statuses.append(client.get(URL).status_code))
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 10


def test_http2_is_agreed_on(guest, run, certificate):
    """With Hypercorn in the guest, in the TLS handshake; in each event loop."""
    context = ssl.create_default_context(cafile=str(certificate))

    async def play(client):
        return [await _get(client, TLS_URL) for _ in range(5)]

    with _hypercorn(guest.create_server(TLS_PORT), certificate) as requests:
        replies = run(play, verify=context, http2=True)
    assert {(reply.http_version, reply.text) for reply in replies} == {("HTTP/2", "2")}
    assert len(requests) == 5


@contextmanager
def _hypercorn(listener, certificate):
    """Serves the version of HTTP at `listener`; gives the list of requests."""
    requests: list[str] = []
    loop, ended = asyncio.new_event_loop(), asyncio.Event()

    async def app(scope, _receive, send):
        if scope["type"] == "http":
            requests.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["http_version"].encode()})

    class Here(hypercorn.config.Config):
        def create_sockets(self):
            return hypercorn.config.Sockets([listener], [], [])

    config = Here()
    config.certfile = config.keyfile = str(certificate)
    config.loglevel = "WARNING"
    listener.setblocking(False)
    serving = hypercorn.asyncio.serve(app, config, shutdown_trigger=ended.wait)
    thread = threading.Thread(target=loop.run_until_complete, args=(serving,))
    thread.start()
    try:
        yield requests
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
