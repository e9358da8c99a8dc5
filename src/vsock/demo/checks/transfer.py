"""Transfer: 64 MiB from one place to another, with a checksum at both ends, and how fast it was."""

from vsock.demo.lab import Lab
from vsock.demo.places import Place, run_pair
from vsock.demo.programs import receive_bytes, send_bytes
from vsock.demo.report import Rate

SIZE = 64 << 20


def check_transfer(lab: Lab, source: Place, destination: Place) -> str:
    """Send, compare checksums, note the rate.

    The checksum is CRC-32 because an emulated CPU computes it at 280 MB/s, SHA-256 at 40.
    """
    port = lab.port()
    received, sent = run_pair(
        destination,
        (receive_bytes, port, SIZE),
        source,
        (send_bytes, destination.cid, port, SIZE),
    )
    if received["checksum"] != sent["checksum"]:
        raise AssertionError("the bytes that arrived are not those that were sent: CRC-32 differs")
    seconds = float(sent["seconds"])
    rate = SIZE / 1e6 / seconds
    lab.rates.append(Rate(source.name, destination.name, SIZE, round(seconds, 4), round(rate, 1)))
    return f"{rate:.0f} MB/s, CRC-32 {received['checksum']:08x} at both ends"
