"""Where the `vsock` command begins: with next to nothing imported.

Importing the rest takes longer than pressing Ctrl-C. That is no error to be shown with a traceback.
"""

__all__ = ["main"]


def main() -> int:
    """Run the command that the process's arguments name; returns the exit code."""
    try:
        from vsock.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130
