"""Attacks by the kernel of a Linux guest: its virtio device without its driver, driven from here.

`attackers.in_guest` sends this file into a booted QEMU guest and runs it there as root: `NAME CID`. It takes the device
from the kernel's driver, maps its registers (virtio 1.2, section 4.1.4) and gives it rings in locked pages of its own,
whose physical addresses /proc/self/pagemap tells. It prints a line when the attack has begun, goes on until its standard
input ends, and prints how many steps it took. It needs nothing but Python. Here it does nothing: `in_guest` adds the
call of `main`, so that nobody takes the device of the machine itself by starting the file.
"""

import ctypes
import mmap
import os
import random
import select
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

VENDOR, VSOCK = "0x1af4", "0x1053"
PAGE = 4096
QUEUES = 3
SIZE = 128
"""Descriptors of a ring: table, available and used ring have a page each."""

TX = 1
DATA = 3 * QUEUES * PAGE
"""Where the page for packets begins."""

HOST, STREAM, REQUEST = 2, 1, 1
HEADER = 44
PACKETS = 64
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8


class Device:
    """The guest's vsock device."""

    def __init__(self) -> None:
        folders = Path("/sys/bus/pci/devices").iterdir()
        self._folder = next(it for it in folders if self._is_vsock(it))
        with suppress(FileNotFoundError):  # no driver has it
            (self._folder / "driver" / "unbind").write_text(self._folder.name)
        with (self._folder / "config").open("r+b", buffering=0) as config:
            config.seek(4)
            config.write(
                struct.pack("<H", 6)
            )  # memory and bus master, which the driver has switched off
            config.seek(0)
            self._read_capabilities(config.read(256))
        self.pages = mmap.mmap(
            -1, PAGE * (3 * QUEUES + 1), mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        )
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        if ctypes.CDLL(None).mlock(ctypes.c_void_p(self._address), len(self.pages)):
            sys.exit("mlock failed")

    @staticmethod
    def _is_vsock(folder: Path) -> bool:
        names = ("vendor", "device")
        return [(folder / it).read_text().strip() for it in names] == [VENDOR, VSOCK]

    def _read_capabilities(self, config: bytes) -> None:
        """Map the common registers and those of notifications, and read the CID."""
        at = config[0x34]
        while at:
            kind, following, _, what, bar = config[at : at + 5]
            if kind == 9 and what in (1, 2, 4):
                (offset,) = struct.unpack_from("<I", config, at + 8)
                mapped = self._map(bar)
                if what == 1:
                    self._common = mapped, offset
                elif what == 2:
                    (self._notify_step,) = struct.unpack_from("<I", config, at + 16)
                    self._notify = mapped, offset
                else:
                    self.cid = ctypes.c_uint32.from_buffer(mapped, offset).value
            at = following

    def _map(self, bar: int) -> mmap.mmap:
        resource = os.open(self._folder / f"resource{bar}", os.O_RDWR)
        try:
            return mmap.mmap(resource, os.fstat(resource).st_size)
        finally:
            os.close(resource)

    def _register(
        self, offset: int, kind: "type[ctypes._SimpleCData[int]]"
    ) -> "ctypes._SimpleCData[int]":
        mapped, base = self._common
        return kind.from_buffer(mapped, base + offset)

    def _write(self, offset: int, kind: "type[ctypes._SimpleCData[int]]", value: int) -> None:
        self._register(offset, kind).value = value

    def physical(self, page: int) -> int:
        """The physical address of one of the pages."""
        with Path("/proc/self/pagemap").open("rb") as pagemap:
            pagemap.seek((self._address // PAGE + page) * 8)
            (entry,) = struct.unpack("<Q", pagemap.read(8))
        return int(entry & ((1 << 55) - 1)) * PAGE

    def start(self) -> None:
        """Reset it, and give it the rings; both are as the pages have them."""
        self._write(20, ctypes.c_uint8, 0)
        while self._register(20, ctypes.c_uint8).value:
            pass
        self._write(20, ctypes.c_uint8, ACKNOWLEDGE | DRIVER)
        for half in (0, 1):
            self._write(0, ctypes.c_uint32, half)
            offered = self._register(4, ctypes.c_uint32).value
            self._write(8, ctypes.c_uint32, half)
            self._write(12, ctypes.c_uint32, offered)
        self._write(20, ctypes.c_uint8, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        for queue in range(QUEUES):
            self._write(22, ctypes.c_uint16, queue)
            self._write(24, ctypes.c_uint16, SIZE)
            for offset, page in ((32, 0), (40, 1), (48, 2)):
                address = self.physical(3 * queue + page)
                self._write(offset, ctypes.c_uint32, address & 0xFFFFFFFF)
                self._write(offset + 4, ctypes.c_uint32, address >> 32)
            self._write(28, ctypes.c_uint16, 1)
        self._write(20, ctypes.c_uint8, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def kick(self, queue: int) -> None:
        """Tell the device to look at a queue."""
        self._write(22, ctypes.c_uint16, queue)
        step = self._register(30, ctypes.c_uint16).value * self._notify_step
        mapped, base = self._notify
        ctypes.c_uint16.from_buffer(mapped, base + step).value = queue

    def describe(self, queue: int, index: int, buffer: tuple[int, int]) -> None:
        """Write a descriptor: address and length of a buffer of its own."""
        struct.pack_into("<QIHH", self.pages, 3 * queue * PAGE + 16 * index, *buffer, 0, 0)

    def offer(self, queue: int, heads: list[int], index: int) -> None:
        """Write the available ring, and kick."""
        ring = struct.pack(f"<HH{len(heads)}H", 0, index & 0xFFFF, *heads)
        at = (3 * queue + 1) * PAGE
        self.pages[at : at + len(ring)] = ring
        self.kick(queue)

    def used(self, queue: int) -> int:
        """The device's index in the used ring."""
        (index,) = struct.unpack_from("<H", self.pages, (3 * queue + 2) * PAGE + 2)
        return int(index)


def restarts(device: Device) -> Iterator[bool]:
    """The device is reset and started without end."""
    while True:
        device.start()
        yield True


def kicks(device: Device) -> Iterator[bool]:
    """Empty queues are kicked without end."""
    device.start()
    while True:
        for queue in range(QUEUES):
            device.kick(queue)
        yield True


def short_chains(device: Device) -> Iterator[bool]:
    """Chains that are too short for a header."""
    yield from _sent(device, lambda _: (0, 1))


def requests(device: Device) -> Iterator[bool]:
    """REQUESTs to a port of the host where nobody listens, and no buffer for the answers."""
    for index in range(PACKETS):
        ports = 1000 + index, 7777
        header = struct.pack(
            "<QQIIIHHIII", device.cid, HOST, *ports, 0, STREAM, REQUEST, 0, 1 << 16, 0
        )
        device.pages[DATA + index * HEADER : DATA + (index + 1) * HEADER] = header
    yield from _sent(device, lambda index: (index * HEADER, HEADER))


def random_packets(device: Device) -> Iterator[bool]:
    """Headers with every field at random."""
    chance = random.Random(1)
    for is_step in _sent(device, lambda index: (index * HEADER, HEADER)):
        device.pages[DATA:] = chance.randbytes(PAGE)
        yield is_step


def _sent(device: Device, buffer: Callable[[int], tuple[int, int]]) -> Iterator[bool]:
    """Send the same packets again and again; `buffer` tells where in the data page each is, and how long."""
    device.start()
    data = device.physical(3 * QUEUES)
    for index in range(PACKETS):
        offset, length = buffer(index)
        device.describe(TX, index, (data + offset, length))
    turn = 0
    while True:
        turn = (turn + PACKETS) & 0xFFFF
        device.offer(TX, [index % PACKETS for index in range(SIZE)], turn)
        while device.used(TX) != turn:
            yield False
        yield True


ATTACKS: dict[str, Callable[[Device], Iterator[bool]]] = {
    "restarts": restarts,
    "kicks": kicks,
    "short-chains": short_chains,
    "requests": requests,
    "random-packets": random_packets,
}


def main() -> None:
    """Attack until the end of standard input."""
    steps = 0
    for is_step in ATTACKS[sys.argv[1]](Device()):
        steps += is_step
        if is_step and steps == 1:
            print("attacking", flush=True)
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    print(steps, flush=True)
