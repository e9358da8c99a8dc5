"""A guest without a virtual machine: this process joins the switch with a CID of its own.

    python process_as_guest.py $VSOCK_RUNTIME_DIR/guests/alpha.sock

It is an echo server on port 5000 of the guest. It also sends a line to port 7000 of the host if a
program listens there. In a shell, `vsock guest run alpha COMMAND` makes any command a guest.
"""

import asyncio
import sys

import vsock


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client: send back what it sends."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main(socket: str) -> None:
    """Join, and serve until interrupted."""
    async with vsock.Guest(socket) as guest, await guest.start_server(echo, 5000) as server:
        print(f"serving as the guest with CID {guest.cid}", flush=True)
        try:
            _, writer = await guest.open_connection((vsock.CID_HOST, 7000))
            writer.write(f"hello from CID {guest.cid}\n".encode())
            writer.close()
        except vsock.ConnectRefused:
            print("nobody listens on port 7000 of the host", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: process_as_guest.py PATH-OF-THE-GUEST'S-SOCKET")
    asyncio.run(main(sys.argv[1]))
