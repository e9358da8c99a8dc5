"""A picture of a result: throughput over time, and the distribution of round trips."""

import errno
from pathlib import Path
from typing import Any

from vsock.errors import TransportError, UsageError

__all__ = ["check", "draw"]

_MIB = 1 << 20


def check(path: Path) -> None:
    """Check before the measurement whether `path` can be drawn.

    Raises:
        TransportError: matplotlib is not installed.
        UsageError: matplotlib does not know this kind of file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        reason = "--plot needs matplotlib: `pip install matplotlib`"
        raise TransportError(errno.ENOSYS, reason) from None
    kinds = Figure().canvas.get_supported_filetypes()
    kind = path.suffix.removeprefix(".").lower() or "png"
    if kind not in kinds:
        raise UsageError(f"--plot {path}: no such kind of file (known: {', '.join(sorted(kinds))})")


def draw(result: dict[str, Any], path: Path, title: str) -> None:
    """Draws to a file; its suffix selects the format.

    Raises as `check`, and OSError when it cannot be written.
    """
    check(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    rate, spread = figure.subplots(1, 2)
    _draw_rate(rate, result["series"], result["bytes_per_second"])
    _draw_spread(spread, {name: result[name] for name in ("round_trip_us", "there_us", "back_us")})
    figure.savefig(path, dpi=120)


def _draw_rate(axes: Any, series: list[tuple[float, int]], mean: float) -> None:
    times, rates, before = [0.0], [], (0.0, 0)
    for at, moved in series:
        rates.append((moved - before[1]) / (at - before[0]) / _MIB)
        times.append(at)
        before = (at, moved)
    if rates:
        axes.stairs(rates, times, fill=True, alpha=0.4)
    axes.axhline(mean / _MIB, linestyle="--", label=f"mean {mean / _MIB:.0f} MiB/s")
    axes.set(xlabel="seconds", ylabel="MiB/s", title="throughput", ylim=(0, None))
    axes.legend()


def _draw_spread(axes: Any, spreads: dict[str, dict[str, float]]) -> None:
    names = ["p50", "p90", "p99", "p99.9", "max"]
    for label, spread in spreads.items():
        axes.plot(names, [spread[name] for name in names], marker="o", label=label[:-3])
    axes.set(ylabel="µs", title="round trip, and each way", yscale="log")
    axes.legend()
