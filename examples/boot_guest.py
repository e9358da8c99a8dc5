"""A Linux guest to experiment with: boot it as guest NAME, and type commands that it runs.

    guests/fetch                      # once, in the source tree: makes the images
    python boot_guest.py alpha        # needs QEMU; --vmm uml boots User-Mode Linux instead
    alpha# python3 -c 'import socket; print(socket.AF_VSOCK)'

A switch with this guest must be running. The output of a command is shown when it has ended, so
start long-running commands with `&` and redirect their output. Ctrl-D powers the guest off.
"""

import argparse
import sys
from pathlib import Path

from vsock import testing
from vsock.runtime import RuntimeFiles, default_runtime_dir


def main() -> int:
    """Boot, and run the commands that are typed."""
    parser = argparse.ArgumentParser(description="Boot a Linux guest of the switch.")
    parser.add_argument("name")
    parser.add_argument("--vmm", choices=["qemu", "uml"], default="qemu")
    parser.add_argument("--copy", type=Path, action="append", default=[], help="copy to /tmp there")
    arguments = parser.parse_args()
    socket = RuntimeFiles(default_runtime_dir()).guest_socket(arguments.name)
    with testing.boot(socket, arguments.name, vmm=arguments.vmm) as guest:
        for file in arguments.copy:
            guest.run(["tee", f"/tmp/{file.name}"], input=file.read_bytes())
        print(f"{arguments.name} runs Linux {guest.kernel_release}", file=sys.stderr)
        while command := next_line(f"{arguments.name}# "):
            result = guest.run(command, check=False, timeout=600)
            print(result.stdout + result.stderr, end="", flush=True)
    return 0


def next_line(prompt: str) -> str:
    """Return the next line of input; empty at its end."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


if __name__ == "__main__":
    sys.exit(main())
