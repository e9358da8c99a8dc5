"""Bad input, gathered: what programs can say wrongly, and that a switch leaks nothing over it.

    lab            a switch as a process, and what it holds: descriptors, flows, listeners
    raw            clients that speak the client protocol byte by byte
    conversations  everything a program may be in the middle of

    test_requests       messages on the endpoint sockets: cut, over-long, unknown, out of order, with descriptors
    test_hybrid_lines   lines on hybrid sockets
    test_dying          programs that close or are killed at every step
    test_calls          arguments of socket calls, under `vsock run` and of `vsock.socket`
    test_shortage       no descriptor left

Each test here also has to leave the switch as it was (`conftest`), and the next client must be well.
What a *guest* can do wrongly is in crates/virtio/tests/hostile_*.rs.
"""
