"""The `vsock` command. `main` finds the command, one module each does it."""
