"""Errors: connect to an address, and print what prevented it and what to do.

    python errors_in_words.py alpha:5000

Each exception is an OSError with the errno of AF_VSOCK (an AddressError is a ValueError). So
`except ConnectionResetError` and `except OSError` work too; the classes below are more precise.
"""

import sys

import vsock


def explain(address: str) -> str:
    """Connect to `address`, and return the result in words."""
    try:
        with vsock.create_connection(address, timeout=1) as connection:
            return f"connected to {connection.getpeername()}"
    except vsock.AddressError as error:
        return f"not an address: {error}"
    except vsock.NoSwitch:
        return (
            "no switch runs here: start `vsock switch`, or set VSOCK_RUNTIME_DIR to its directory"
        )
    except vsock.NoSuchGuest:
        return "the switch has no guest of this name or CID: `vsock guest ls` lists them"
    except vsock.ConnectTimeout:
        return "the guest does not answer: it is not running, or has no vsock driver"
    except vsock.ConnectRefused:
        return "the guest answers, but nobody listens on this port"
    except OSError as error:
        return f"another error: {error}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: errors_in_words.py ADDRESS")
    said = explain(sys.argv[1])
    print(said)
    sys.exit(not said.startswith("connected"))
