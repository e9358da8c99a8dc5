"""The entry point of the `vsock` command, which imports almost nothing.

Ctrl-C may come while the other modules are imported; that must not print a traceback.
"""

__all__ = ["main"]


def main() -> int:
    """Run the command of the process's arguments; returns the exit code."""
    try:
        from vsock.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130
