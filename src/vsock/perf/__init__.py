"""Measures connections between two programs: throughput, round trips, connection rate.

| module | what it is |
| --- | --- |
| `ends` | both ends, in one file that also runs in a guest with nothing but Python |
| `processes` | processor time of the switch |
| `plot` | a picture of the result |

`vsock perf` is the command; for the speed of the switch itself, see `bench/`.
"""
