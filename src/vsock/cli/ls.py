"""`vsock ls`: guests, listeners, datagram sockets, services and flows of a switch."""

from dataclasses import asdict
from pathlib import Path

import click

from vsock.address import CID_ANY
from vsock.cli.guest import print_guests
from vsock.cli.options import json_option, runtime_dir_option
from vsock.cli.output import bytes_text, print_json, print_table, process_text, seconds_text
from vsock.control.client import ControlClient
from vsock.control.model import (
    DatagramRecord,
    FlowRecord,
    GuestRecord,
    ListenerRecord,
    SwitchRecord,
)
from vsock.control.services import ServiceRecord

__all__ = ["ls"]


@click.command()
@click.option(
    "--switch",
    "itself",
    is_flag=True,
    help="Show the switch itself, with its sandbox and counters.",
)
@json_option
@runtime_dir_option
def ls(itself: bool, as_json: bool, runtime_dir: Path | None) -> None:
    """Show guests, listeners, datagram sockets, services and flows of a switch.

    Guests: a running guest is `ready` if it has said so. `sent` and `received` are bytes that the guest sent and received (`bytes_in` and `bytes_out` in
    JSON); `errors` counts packets that were malformed or did not fit a buffer, and attachments that ended
    with a fault. Flows: `sent` is from source to destination (`bytes_out`), `answered` the other direction
    (`bytes_in`). pid/program is the guest's VMM, or the host's process that has the listener or flow.
    """
    client = ControlClient(runtime_dir)
    if itself:
        _print_switch(client.switch(), as_json)
        return
    guests, listeners, flows = client.guests(), client.listeners(), client.flows()
    datagrams, services = client.datagrams(), client.services()
    if as_json:
        listed = {
            "guests": guests,
            "listeners": listeners,
            "datagrams": datagrams,
            "services": services,
            "flows": flows,
        }
        print_json(listed)
        return
    print_guests(guests)
    _print_listeners(listeners)
    _print_datagrams(datagrams)
    _print_services(services)
    _print_flows(flows, guests)


def _print_switch(switch: SwitchRecord, as_json: bool) -> None:
    if as_json:
        print_json(switch)
        return
    shown = asdict(switch)
    counters = shown.pop("counters")
    shown["uptime"] = seconds_text(switch.uptime)
    rows = [(name, str(value)) for name, value in (*shown.items(), *sorted(counters.items()))]
    print_table("Switch", ("name", "value"), rows)


def _print_listeners(listeners: list[ListenerRecord]) -> None:
    print_table(
        "Listeners",
        ("cid", ">port", "type", ">backlog", ">uid", "pid/program"),
        [
            (
                _cid_text(listener.cid),
                str(listener.port),
                listener.type,
                str(listener.backlog),
                str(listener.uid),
                process_text(listener.pid, listener.program),
            )
            for listener in listeners
        ],
    )


def _print_datagrams(datagrams: list[DatagramRecord]) -> None:
    if not datagrams:
        # Few programs use datagrams: show no empty table.
        return
    print_table(
        "Datagram sockets",
        ("cid", ">port", ">sent", ">received", ">dropped", ">uid", "pid/program"),
        [
            (
                _cid_text(one.cid),
                *map(str, (one.port, one.sent, one.received, one.dropped, one.uid)),
                process_text(one.pid, one.program),
            )
            for one in datagrams
        ],
    )


def _print_services(services: list[ServiceRecord]) -> None:
    if not services:
        # Few switches have any: show no empty table.
        return
    print_table(
        "Services",
        ("name", "kind", "state", ">restarts", ">pid", "what it does"),
        [
            (
                *(one.name, one.kind, one.state, str(one.restarts), str(one.pid or "")),
                f"{one.summary}: {one.reason}" if one.reason else one.summary,
            )
            for one in services
        ],
    )


def _cid_text(cid: int) -> str:
    return "any" if cid == CID_ANY else str(cid)


def _print_flows(flows: list[FlowRecord], guests: list[GuestRecord]) -> None:
    names = {str(guest.cid): guest.name for guest in guests} | {"2": "host"}

    def named(address: str) -> str:
        cid, _, port = address.partition(":")
        return f"{names.get(cid, cid)}:{port}"

    print_table(
        "Flows",
        ("source", "destination", "state", ">sent", ">answered", ">age", "pid/program", "type"),
        [
            (
                named(flow.source),
                named(flow.destination),
                flow.state,
                bytes_text(flow.bytes_out),
                bytes_text(flow.bytes_in),
                seconds_text(flow.age),
                process_text(flow.pid, flow.program),
                flow.type,
            )
            for flow in flows
        ],
    )
