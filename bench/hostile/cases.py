"""The table of cases: who attacks and how, one line each.

A case is played by the attack of its name in `src/`, or by `attack` (NAME:NUMBER). `finding` is its
number in the security review, where it has one. A case with `skip` is not played, and says why.

"""

import os
from dataclasses import dataclass, replace

from bench.hostile.judge import Limits

__all__ = ["CASES", "QUICK", "USUAL", "WHO", "Case", "playable", "with_slack"]


MIB = 1 << 20

USUAL = Limits()


@dataclass(frozen=True)
class Case:
    """One attack on the switch."""

    name: str
    how: str
    finding: str = ""
    attack: str = ""
    limits: Limits = USUAL
    by: str = "process"
    """A name in `attackers.BY`."""
    needs_root: bool = False
    skip: str = ""

    def why_not(self) -> str:
        """Why the case cannot be played here, or nothing."""
        return "needs root" if self.needs_root and os.geteuid() != 0 else self.skip


WHO = {
    "guest": "A guest alone, by its rings",
    "packets": "A guest alone, by its packets",
    "flows": "A guest, on its connections with host programs",
    "between": "Guests of one group, by what they send each other",
    "front end": "A front end that was taken over",
    "program": "A host program",
    "control API": "A program at the control API",
    "guest program": "An ordinary program of a Linux guest",
    "guest kernel": "The kernel of a QEMU guest",
}
"""Who attacks, in the order of the table."""

QUEUES = Limits(descriptors=4200)
"""Connections in the queue of a listener that takes none are descriptors: 4096 of a guest, or 1000 of two ends and a program."""

OWN_MEMORY = Limits(memory=160 * MIB)
"""What the attacker has the switch touch is memory of its own guest, 128 MiB."""

THREE = Limits(rate=0.3)
"""Two guests attack, and each of the three has a third of the switch."""

FUSE = "needs a FUSE server: guest memory that answers no read"
CGROUP = "needs root and a memory group of its own, and ends the switch"

INSIDE = {
    "connect-close": "connections that are closed at once",
    "connect-unread": "the same, with a greeting unread",
    "connect-refused": "connects that the host refuses",
    "single-bytes": "one byte a call",
    "bulk": "as much as the guest can send",
    "echo-unread": "64 connections to an echo, never read",
    "hoard": "500 connections full of bytes that nobody reads",
}
"""Attacks of `inside.py`."""

DRIVER = {
    "restarts": "the device is reset and started without end",
    "kicks": "empty queues are kicked without end",
    "short-chains": "chains too short for a header",
    "requests": "REQUESTs where nobody listens, and no buffer for the answers",
    "random-packets": "headers with every field at random",
}
"""Attacks of `driver.py`."""

CASES: dict[str, list[Case]] = {
    "guest": [
        Case("tx-indirect", "a header, and 1023 empty descriptors behind it in a table", "S1"),
        Case("tx-rx-indirect", "the same, and receive buffers of that form", "S1"),
        Case("tx-direct", "a header, and the whole queue behind it in one chain", "S1"),
        Case("tx-short", "chains too short for a header", "S1"),
        Case("tx-empty", "chains without a byte", "S1"),
        Case("tx-writable", "chains that the device may only write to", "S1"),
        Case("tx-short-indirect", "1024 descriptors that hold no header", "S1"),
        Case("tx-scattered", "a payload of 64 KiB in pieces of 64 bytes", "S1"),
        Case("tx-step", "255 useless chains before each useful one, index in step", "S1"),
        Case("rx-step", "the same on rx, while answers are provoked", "S1"),
        Case("rx-tiny", "receive buffers with room for a header only"),
        Case("rx-short", "receive buffers too short for a header", "S1"),
        Case("rx-readable", "receive buffers that the device may not write", "S1"),
        Case("rx-late", "no receive buffer until thousands of answers are due", "S1"),
        Case("rx-none", "answers are provoked and have no buffer"),
        Case(
            "rx-untouched",
            "receive buffers in 128 MiB of pages that nobody has touched",
            "S2",
            limits=OWN_MEMORY,
        ),
        Case("event-queue", "chains of 1024 descriptors in the event queue"),
        Case("kicks", "kicks on all queues without an end"),
        Case("calls", "a call wanted for each packet"),
        Case("index-jumps", "an available index beyond the queue; then attaches again"),
        Case("chain-loops", "a chain that comes back to its start; then attaches again"),
        Case("outside-memory", "buffers outside memory; then attaches again"),
        Case("random-rings", "random writes to all rings; then attaches again"),
        Case("rx-untouched-group", "the same beside a memory limit", "S2", skip=CGROUP),
    ],
    "packets": [
        Case("request-silent", "REQUESTs to a port where nobody listens"),
        Case("request-hybrid", "the same, by a guest with a hybrid socket", "S1"),
        Case("request-absent", "REQUESTs to a CID that no guest has"),
        Case("request-unattached", "REQUESTs to a guest that is not there"),
        Case("request-rst-silent", "REQUEST and RST in a row, where nobody listens"),
        Case("request-rst", "REQUEST and RST in a row, where somebody accepts", "S1"),
        Case("request-accepted-rst", "REQUEST, and RST when accepted", "S1"),
        Case("request-unaccepted", "REQUESTs to a listener that accepts nothing", limits=QUEUES),
        Case("request-hybrid-unaccepted", "the same at a hybrid path"),
        Case("connects-128", "128 connects of an ordinary program under way", "S1", "connects:128"),
        Case("notify-connects", "the same, to the port at which the switch hears of readiness"),
        Case("notify-requests", "REQUESTs to that port, and RST when accepted"),
        Case("unknown-flows", "packets of no connection, each answered with RST"),
        Case("spoofed", "REQUESTs in the neighbour's name"),
        Case("wrong-types", "socket types that nobody knows"),
        Case("wrong-lengths", "lengths beyond the packet"),
        Case("random-packets", "every field at random"),
        Case("to-neighbour-requests", "REQUESTs to the neighbour, refused", "S10"),
        Case("to-neighbour-connects", "connections to the neighbour, reset when open", "S10"),
        Case("to-neighbour-rst", "RSTs to the neighbour", "S10"),
        Case("to-neighbour-broken", "connections to the neighbour, broken when asked for", "S10"),
        Case("to-neighbour-updates", "CREDIT_UPDATEs to the neighbour, on one connection", "S10"),
    ],
    "flows": [
        Case("credit-updates", "CREDIT_UPDATEs on one connection"),
        Case("credit-requests", "CREDIT_REQUESTs, each with an answer"),
        Case("empty-data", "RW without a byte"),
        Case("shutdowns", "SHUTDOWNs on one connection"),
        Case("responses", "RESPONSEs on an open connection"),
        Case("bytes-read", "one byte a packet, to a program that reads"),
        Case("bytes-unread", "one byte a packet, to a program that does not"),
        Case("over-credit", "data beyond credit, on one connection after the other"),
        Case("repeated-request", "a REQUEST that replaces its connection each time", "S1"),
        Case("window-of-one", "credit for one byte at a time"),
        Case("greedy-to-host", "all bytes that credit allows"),
        Case("hoard", "500 connections full of bytes that nobody reads", "S15", "hoard:500"),
        Case("message-marks", "one-byte records with end marks, 64 unread programs", "S13"),
        Case("message-pieces", "pieces of a message without bytes or an end"),
    ],
    "between": [
        Case("between-credit-updates", "CREDIT_UPDATEs, both ways", "S10", limits=THREE),
        Case("between-credit-requests", "CREDIT_REQUESTs, both ways", "S10", limits=THREE),
        Case("between-bytes", "one byte a packet, both ways", "S1", limits=THREE),
        Case("between-bulk", "bytes without end, both ways", "S10", limits=THREE),
        Case("between-requests", "REQUESTs that the other guest refuses", "S10", limits=THREE),
        Case(
            "between-connects",
            "connections that the other guest accepts, then RST",
            "S10",
            limits=THREE,
        ),
        Case("between-shutdowns", "SHUTDOWNs, both ways", limits=THREE),
        Case("between-unread", "REQUESTs to a guest that takes nothing", "S10", limits=THREE),
        Case("between-random", "random packets, both ways", limits=THREE),
        Case("between-datagrams", "datagrams to another guest"),
        Case("to-neighbour-datagrams", "datagrams to the neighbour", "S10"),
    ],
    "front end": [
        Case("attach-detach", "attaches and leaves"),
        Case("connect-hang-up", "connects and hangs up"),
        Case("questions", "questions without end", "S18"),
        Case("questions-unread", "questions whose answers nobody reads", "S18"),
        Case("half-messages", "half a header and a hang-up"),
        Case("message-bytes", "messages byte by byte"),
        Case("wrong-messages", "random messages"),
        Case("message-descriptors", "32 descriptors with a message that takes one"),
        Case("rings-enable", "SET_VRING_ENABLE off and on", "S18"),
        Case("rings-enable-4", "the same by four front ends", "S18", "rings-enable:4"),
        Case("rings-stop-start", "stops and starts a ring", "S18"),
        Case("features-again", "SET_FEATURES while rings run", "S18"),
        Case("call-again", "a new call eventfd with every message", "S18"),
        Case("memory-again", "the memory table again and again", "S18"),
        Case("memory-huge", "one region of 64 TiB", "S11"),
        Case("memory-regions", "ADD_MEM_REG, not negotiated, for 128 TiB", "S11"),
        Case("memory-shrinks", "memory that shrinks to nothing under running rings"),
        Case("channel-full", "a channel for the device's requests that is full"),
        Case("call-full", "a call eventfd that fills up between poll and write", "S4"),
        Case("call-full-always", "a call eventfd that is full"),
        Case("call-pipe", "a pipe as call", "S3"),
        Case("call-socket", "a socket as call", "S3"),
        Case("call-epoll", "an epoll set as call", "S3"),
        Case("kick-pipe", "a pipe as kick", "S3"),
        Case("kick-epoll", "an epoll set over 512 ready descriptors as kick", "S3"),
        Case("kick-never-empty", "a kick eventfd in semaphore mode"),
        Case("call-lingers", "a lingering TCP connection as call, and a hang-up", "S7"),
        Case("call-pipe-held", "a pipe whose lock a thread holds", "S3", needs_root=True),
        Case("kick-epoll-held", "an epoll set whose lock a thread holds", "S3", needs_root=True),
        Case("memory-fuse", "guest memory on a file system of its own", "S5", skip=FUSE),
    ],
    "program": [
        Case("connect-close", "connects and closes", "S12"),
        Case("connect-close-messages", "the same at the socket for SEQPACKET", "S12"),
        Case("connect-close-datagrams", "the same at the socket for datagrams", "S12"),
        Case("hybrid-connect-close", "the same at a hybrid socket", "S12"),
        Case("hybrid-silent", "400 hybrid connections that say nothing", "S14"),
        Case("hybrid-refused", "hybrid connects that the guest refuses"),
        Case("hybrid-garbage", "lines that are no CONNECT"),
        Case("silent-1500", "1500 connections that say nothing", "S14", "silent:1500"),
        Case("half-requests", "400 connections that have said half a request", "S14"),
        Case("request-bytes", "requests byte by byte on 64 connections"),
        Case("garbage", "requests at random"),
        Case("cid-questions", "LOCAL_CID on 256 connections", "S12"),
        Case("flow-questions", "FLOW of unknown sockets on 256 connections", "S12"),
        Case("replies-unread", "questions whose replies nobody reads"),
        Case("bind-close", "binds any port and closes"),
        Case("bind-taken", "BIND of a taken port on 256 connections", "S12"),
        Case("bind-privileged", "BIND of a privileged port on 256 connections", "S12"),
        Case("listen-close", "listens and closes"),
        Case("connect-refused", "128 connects at once that the guest refuses"),
        Case("connect-greeted", "128 connections at once, closed unread"),
        Case("connect-given-up", "connects that are given up at once"),
        Case("half-open", "512 connects to a silent guest, patience of 49 days", "S19"),
        Case("never-accepts", "a listener that accepts none of 1000", limits=QUEUES),
        Case("loopback-connects", "connections from program to program"),
        Case("loopback-bulk", "bytes from program to program"),
        Case("echo-unread", "64 connections to an echo, never read"),
        Case("urgent-bytes", "MSG_OOB between ordinary bytes", "S20"),
        Case("descriptors", "200 descriptors with every byte", "S6"),
        Case("descriptors-request", "200 descriptors with every request", "S6"),
        Case("descriptors-memory", "64 MiB of memory that only the message holds", "S6"),
        Case("descriptors-sockets", "sockets that hold descriptors themselves", "S6"),
        Case("descriptors-linger", "TCP connections whose last close waits 1 s", "S6"),
        Case("datagrams-unowned", "SENDs from no socket on 256 connections", "S12"),
        Case("datagrams-16", "the same on 16", "S12", "datagrams-unowned:16"),
        Case("datagrams-unread", "datagrams of 64 KiB to a socket that nobody reads", "S12"),
        Case("datagrams-short", "datagrams of one byte to it", "S12"),
        Case("datagrams-to-guest", "datagrams of 64 KiB to a guest"),
        Case("datagrams-nobody", "datagrams to a port that nobody has"),
        Case("datagram-sockets", "binds datagram ports and closes"),
    ],
    "control API": [
        Case("api-silent", "400 connections that say nothing", "S14"),
        Case("api-half", "400 that have said half a request", "S14"),
        Case("api-slow", "400 that say a byte at a time", "S22"),
        Case("api-body", "bodies of 256 MiB", "S22"),
        Case("api-connect-close", "connects and closes", "S14"),
        Case("api-lists", "the list of flows without end"),
        Case("api-garbage", "what is no HTTP"),
    ],
    "guest program": [
        Case(f"{vmm}-{attack}", how, attack=attack, by=vmm)
        for vmm, attacks in {
            "uml": INSIDE,
            "qemu": {name: INSIDE[name] for name in ("connect-close", "single-bytes", "bulk")},
        }.items()
        for attack, how in attacks.items()
    ],
    "guest kernel": [
        Case(f"kernel-{attack}", how, attack=attack, by="qemu's kernel")
        for attack, how in DRIVER.items()
    ],
}

QUICK = [
    "tx-rx-indirect",
    "rx-step",
    "request-hybrid",
    "request-accepted-rst",
    "between-credit-updates",
    "rings-enable",
    "kick-epoll",
    "message-marks",
    "datagrams-unowned",
    "descriptors-linger",
]
"""What `--quick` plays: one of each kind that was worst."""


def playable() -> list[Case]:
    """The cases that can be played here, in the order of the table."""
    return [case for cases in CASES.values() for case in cases if not case.why_not()]


def with_slack(case: Case, slack: float) -> Case:
    """The same case with wider limits."""
    return replace(case, limits=replace(case.limits, slack=slack))
