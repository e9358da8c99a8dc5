"""Be a guest without a virtual machine: join the switch as guest NAME and run a command as it.

    python as_guest.py alpha vsock cat -l 5000
    python as_guest.py alpha python echo_client.py host:5000 hello

The command's vsock sockets are the guest's: they have its CID, and the host is CID 2 for them.
There is nothing else to it than the runtime directory, so any program takes part that uses this
package, or that is started by `vsock run`. The guest is gone when the command ends.
"""

import os
import subprocess
import sys

import vsock
from vsock.runtime import RuntimeFiles, default_runtime_dir


def run_as_guest(name: str, command: list[str]) -> int:
    """Run `command` in a guest of the switch; return its exit code."""
    socket = RuntimeFiles(default_runtime_dir()).guest_socket(name)
    with vsock.Guest(socket) as guest:
        environment = os.environ | {"VSOCK_RUNTIME_DIR": guest.transport.directory}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: as_guest.py NAME COMMAND [ARGUMENT...]")
    try:
        sys.exit(run_as_guest(sys.argv[1], sys.argv[2:]))
    except FileNotFoundError as error:
        sys.exit(f"as_guest.py: {error.strerror}; does `vsock guest ls` list {sys.argv[1]}?")
    except KeyboardInterrupt:
        sys.exit(130)
