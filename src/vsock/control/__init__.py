"""What both ends of the control plane share: the schemas, `vsock.toml`, the policy, and the API's client.

Light: nothing but Python's own library, and of that neither asyncio nor anything slow. Pure but for
`config.load`, which reads a file, and `client`, which asks a switch. The switch itself is `vsock.switch`.
"""
