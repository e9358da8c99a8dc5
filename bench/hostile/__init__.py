"""Plays attacks on a running `vsock switch` and measures what a neighbour suffers.

`make hostile` plays all cases, `python -m bench.hostile --help` says how to play some. The attacks are
in Rust (`src/`), one process each, and for Linux guests in `inside.py` and `driver.py`; all else is here.

| module | what it does |
| --- | --- |
| `cases` | the table of cases: one line each |
| `attackers` | how an attack is started and stopped, in a process or in a booted guest |
| `inside` | the attacks of programs in a booted guest |
| `driver` | the attacks of a booted guest's kernel |
| `arena` | the switch under attack, and the neighbour that measures |
| `play` | one case: control and attack in rounds |
| `judge` | limits, and what is over them; pure |
| `table` | rows for the terminal and for the documentation |
"""
