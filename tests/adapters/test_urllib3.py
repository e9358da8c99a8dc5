"""`vsock.adapters.urllib3`: a pool manager over vsock."""

import os
import threading

import pytest
import urllib3
from tests.adapters.conftest import PORT, TLS_PORT
from tests.adapters.web import WebServer
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

import vsock
from vsock.adapters.urllib3 import VsockPoolManager

URL = f"http://alpha:{PORT}"
TLS_URL = f"https://alpha:{TLS_PORT}/"
TIMEOUT = urllib3.Timeout(30)


@pytest.fixture
def http():
    """A manager that gives up at once."""
    with VsockPoolManager(retries=False, timeout=TIMEOUT) as manager:
        yield manager


@pytest.mark.parametrize("host", ["alpha", "alpha.vsock", "3"])
def test_get_by_name_and_cid(web, http, host):
    """The server sees the host as it was written."""
    said = http.request("GET", f"http://{host}:{PORT}/a?b=c").json()
    assert (said["path"], said["host"]) == ("/a?b=c", f"{host}:{PORT}")


def test_large_bodies_go_both_ways(web, http):
    """More than any buffer holds."""
    large = os.urandom(3_000_000)
    assert http.request("POST", URL, body=large).data == large


def test_connection_is_kept(web, http):
    """Of one guest, by one name."""
    assert [http.request("GET", URL).json()["connection"] for _ in range(3)] == [1, 1, 1]


def test_connection_that_ended_is_made_anew(web):
    """With the retries that urllib3 makes by default."""
    with VsockPoolManager(timeout=TIMEOUT) as http:
        http.request("GET", f"{URL}/last")
        assert http.request("GET", URL).json()["connection"] == 2


def test_pools_of_a_manager_have_a_limit(web):
    """Threads wait for a connection of the pool."""
    statuses = []
    with VsockPoolManager(maxsize=2, block=True, timeout=TIMEOUT) as http:
        threads = [
            threading.Thread(target=lambda: statuses.append(http.request("GET", URL).status))
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 10
    assert web.connections <= 2


def test_address_is_where_all_requests_go(guest):
    """A port that no URL can have; the server sees the URL's host."""
    with WebServer(guest.create_server(100_000)), VsockPoolManager("alpha:100000") as http:
        said = http.request("GET", "http://example.org/x", timeout=TIMEOUT)
        assert said.json()["host"] == "example.org"


def test_tls_checks_the_name_of_the_guest(tls_web, certificate):
    """A certificate for `alpha` is that of `alpha`, and not that of the CID."""
    with VsockPoolManager(ca_certs=str(certificate), retries=False, timeout=TIMEOUT) as http:
        assert http.request("GET", TLS_URL).status == 200
        with pytest.raises(SSLError, match="certificate verify failed"):
            http.request("GET", TLS_URL.replace("alpha", "3"))


def test_tls_without_the_certificate_is_refused(tls_web, http):
    """Nothing is trusted by default."""
    with pytest.raises(SSLError, match="certificate verify failed"):
        http.request("GET", TLS_URL)


@pytest.mark.parametrize(
    ("url", "words", "cause"),
    [
        ("http://alpha:9", "refused", vsock.ConnectRefused),
        ("http://delta:80", "no such guest", vsock.NoSuchGuest),
    ],
)
def test_who_is_not_there_is_a_new_connection_error(guest, http, url, words, cause):
    """With the words of `vsock.errors`, and its exception as the cause."""
    with pytest.raises(NewConnectionError, match=words) as caught:
        http.request("GET", url)
    assert isinstance(caught.value.__cause__, cause)


def test_retries_are_those_that_were_asked_for(guest):
    """The last failure is the reason."""
    with VsockPoolManager(retries=urllib3.Retry(2)) as http:
        with pytest.raises(MaxRetryError) as caught:
            http.request("GET", "http://alpha:9/")
        assert isinstance(caught.value.reason, NewConnectionError)


def test_guest_that_does_not_answer_is_a_connect_timeout(switch, http):
    """Nobody is attached as `beta`."""
    with pytest.raises(ConnectTimeoutError) as caught:
        http.request("GET", "http://beta/", timeout=0.2)
    assert not isinstance(caught.value, NewConnectionError)


def test_silent_server_is_a_read_timeout(web, http):
    """And the manager goes on."""
    with pytest.raises(ReadTimeoutError):
        http.request("GET", f"{URL}/silent", timeout=urllib3.Timeout(connect=30, read=0.2))
    assert http.request("GET", URL).status == 200


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/"])
def test_host_that_is_no_guest_is_a_location_parse_error(switch, http, url):
    """Nothing is ever connected to over TCP."""
    with pytest.raises(LocationParseError, match="CID"):
        http.request("GET", url)
