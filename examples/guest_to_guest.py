"""Guest to guest: two guests that share a group connect to each other, a third one is refused.

    python guest_to_guest.py

This program runs a switch itself, and three userspace guests.
"""

import tempfile

import vsock


def attempt(switch: vsock.Switch, source: str, destination: str) -> None:
    """Connect from one guest to port 5000 of another, and print the result."""
    verdict = switch.explain(source, destination)
    cid = switch.guest(destination).cid
    with vsock.Guest(switch.socket_path(source)) as guest:
        try:
            # Guests address each other by CID; names work only on the host.
            with guest.create_connection((cid, 5000)):
                print(f"{source} -> {destination}: connected: {verdict.reason}")
        except vsock.ConnectRefused:
            print(f"{source} -> {destination}: refused: {verdict.reason}")


def main() -> None:
    """Let alpha and gamma connect to beta."""
    with (
        tempfile.TemporaryDirectory() as directory,
        vsock.Switch(runtime_dir=f"{directory}/run") as switch,
    ):
        switch.add_guest("alpha", 3, groups=["lab"])
        switch.add_guest("beta", 4, groups=["lab"])
        switch.add_guest("gamma", 5)
        with vsock.Guest(switch.socket_path("beta")) as beta, beta.create_server(5000) as listener:
            attempt(switch, "alpha", "beta")
            connection, peer = listener.accept()
            connection.close()
            print(f"beta was called by CID {peer.cid}")
            attempt(switch, "gamma", "beta")


if __name__ == "__main__":
    main()
