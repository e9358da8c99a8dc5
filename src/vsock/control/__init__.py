"""The part of the control plane that a switch shares with its clients: schemas, config, policy, API client.

These modules import only Python's own library, and neither asyncio nor ssl. All of them are pure, except
`config.load`, which reads a file, and `client`, which sends requests to a switch. The switch itself is
in `vsock.switch`.
"""
