"""`vsock.adapters.aiohttp`: sessions of aiohttp over vsock, in asyncio's loop and in uvloop's."""

import asyncio
import hashlib
import io
import os
import ssl
from pathlib import Path

import aiohttp
import pytest
import uvloop
from tests.adapters.conftest import PORT, TLS_PORT
from tests.adapters.web import WebServer

import vsock
from vsock.adapters.aiohttp import VsockConnector

URL = f"http://alpha:{PORT}"
TLS_URL = f"https://alpha:{TLS_PORT}/"
LARGE = os.urandom(3_000_000)
TIMEOUT = aiohttp.ClientTimeout(total=30)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request):
    """Runs `play(session)` with a session in a loop of each kind."""

    def run(play, address=None, *, timeout=TIMEOUT, **options):
        async def main():
            connector = VsockConnector(address, **options)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                return await play(session)

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main())

    return run


async def _get(session, url, **options):
    async with session.get(url, **options) as reply:
        return await reply.json()


@pytest.mark.parametrize("host", ["alpha", "alpha.vsock", "3"])
def test_get_by_name_and_cid(web, run, host):
    """The server sees the host as it was written."""
    said = run(lambda session: _get(session, f"http://{host}:{PORT}/a?b=c"))
    assert (said["path"], said["host"]) == ("/a?b=c", f"{host}:{PORT}")


def test_large_bodies_go_both_ways(web, run):
    """More than any buffer holds."""

    async def play(session):
        async with session.post(URL, data=io.BytesIO(LARGE)) as reply:
            return await reply.read()

    assert run(play) == LARGE


def test_connection_is_kept_and_made_anew_when_it_ended(web, run):
    """Requests take one connection; after the server hung up there is another."""

    async def play(session):
        numbers = [(await _get(session, URL + path))["connection"] for path in ("/", "/", "/last")]
        async with asyncio.timeout(30):
            while True:
                try:
                    return [*numbers, (await _get(session, URL))["connection"]]
                except aiohttp.ClientConnectionError:  # the end had not arrived yet
                    await asyncio.sleep(0.01)

    assert run(play) == [1, 1, 1, 2]


def test_many_requests_at_once_share_the_connections_of_the_pool(web, run):
    """Up to its limit, which others wait for."""

    async def play(session):
        return await asyncio.gather(*(_get(session, URL) for _ in range(50)))

    assert len(run(play, limit=5)) == 50
    assert web.connections <= 5


def test_address_is_where_all_requests_go(guest, run):
    """A port that no URL can have; the server sees the URL's host."""
    with WebServer(guest.create_server(100_000)):
        said = run(lambda session: _get(session, "http://example.org/x"), "alpha:100000")
    assert said["host"] == "example.org"


def test_tls_checks_the_name_of_the_guest(tls_web, run, certificate):
    """A certificate for `alpha` is that of `alpha`, and not that of the CID."""
    context = ssl.create_default_context(cafile=str(certificate))

    async def play(session):
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await _get(session, TLS_URL.replace("alpha", "3"))
        said = await _get(session, TLS_URL.replace("alpha", "3"), server_hostname="alpha")
        return said, await _get(session, TLS_URL)

    assert [said["path"] for said in run(play, ssl=context)] == ["/", "/"]


def test_tls_without_the_certificate_is_refused(tls_web, run):
    """Nothing is trusted by default."""

    async def play(session):
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await _get(session, TLS_URL)

    run(play)


def test_fingerprint_is_checked(tls_web, run, certificate: Path):
    """As aiohttp does over TCP."""
    pem = certificate.read_text()
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") :])
    right = aiohttp.Fingerprint(hashlib.sha256(der).digest())
    wrong = aiohttp.Fingerprint(bytes(32))

    async def play(session):
        with pytest.raises(aiohttp.ServerFingerprintMismatch):
            await _get(session, TLS_URL, ssl=wrong)
        return await _get(session, TLS_URL, ssl=right)

    assert run(play)["path"] == "/"


@pytest.mark.parametrize(
    ("url", "words", "cause"),
    [
        ("http://alpha:9", "refused", vsock.ConnectRefused),
        ("http://delta:80", "no such guest", vsock.NoSuchGuest),
    ],
)
def test_who_is_not_there_is_a_connector_error(guest, run, url, words, cause):
    """With the words of `vsock.errors`, and its exception as the cause."""

    async def play(session):
        with pytest.raises(aiohttp.ClientConnectorError, match=words) as caught:
            await _get(session, url)
        assert isinstance(caught.value.os_error, cause)

    run(play)


@pytest.mark.parametrize("limit", ["sock_connect", "connect", "total"])
def test_guest_that_does_not_answer_is_a_connection_timeout(switch, run, limit):
    """Nobody is attached as `beta`. Each of aiohttp's limits holds."""

    async def play(session):
        with pytest.raises(TimeoutError) as caught:
            await _get(session, "http://beta/")
        assert limit == "total" or isinstance(caught.value, aiohttp.ConnectionTimeoutError)

    run(play, timeout=aiohttp.ClientTimeout(**{limit: 0.2}))


def test_silent_server_is_a_read_timeout(web, run):
    """And the session goes on."""

    async def play(session):
        with pytest.raises(aiohttp.SocketTimeoutError):
            await _get(session, f"{URL}/silent", timeout=aiohttp.ClientTimeout(sock_read=0.2))
        return await _get(session, URL)

    assert run(play)["path"] == "/"


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/"])
def test_host_that_is_no_guest_is_an_invalid_url(switch, run, url):
    """Nothing is ever connected to over TCP."""

    async def play(session):
        with pytest.raises(aiohttp.InvalidURL, match="CID"):
            await _get(session, url)

    run(play)
