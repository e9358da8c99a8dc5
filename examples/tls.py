r"""TLS over VSOCK with the standard library's ssl: for guests that do not trust the host's users.

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=alpha \
        -addext subjectAltName=DNS:alpha -keyout key.pem -out certificate.pem
    python tls.py serve 5000 certificate.pem key.pem
    python tls.py ask alpha:5000 certificate.pem hello

A guest has no DNS name, so both sides agree on a name for the certificate, here `alpha`.
"""

import argparse
import ssl

import vsock


def serve(port: int, certificate: str, key: str) -> None:
    """Send back what clients send, one after the other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with vsock.create_server(port) as listener:
        print(f"listening on {listener.getsockname()}", flush=True)
        while True:
            connection, peer = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(secure.recv(65536))
            except OSError as error:  # ssl.SSLError is one: a bad handshake, or no TLS at all
                print(f"{peer}: {error}", flush=True)


def ask(address: str, certificate: str, text: str, name: str) -> None:
    """Send a text to a server, which must have the key of the certificate."""
    context = ssl.create_default_context(cafile=certificate)
    with (
        vsock.create_connection(address, timeout=5) as connection,
        context.wrap_socket(connection, server_hostname=name) as secure,
    ):
        secure.sendall(text.encode())
        print(secure.version(), secure.recv(65536).decode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo over TLS.")
    commands = parser.add_subparsers(dest="command", required=True)
    serving, asking = commands.add_parser("serve"), commands.add_parser("ask")
    serving.add_argument("port", type=int)
    serving.add_argument("certificate")
    serving.add_argument("key")
    for argument in ("address", "certificate", "text"):
        asking.add_argument(argument)
    asking.add_argument("--name", default="alpha", help="the name in the certificate")
    options = vars(parser.parse_args())
    (serve if options.pop("command") == "serve" else ask)(**options)
