"""`vsock demo`: hands over to `vsock.demo`."""

import click

from vsock.cli.options import json_option

__all__ = ["demo"]


@click.command()
@click.option(
    "--keep", is_flag=True, help="Leave the switch and the guests running for experiments."
)
@json_option
def demo(keep: bool, as_json: bool) -> int:
    """Boot guests, run traffic between them and the host, and show the results."""
    from vsock.demo import main

    return main(keep=keep, as_json=as_json)
