"""Headers that the host adds to plain HTTP requests for a host, such as a token that the guest must not know.

They are in a file that nobody but its owner can read: a header on each line, ``Name: value``. The bytes of HTTPS go through
the proxy encrypted, so nothing can be added there.
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

from vsock.errors import UsageError
from vsock.proxy.request import Host, Refusal, split_host

__all__ = ["Credentials", "Header", "read_header_file"]

Header = tuple[bytes, bytes]
"""Name and value."""

Credentials = dict[tuple[Host, int], tuple[Header, ...]]
"""Headers by host and port."""

_HTTP_PORT: Final = 80
_LARGEST_FILE: Final = 16384
_LINE: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)[ \t]*"
)
_OF_THE_PROXY: Final = {
    *(
        b"host",
        b"connection",
        b"content-length",
        b"transfer-encoding",
        b"te",
        b"trailer",
        b"upgrade",
    ),
    *(b"expect", b"keep-alive", b"via", b"proxy-connection", b"proxy-authorization"),
}
"""They say how a message is sent, which the proxy decides."""


def read_header_file(text: str) -> tuple[tuple[Host, int], tuple[Header, ...]]:
    """Read ``HOST=FILE`` or ``HOST:PORT=FILE``, and the file.

    Raises:
        UsageError: the text is something else, others can read the file, or a line is no header.
        OSError: the file cannot be read.
    """
    place, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f"{text!r}: write HOST=FILE or HOST:PORT=FILE")
    try:
        key = split_host(place, _HTTP_PORT)
    except Refusal as error:
        raise UsageError(str(error)) from None
    lines = [line for line in _read(Path(path)).splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path}: no header; write one on each line, `Name: value`")
    return key, tuple(_header(path, number, line) for number, line in enumerate(lines, 1))


def _read(path: Path) -> bytes:
    # A pipe without a writer must not block.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is no file")
        if status.st_mode & 0o077:
            raise UsageError(f"{path} can be read by others: chmod 600 {path}")
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise UsageError(f"{path}: more than {_LARGEST_FILE} bytes of headers")
    return data


def _header(path: str, number: int, line: bytes) -> Header:
    # The line is a secret: messages have its number alone.
    found = _LINE.fullmatch(line)
    if not found:
        raise UsageError(f"{path}: header {number} is none: write `Name: value`")
    name, value = found.groups()
    if name.lower() in _OF_THE_PROXY:
        raise UsageError(f"{path}: {name.decode()} is a header that the proxy itself sets")
    return name, value
