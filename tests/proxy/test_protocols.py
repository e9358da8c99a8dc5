"""HTTP and SOCKS5 without sockets: bytes in, a request out, whole or byte by byte."""

from collections.abc import Callable

import pytest

from vsock.proxy.http import LONGEST_HEAD, HttpOpening
from vsock.proxy.request import Reason, Refusal, Request
from vsock.proxy.socks import SocksOpening

Opening = HttpOpening | SocksOpening
NAMED = b"\5\1\0" + b"\5\1\0\3\x06a.test\x01\xbb"


def whole(opening: Opening, data: bytes) -> Request:
    """The request that all of the data is."""
    request = opening.receive(data)
    assert request
    return request


def byte_by_byte(opening: Opening, data: bytes) -> Request:
    """The same, if each byte comes alone; the last one completes it."""
    for at in range(len(data) - 1):
        assert opening.receive(data[at : at + 1]) is None
    return whole(opening, data[-1:])


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize(
    ("make", "data", "expected"),
    [
        (
            HttpOpening,
            b"CONNECT a.test:443 HTTP/1.1\r\nHost: other\r\n\r\n",
            Request("connect", "a.test", 443),
        ),
        (HttpOpening, b"CONNECT A.test:443 HTTP/1.0\r\n\r\n", Request("connect", "a.test", 443)),
        (
            HttpOpening,
            b"GET http://a.test/x?token=1 HTTP/1.1\r\nHost: other\r\n\r\n",
            Request("http", "a.test", 80, "GET", "/x"),
        ),
        (
            HttpOpening,
            b"POST HTTP://a.test:8080?q HTTP/1.1\r\nHost: a\r\n\r\n",
            Request("http", "a.test", 8080, "POST", "/"),
        ),
        (
            HttpOpening,
            b"OPTIONS http://a.test HTTP/1.1\r\nHost: a\r\n\r\n",
            Request("http", "a.test", 80, "OPTIONS", "*"),
        ),
        (SocksOpening, NAMED, Request("socks5", "a.test", 443)),
    ],
)
def test_requests_are_read(
    feed: Callable[[Opening, bytes], Request],
    make: Callable[[], Opening],
    data: bytes,
    expected: Request,
) -> None:
    """The target of the first line counts, and not the header Host."""
    assert feed(make(), data) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"GET https://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.UNSUPPORTED),
        (b"GET ftp://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.UNSUPPORTED),
        (b"GET http://u:p@a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"GET http://a.test\\@b.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"GET http://a.test#@b.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"GET http://a.test/#x HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"TRACE http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.FORBIDDEN),
        (b"trace http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.FORBIDDEN),
        (b"TRACK http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.FORBIDDEN),
        (b"connect http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.UNSUPPORTED),
        (b"CONNECT a.test HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"CONNECT http://a.test:80/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.MALFORMED),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", Reason.MALFORMED),
        (
            b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            Reason.MALFORMED,
        ),
        (
            b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            Reason.MALFORMED,
        ),
        (b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", Reason.MALFORMED),
        (b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\n", Reason.MALFORMED),
        (
            b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            Reason.UNSUPPORTED,
        ),
        (b"POST http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Reason.MALFORMED),
        (b"X" * 40 + b" http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Reason.UNSUPPORTED),
        (b"\x16\x03\x01\x02\0\1\0\1\xfc\r\n\r\n", Reason.MALFORMED),
        (b"\x04\x01\0\x50\x7f\0\0\1root\0\r\n\r\n", Reason.MALFORMED),
        (b"", Reason.MALFORMED),
    ],
)
def test_what_is_no_request_of_http_is_refused(data: bytes, reason: Reason) -> None:
    """With a status and one line of ASCII, also in the status line."""
    opening = HttpOpening()
    with pytest.raises(Refusal) as caught:
        opening.receive(data)
    assert caught.value.reason is reason
    answer = opening.refused(caught.value)
    head, _, body = answer.partition(b"\r\n\r\n")
    status = {Reason.MALFORMED: b"400", Reason.UNSUPPORTED: b"501", Reason.FORBIDDEN: b"403"}
    first = head.split(b"\r\n")[0]
    assert first == b"HTTP/1.1 %s %s" % (status[reason], caught.value.text.encode())
    assert body == f"vsock proxy: {caught.value.text}\n".encode()
    assert b"Content-Length: %d" % len(body) in head


@pytest.mark.parametrize(
    "data",
    [
        b"GET http://user:s3cret@a.test/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nAuthorization s3cret\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: s3cret\r\n\r\n",
        b"Authorization: s3cret\r\n\r\n",
        b"s3cret" * 10 + b" http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_refusal_does_not_repeat_what_may_be_a_secret(data: bytes) -> None:
    """It goes to the log."""
    with pytest.raises(Refusal) as caught:
        HttpOpening().receive(data)
    assert "s3cret" not in caught.value.text + caught.value.details


def test_client_of_http_1_0_is_asked_for_as_one() -> None:
    """It could not read the chunks of an answer to HTTP/1.1."""
    opening = HttpOpening()
    assert opening.receive(b"GET http://a.test/?HTTP/1.1 HTTP/1.0\r\n\r\n")
    assert opening.head_for_server(()).startswith(b"GET /?HTTP/1.1 HTTP/1.0\r\nHost: a.test\r\n")


def test_headers_without_end_are_refused() -> None:
    """When they are more than a request may have, whatever the size of the pieces."""
    opening = HttpOpening()
    opening.receive(b"GET http://a/ HTTP/1.1\r\n")
    header = b"X: " + b"x" * 995 + b"\r\n"
    for _ in range(LONGEST_HEAD // 1000 - 1):
        opening.receive(header)
    with pytest.raises(Refusal, match="bytes of headers"):
        opening.receive(header * 2)


def test_request_is_made_anew_for_the_server() -> None:
    """Host from the URL; no header of the hop to the proxy; those of the host in place of the client's; one framing."""
    opening = HttpOpening()
    head = (
        b"POST http://a.test:8080/x?y=1 HTTP/1.1\r\nHost: other\r\nX-One: 1\r\nX-Secret: guessed\r\n"
        b"Connection: X-Named, content-length, keep-alive\r\nX-Named: 1\r\nProxy-Authorization: Basic eA==\r\n"
        b"Proxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n"
    )
    assert opening.receive(head + b"hel")
    sent = opening.head_for_server(((b"X-Secret", b"known"), (b"X-Named", b"2")))
    assert sent.split(b"\r\n") == [
        b"POST /x?y=1 HTTP/1.1",
        b"Host: a.test:8080",
        b"Connection: close",
        b"Via: 1.1 vsock-proxy",
        b"X-One: 1",
        b"X-Secret: known",
        b"X-Named: 2",
        b"content-length: 5",
        b"",
        b"",
    ]
    assert opening.body_for_server(None) == (b"hel", False)
    assert opening.body_for_server(b"loGET /second HTTP/1.1") == (b"lo", True)


def test_chunked_body_is_chunked_anew() -> None:
    """Extensions and trailers do not reach the server; a body that ends too early is an error."""
    opening = HttpOpening()
    head = b"PUT http://a.test/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
    assert opening.receive(head)
    assert b"\r\ntransfer-encoding: chunked\r\n" in opening.head_for_server(())
    assert opening.body_for_server(b"3;x=y\r\nabc\r\n") == (b"3\r\nabc\r\n", False)
    assert opening.body_for_server(b"0\r\nX-Trailer: 1\r\n\r\nGET / ") == (b"0\r\n\r\n", True)
    opening = HttpOpening()
    opening.receive(head)
    opening.head_for_server(())
    with pytest.raises(Refusal):
        opening.body_for_server(b"")
    opening = HttpOpening()
    opening.receive(head)
    opening.head_for_server(())
    with pytest.raises(Refusal):
        opening.body_for_server(b"fffffffffffffffffffffffffff\r\n")


def test_what_follows_a_connect_is_kept() -> None:
    """A client need not wait for the answer."""
    opening = HttpOpening()
    assert opening.receive(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n\x16\x03early")
    assert opening.rest == b"\x16\x03early"
    socks = SocksOpening()
    assert socks.receive(NAMED + b"early")
    assert socks.rest == b"early"
    assert socks.answer == b"\5\0"
    assert socks.answer == b""


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\5\1\2", b"\5\xff"),
        (b"\5\0", b"\5\xff"),
        (b"\5\1\0\5\2\0\1\x7f\0\0\1\0\x50", b"\5\7\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\3\0\1\x7f\0\0\1\0\x50", b"\5\7\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\1\0\2\x7f", b"\5\x08\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\4\1\0\1\x7f", b"\5\1\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\1\0\1\x7f\0\0\1\0\0", b"\5\1\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\1\0\3\0\0\x50", b"\5\1\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\1\0\3\3a\0b\0\x50", b"\5\1\0\1\0\0\0\0\0\0"),
        (b"\5\1\0\5\1\0\3\4\xe9.ab\0\x50", b"\5\1\0\1\0\0\0\0\0\0"),
    ],
)
def test_what_is_no_request_of_socks_is_refused(data: bytes, answer: bytes) -> None:
    """With the code of RFC 1928."""
    opening = SocksOpening()
    with pytest.raises(Refusal) as caught:
        opening.receive(data)
    assert opening.refused(caught.value) == answer


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nA: 1\r\n\r\nx",
        ),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: 1\r\n\r\nHTTP/1.0 204\r\n\r\n",
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: 1\r\n\r\n"
                b"HTTP/1.0 204\r\nConnection: close\r\n\r\n"
            ),
        ),
        (b"no HTTP at all\n\n", b"no HTTP at all\n\n"),
        (b"HTTP/1.1 200", b"HTTP/1.1 200"),
        (b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 100 Continue\r\n"),
        (b"", b""),
        (b"x" * 100000, b"x" * 100000),
    ],
)
def test_answer_says_that_the_connection_ends(size: int, answer: bytes, expected: bytes) -> None:
    """Else a client might send its next request there; all else passes as it is."""
    opening = HttpOpening()
    passed = b""
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    for piece in (*pieces, b""):
        passed += piece if opening.has_answer else opening.answer_for_client(piece)
    assert passed == expected
