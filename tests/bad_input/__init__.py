"""Bad input from programs: the switch answers it as documented, and leaks nothing.

    lab            a switch as a process, and its descriptors, flows and listeners
    raw            programs that write the client protocol byte by byte
    conversations  every sequence of steps in which a program can be interrupted

    test_requests       messages on the node's sockets: cut, over-long, unknown, out of order, with descriptors
    test_hybrid_lines   lines on hybrid sockets
    test_dying          programs that close or are killed at every step
    test_calls          arguments of socket calls, under `vsock run` and of `vsock.socket`
    test_shortage       no descriptor left

After each test the switch must hold what it held before (`conftest`) and serve the next program.
Bad input from *guests* is in crates/node/tests/hostile_*.rs.
"""
