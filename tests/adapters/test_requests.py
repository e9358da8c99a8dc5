"""`vsock.adapters.requests`: sessions of requests over vsock."""

import os
import pickle

import pytest
import requests
from tests.adapters.conftest import PORT, TLS_PORT
from tests.adapters.web import WebServer

from vsock.adapters.requests import VsockAdapter

URL = f"http://alpha:{PORT}"
TLS_URL = f"https://alpha:{TLS_PORT}/"
SECONDS = 30


@pytest.fixture
def session():
    """A session whose every URL leads to guests."""
    with requests.Session() as made:
        made.mount("http://", VsockAdapter())
        made.mount("https://", VsockAdapter())
        yield made


@pytest.mark.parametrize("host", ["alpha", "alpha.vsock", "3"])
def test_get_by_name_and_cid(web, session, host):
    """The server sees the host as it was written, and the parameters."""
    reply = session.get(f"http://{host}:{PORT}/a", params={"b": "c d"}, timeout=SECONDS)
    assert (reply.json()["path"], reply.json()["host"]) == ("/a?b=c+d", f"{host}:{PORT}")


def test_large_bodies_go_both_ways(web, session):
    """More than any buffer holds."""
    large = os.urandom(3_000_000)
    assert session.post(URL, data=large, timeout=SECONDS).content == large


def test_connection_is_kept_and_made_anew_when_it_ended(web, session):
    """Requests take one connection; a new session has another."""
    numbers = [session.get(URL, timeout=SECONDS).json()["connection"] for _ in range(3)]
    assert numbers == [1, 1, 1]
    session.close()
    assert session.get(URL, timeout=SECONDS).json()["connection"] == 2


def test_redirect_stays_with_the_guest(web, session):
    """Relative locations."""
    assert session.get(f"{URL}/moved", timeout=SECONDS).json()["path"] == "/there"


def test_proxy_of_the_environment_is_not_asked(web, session, monkeypatch):
    """It is for TCP, and knows no guests."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert session.get(URL, timeout=SECONDS).json()["path"] == "/"


def test_adapter_for_one_guest_leaves_others_alone(web):
    """It is mounted at the beginning of a URL."""
    with requests.Session() as session:
        session.mount("http://alpha", VsockAdapter())
        assert session.get(URL, timeout=SECONDS).status_code == 200
        assert not isinstance(session.get_adapter("http://beta"), VsockAdapter)


def test_address_is_where_all_requests_go(guest):
    """A port that no URL can have; the server sees the URL's host."""
    with WebServer(guest.create_server(100_000)), requests.Session() as session:
        session.mount("http://", VsockAdapter("alpha:100000"))
        assert session.get("http://example.org/x", timeout=SECONDS).json()["host"] == "example.org"


def test_tls_checks_the_name_of_the_guest(tls_web, session, certificate):
    """A certificate for `alpha` is that of `alpha`, and not that of the CID."""
    assert session.get(TLS_URL, verify=str(certificate), timeout=SECONDS).status_code == 200
    with pytest.raises(requests.exceptions.SSLError, match="certificate verify failed"):
        session.get(TLS_URL.replace("alpha", "3"), verify=str(certificate), timeout=SECONDS)
    with pytest.raises(requests.exceptions.SSLError, match="certificate verify failed"):
        session.get(TLS_URL, timeout=SECONDS)


@pytest.mark.parametrize(
    ("url", "words"), [("http://alpha:9", "refused"), ("http://delta:80", "no such guest")]
)
def test_who_is_not_there_is_a_connection_error(guest, session, url, words):
    """With the words of `vsock.errors`."""
    with pytest.raises(requests.exceptions.ConnectionError, match=words) as caught:
        session.get(url, timeout=SECONDS)
    assert not isinstance(caught.value, requests.exceptions.Timeout)


def test_guest_that_does_not_answer_is_a_connect_timeout(switch, session):
    """Nobody is attached as `beta`."""
    with pytest.raises(requests.exceptions.ConnectTimeout):
        session.get("http://beta/", timeout=0.2)


def test_silent_server_is_a_read_timeout(web, session):
    """And the session goes on."""
    with pytest.raises(requests.exceptions.ReadTimeout):
        session.get(f"{URL}/silent", timeout=(SECONDS, 0.2))
    assert session.get(URL, timeout=SECONDS).status_code == 200


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/"])
def test_host_that_is_no_guest_is_an_invalid_url(switch, session, url):
    """Nothing is ever connected to over TCP."""
    with pytest.raises(requests.exceptions.InvalidURL, match="CID"):
        session.get(url, timeout=SECONDS)


def test_session_can_be_pickled(guest):
    """With its adapters, as every session of requests."""
    with requests.Session() as session:
        session.mount("http://", VsockAdapter("alpha:100000", transport="switch"))
        copied = pickle.loads(pickle.dumps(session))
    with WebServer(guest.create_server(100_000)), copied:
        assert copied.get("http://any/", timeout=SECONDS).status_code == 200
