"""The entry point of the `vsock` command, which imports almost nothing.

Ctrl-C may come while the other modules are imported; that must not print a traceback. Neither must a missing
dependency: `pip install vsock` installs the library only.
"""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command of the process's arguments; returns the exit code."""
    try:
        try:
            import click  # noqa: F401 - everything below needs it
        except ModuleNotFoundError as error:
            from vsock.errors import missing_extra

            print(f"vsock: {missing_extra(error, 'the vsock command', 'cli')}", file=sys.stderr)
            return 2
        from vsock.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130
