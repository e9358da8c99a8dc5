"""How this package calls the system: Python's sockets, plain or green; waiting; Unix sockets.

The lowest layer. It knows nothing of VSOCK.
"""
