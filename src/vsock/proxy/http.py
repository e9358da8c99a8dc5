"""HTTP/1.1 as a proxy speaks it with a client (RFC 9110, RFC 9112), on h11: bytes in, a `Request` out, and answers as bytes.

A connection carries one request. CONNECT asks for a connection, whose bytes follow. Other methods have an absolute URL; the
request is made anew from what was read, with one framing, so that the server cannot see another request in it than the rules
did; what a client sends behind it goes nowhere. The answer is copied as it is, up to the end that the server was asked to make;
only that the connection ends there is added to it.
"""

import re
from http import HTTPStatus
from typing import Final

from vsock.errors import missing_extra
from vsock.proxy.credentials import Header
from vsock.proxy.request import Reason, Refusal, Request, split_host

try:
    import h11
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "vsock proxy", "proxy") from None

__all__ = ["LONGEST_HEAD", "HttpOpening"]

LONGEST_HEAD: Final = 32768
"""Bytes of a request's first line and headers."""

_LONGEST_METHOD: Final = 32
_ECHOES: Final = ("TRACE", "TRACK")
_SCHEME: Final = "http://"
_PORT: Final = 80
_VIA: Final = (b"Via", b"1.1 vsock-proxy")
_GRANTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_CLOSE: Final = b"Connection: close\r\n"
_INTERIM: Final = re.compile(rb"HTTP/1\.[0-9] 1[0-9][0-9]\b")
_STATUS: Final = {
    Reason.MALFORMED: HTTPStatus.BAD_REQUEST,
    Reason.UNSUPPORTED: HTTPStatus.NOT_IMPLEMENTED,
    Reason.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Reason.NO_SUCH_HOST: HTTPStatus.BAD_GATEWAY,
    Reason.UNREACHABLE: HTTPStatus.BAD_GATEWAY,
    Reason.CONNECTION_REFUSED: HTTPStatus.BAD_GATEWAY,
    Reason.TIMED_OUT: HTTPStatus.GATEWAY_TIMEOUT,
    Reason.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_OF_ONE_HOP: Final = {
    *(
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
    ),
    *(b"host", b"content-length", b"transfer-encoding"),
}
"""Headers that are not passed on, or made anew."""


class HttpOpening:
    """What a client sends until it is clear what it wants, and, of a plain request, the rest of it."""

    def __init__(self) -> None:
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self._server = h11.Connection(h11.CLIENT)
        self._head: h11.Request | None = None
        self._target = ""
        self.request: Request | None = None
        """What it asks for, also if that is refused, as far as it can be read."""
        self.method: str | None = None
        """The method, also where the rest cannot be read."""
        self._of_answer = b""
        self.has_answer = False
        """Whether the status line of the final answer is passed on, and so everything behind it is."""

    @property
    def answer(self) -> bytes:
        """What is to be sent to the client before its request is whole: nothing."""
        return b""

    @property
    def rest(self) -> bytes:
        """What the client has sent behind a CONNECT."""
        return bytes(self._client.trailing_data[0])

    def receive(self, data: bytes) -> Request | None:
        """Take bytes of the client, none for their end; return its request when it is whole.

        Raises:
            Refusal: it is malformed, or nothing that a proxy does.
        """
        try:
            self._client.receive_data(data)
            event = self._client.next_event()
        except h11.RemoteProtocolError as error:
            raise _malformed(error) from None
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Request):
            raise Refusal(Reason.MALFORMED, "the connection ended before the request did")
        self._head = event
        return self._read(event)

    def granted(self) -> bytes:
        """The answer to a CONNECT that has its connection."""
        return _GRANTED

    def refused(self, refusal: Refusal) -> bytes:
        """The answer to a request that is not carried out; the reason is also in its first line, which clients show."""
        status = _STATUS[refusal.reason]
        body = f"vsock proxy: {refusal.text}\n".encode("ascii", "backslashreplace")
        return b"".join(
            (
                b"HTTP/1.1 %d " % status,
                refusal.text.encode("ascii", "backslashreplace"),
                b"\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n" % len(body),
                b"Connection: close\r\n\r\n",
                body,
            )
        )

    def head_for_server(self, added: tuple[Header, ...]) -> bytes:
        """The head of a plain request as it goes to its server, with headers of the host in place of the client's."""
        assert self._head
        assert self.request
        hidden = (
            _OF_ONE_HOP | _named_in_connection(self._head) | {name.lower() for name, _ in added}
        )
        headers = [(b"Host", _authority(self.request)), (b"Connection", b"close"), _VIA]
        headers += [one for one in self._head.headers.raw_items() if one[0].lower() not in hidden]
        headers += added
        headers += [
            (name, value)
            for name, value in self._head.headers
            if name in (b"content-length", b"transfer-encoding")
        ]
        sent = self._sent(
            h11.Request(method=self._head.method, target=self._target, headers=headers)
        )
        if self._head.http_version < b"1.1":
            # h11 writes 1.1. A client of 1.0 knows no chunks, in which a server may answer that.
            sent = sent.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
        return sent

    def body_for_server(self, data: bytes | None) -> tuple[bytes, bool]:
        """Take bytes of a plain request's body, none for their end, None for what came with the head.

        Returns what goes to the server, and whether the body is over.

        Raises:
            Refusal: the body is malformed, or ended too early.
        """
        pieces = []
        try:
            if data is not None:
                self._client.receive_data(data)
            while True:
                event = self._client.next_event()
                if isinstance(event, h11.Data):
                    pieces.append(self._sent(h11.Data(data=bytes(event.data))))
                elif isinstance(event, h11.EndOfMessage):
                    pieces.append(self._sent(h11.EndOfMessage()))
                    return b"".join(pieces), True
                else:
                    return b"".join(pieces), False
        except h11.RemoteProtocolError as error:
            raise _malformed(error) from None

    def answer_for_client(self, data: bytes) -> bytes:
        """Take bytes of a plain request's answer, none for their end, until `has_answer`; return what goes to the client.

        Interim answers (1xx) pass. What is no answer of HTTP passes as well: it is for the client to say so.
        """
        self._of_answer += data
        passed = b""
        while not self.has_answer:
            line, end, rest = self._of_answer.partition(b"\n")
            is_interim = _INTERIM.match(line) is not None
            if is_interim and b"\r\n\r\n" in self._of_answer:
                interim, end, self._of_answer = self._of_answer.partition(b"\r\n\r\n")
                passed += interim + end
            elif end and not is_interim:
                close = _CLOSE if line.startswith(b"HTTP/1.") else b""
                passed += line + end + close + rest
                self.has_answer = True
            elif not data or len(self._of_answer) > LONGEST_HEAD:
                passed += self._of_answer
                self.has_answer = True
            else:
                break
        return passed

    def _sent(self, event: h11.Event) -> bytes:
        return self._server.send(event) or b""

    def _read(self, head: h11.Request) -> Request:
        names = [name for name, _ in head.headers]
        method, target = head.method.decode(), head.target.decode()
        if len(method) > _LONGEST_METHOD:
            raise Refusal(Reason.UNSUPPORTED, "no such method")
        self.method = method
        if method == "CONNECT":
            request = Request("connect", *split_host(target))
        elif target.lower().startswith(_SCHEME):
            request = self._read_url(method, target[len(_SCHEME) :])
        else:
            raise Refusal(
                Reason.UNSUPPORTED if "://" in target else Reason.MALFORMED,
                "this is a proxy: send CONNECT HOST:PORT, or a whole URL that begins with http://",
            )
        self.request = request
        has_body = b"content-length" in names or b"transfer-encoding" in names
        if b"content-length" in names and b"transfer-encoding" in names:
            raise Refusal(Reason.MALFORMED, "both Content-Length and Transfer-Encoding")
        if b"transfer-encoding" in names and head.http_version < b"1.1":
            raise Refusal(Reason.MALFORMED, "Transfer-Encoding in HTTP/1.0")
        if method == "CONNECT" and has_body:
            raise Refusal(Reason.MALFORMED, "CONNECT with a body")
        # Some servers read methods in any case.
        if method.upper() in _ECHOES:
            raise Refusal(Reason.FORBIDDEN, "TRACE would show headers that the proxy adds")
        if method != "CONNECT" and method.upper() == "CONNECT":
            raise Refusal(Reason.UNSUPPORTED, "CONNECT is written in upper case")
        return request

    def _read_url(self, method: str, rest: str) -> Request:
        """Read a URL behind its scheme; user and password, and fragments, have no place in it (RFC 9112, section 3.2.2)."""
        cut = next((at for at, char in enumerate(rest) if char in "/?"), len(rest))
        host, port = split_host(rest[:cut], _PORT)
        if "#" in rest:
            raise Refusal(Reason.MALFORMED, "a fragment in the URL")
        target = rest[cut:]
        if not target.startswith("/"):
            # The asterisk form is for OPTIONS without a path (RFC 9112, section 3.2.4).
            target = "*" if method == "OPTIONS" and not target else f"/{target}"
        self._target = target
        return Request("http", host, port, method, target.partition("?")[0])


def _named_in_connection(head: h11.Request) -> set[bytes]:
    return {
        word.strip().lower()
        for name, value in head.headers
        if name == b"connection"
        for word in value.split(b",")
    }


def _authority(request: Request) -> bytes:
    text = request.target
    return (text.removesuffix(f":{_PORT}") if request.port == _PORT else text).encode()


def _malformed(error: h11.RemoteProtocolError) -> Refusal:
    """The words of h11 have pieces of the request, which may be secrets, and do not belong into a log."""
    if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return Refusal(Reason.MALFORMED, f"more than {LONGEST_HEAD} bytes of headers")
    if error.error_status_hint == HTTPStatus.NOT_IMPLEMENTED:
        return Refusal(Reason.UNSUPPORTED, "a Transfer-Encoding other than chunked")
    return Refusal(Reason.MALFORMED, "no valid HTTP")
