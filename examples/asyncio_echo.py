"""asyncio: an echo server, and a program that is many clients at once. Each has one thread.

    python asyncio_echo.py serve 5000
    python asyncio_echo.py ask alpha:5000 --clients 200

The streams are those of asyncio, with all their methods.
"""

import argparse
import asyncio

import vsock


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one client: send back what it sends."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()  # waits while the client does not read
    writer.close()


async def serve(port: int) -> None:
    """Serve clients until interrupted."""
    server = await vsock.start_server(echo, port)
    print(f"listening on port {port}", flush=True)
    async with server:
        await server.serve_forever()


async def ask(address: str, number: int) -> bool:
    """Be one client; return whether the server sent the same bytes back."""
    reader, writer = await vsock.open_connection(address)
    sent = f"client {number}\n".encode() * 1000
    writer.write(sent)
    writer.write_eof()  # ends this direction only: the answer can still be read
    answer = await reader.read()
    writer.close()
    return answer == sent


async def ask_all(address: str, clients: int) -> None:
    """Be many clients at the same time."""
    answers = await asyncio.gather(*(ask(address, number) for number in range(clients)))
    print(f"{sum(answers)} of {clients} clients got their own bytes back")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo with asyncio.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("port", type=int)
    asking = commands.add_parser("ask")
    asking.add_argument("address")
    asking.add_argument("--clients", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        asyncio.run(serve(arguments.port))
    else:
        asyncio.run(ask_all(arguments.address, arguments.clients))
