"""A running guest gets another CID, as after a migration, and both sides see their connection end.

    python change_cid.py

This program runs a switch itself. On the command line: `vsock guest set alpha --cid 33`.
"""

import tempfile

import vsock


def main() -> None:
    """Give alpha another CID while a connection is open."""
    with (
        tempfile.TemporaryDirectory() as directory,
        vsock.Switch({"alpha": 3}, runtime_dir=f"{directory}/run") as switch,
        vsock.Guest(switch.socket_path("alpha")) as alpha,
        alpha.create_server(5000) as listener,  # bound to CID_ANY, so it goes on
    ):
        host = switch.transport
        with vsock.create_connection("alpha:5000", transport=host) as before:
            accepted, _ = listener.accept()
            print(f"connected to {before.getpeername()}")
            switch.set_guest_cid("alpha", 33)
            print(f"alpha now has CID {alpha.cid}")
            for end in (before, accepted):
                try:
                    end.recv(1)
                except ConnectionResetError:
                    print("an open connection ends with ECONNRESET")
            accepted.close()
        with vsock.create_connection("alpha:5000", transport=host) as after:
            accepted, _ = listener.accept()
            accepted.close()
            print(f"connected to {after.getpeername()} by the same name")
        try:
            vsock.create_connection((3, 5000), transport=host)
        except vsock.NoSuchGuest:
            print("no guest has CID 3")


if __name__ == "__main__":
    main()
