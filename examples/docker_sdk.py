"""The Docker SDK with the Docker daemon of a guest, at a path that stands for its vsock port.

    python3 docker_sdk.py alpha:2375

dockerd knows no vsock, so in the guest something connects the two:

    socat VSOCK-LISTEN:2375,fork UNIX-CONNECT:/run/docker.sock
"""

import sys

import docker

from vsock.adapters.unix_socket import client_path


def main(address: str) -> None:
    """Print the daemon's version, and its containers."""
    with client_path(address) as path:
        client = docker.DockerClient(base_url=f"unix://{path}", timeout=10)
        try:
            print("Docker", client.version()["Version"])
            for container in client.containers.list():
                print(container.short_id, container.name, container.status)
        finally:
            client.close()


if __name__ == "__main__":
    main(sys.argv[1])
