"""A proxy for guests without a network: HTTP and SOCKS5 on one port, with rules, and a line in a log for each request.

What decides and what reads and writes protocols does no I/O:

| module | what it is |
| --- | --- |
| `request` | what a client asks for, and why it does not get it |
| `addresses` | which IP addresses are public |
| `rules` | who may be reached |
| `credentials` | headers that the host adds to requests |
| `http`, `socks` | the two protocols, as the proxy speaks them |
| `clients` | what each client uses of the proxy, and its limits |

The rest does:

| module | what it is |
| --- | --- |
| `guests` | the names of guests, from the switch |
| `resolver` | DNS on the host |
| `log` | a line of JSON for each request |
| `connection` | one client's: reads, answers, and copies by `vsock.forwarding` |
| `server` | accepts, decides, connects |
"""
