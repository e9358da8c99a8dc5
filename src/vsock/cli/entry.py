"""Where the `vsock` command begins: with next to nothing imported.

Importing the rest takes longer than pressing Ctrl-C. That is no error to be shown with a traceback, and
neither is a package that was not installed: `pip install vsock` brings the library only.
"""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command that the process's arguments name; returns the exit code."""
    try:
        try:
            import click  # noqa: F401 - the rest needs it first
        except ModuleNotFoundError as error:
            from vsock.errors import missing_extra

            print(f"vsock: {missing_extra(error, 'the vsock command', 'cli')}", file=sys.stderr)
            return 2
        from vsock.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130
