"""Measures connections as a user sees them: throughput, round trips, connection rate.

| module | what it is |
| --- | --- |
| `ends` | both ends, in one plain file that also runs in a guest that has no more than Python |
| `processes` | processor time of the switch |
| `plot` | a picture of the result |

`vsock perf` is the command; for the speed of the switch itself, see `bench/`.
"""
