"""Benchmarks: measure the switch against the limits of the machine and against other devices.

`make bench` runs all of them; `python -m bench --help` says how to run a part. Every figure is a
ratio of values that were measured alternately in the same run.

| module | what it does |
| --- | --- |
| `agents` | processes that make the load (`bench/load`, in Rust), and the orders to them |
| `devices` | devices under test: the switch, and any other by its command line |
| `sites` | ways between two processes: through a device, or a limit; all measured alike |
| `rows` | alternate measuring, medians, spread, ratios |
| `lab` | all that runs meanwhile, and how it is put up again |
| `figures`, `scale`, `real` | the figures: one flow or a few; many guests and flows; real guests |
| `hostile` | what a neighbour of an attacker suffers; a command of its own too |
| `goals` | what is to be reached, and whether it is |
| `report` | `latest.json` and `latest.md` |
| `instructions` | instruction counts of the per-packet paths; a command of its own |
"""
