"""Plots as SVG and PNG. Colours are Okabe and Ito's, which stay apart for colour-blind eyes."""

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.axis import Axis  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: E402

from .measure import Latency, Results  # noqa: E402

COLOURS = {
    "p2pdb": "#D55E00",
    "floor": "#000000",
    "etcd": "#0072B2",
    "corosync": "#009E73",
    "nfs": "#CC79A7",
    "lsyncd": "#E69F00",
    "syncthing": "#56B4E9",
}
GREY = "#666666"
PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:,.10g}")


def latencies(results: Results, folder: Path) -> None:
    """Every sample as a dot, one row per system, fastest at the top; a bar at the median, a tick at the p99."""
    rows = sorted((series for series in results.latencies if series.samples), key=Latency.median, reverse=True)
    figure, axes = plt.subplots(figsize=(11, 1.6 + 0.5 * len(rows)))
    for y, series in enumerate(rows):
        colour = COLOURS.get(series.system, GREY)
        values = series.milliseconds()
        spread = [y + 0.28 * ((i * 0.618034) % 1 - 0.5) for i in range(len(values))]
        axes.scatter(values, spread, s=6, color=colour, alpha=0.35, linewidths=0)
        axes.plot([series.median()] * 2, [y - 0.36, y + 0.36], color=colour, linewidth=2.6, solid_capstyle="butt")
        axes.plot([series.p99()] * 2, [y - 0.2, y + 0.2], color=colour, linewidth=1.2)
        text = f"{series.median():,.2f}" if series.median() < 100 else f"{series.median():,.0f}"
        axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=colour)
    axes.annotate("median ms", (1.01, 1.0), xycoords="axes fraction", va="bottom", fontsize=9, color=GREY)
    axes.set_yticks(range(len(rows)), [series.label for series in rows], fontsize=9)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xscale("log")
    _label_decades(axes.xaxis)
    axes.set_xlabel("milliseconds from the edit on one server until all five others have it (log scale)")
    axes.set_title("Time of one edit: dots are samples, wide bar the median, thin bar the p99", loc="left", fontsize=11)
    _dress(axes, "x")
    save(figure, folder / "latency")


def rates(results: Results, folder: Path) -> None:
    """Edits per second with 1 and 32 writers, one pair of bars per system."""
    systems = list(dict.fromkeys(rate.system for rate in results.rates))
    figure, axes = plt.subplots(figsize=(8, 1.8 + 0.8 * len(systems)))
    for y, system in enumerate(reversed(systems)):
        for writers, offset, alpha in ((1, 0.19, 0.45), (32, -0.19, 1.0)):
            rate = results.find_rate(system, writers)
            if rate is None:
                continue
            axes.barh(y + offset, rate.median(), 0.34, color=COLOURS.get(system, GREY), alpha=alpha)
            note = f" {rate.median():,.0f}   {writers} writer{'s' if writers > 1 else ''}"
            axes.annotate(note, (rate.median(), y + offset), va="center", fontsize=9, color="#333333")
    axes.set_yticks(range(len(systems)), list(reversed(systems)))
    axes.set_xlim(0, 1.3 * max(rate.median() for rate in results.rates))
    axes.xaxis.set_major_formatter(PLAIN_NUMBERS)
    axes.set_xlabel("edits per second until all servers have them")
    axes.set_title("Edits per second (corosync: in memory only)", loc="left", fontsize=11)
    _dress(axes, "x")
    save(figure, folder / "rates")


def lines(
    folder: Path, name: str, title: str, across: str, up: str, series: dict[str, list[tuple[float, float]]]
) -> None:
    """Lines with dots over logarithmic axes, each named at its end."""
    figure, axes = plt.subplots(figsize=(8, 4.8))
    palette = [colour for system, colour in COLOURS.items() if system != "floor"]
    for colour, (label, points) in zip(palette, series.items(), strict=False):
        sizes, values = zip(*points, strict=True)
        axes.plot(sizes, values, marker="o", color=colour, linewidth=1.8)
        axes.annotate(f"  {label}", (sizes[-1], values[-1]), va="center", fontsize=9, color=colour)
    sizes = sorted({size for points in series.values() for size, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.25)
    _label_decades(axes.yaxis)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, loc="left", fontsize=11)
    _dress(axes, "both")
    save(figure, folder / name)


def distributions(
    folder: Path, name: str, title: str, across: str, series: dict[str, list[float]], what: str = "edits"
) -> None:
    """The share of samples that took at most so long, one step line per series."""
    figure, axes = plt.subplots(figsize=(8, 4.8))
    palette = [colour for system, colour in COLOURS.items() if system != "floor"]
    for colour, (label, values) in zip(palette, series.items(), strict=False):
        ordered = sorted(values)
        axes.step(ordered, [100 * (i + 1) / len(ordered) for i in range(len(ordered))], where="post", color=colour, label=label)
    axes.set_xscale("log")
    _label_decades(axes.xaxis)
    axes.set_ylim(0, 101)
    axes.set_xlabel(across)
    axes.set_ylabel(f"% of the {what}")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    _dress(axes, "both")
    save(figure, folder / name)


def rows(folder: Path, name: str, title: str, across: str, series: dict[str, list[float]]) -> None:
    """Every sample as a dot, one row per series, in their order; a bar at the median, whose figure stands at the edge."""
    figure, axes = plt.subplots(figsize=(11, 1.6 + 0.34 * len(series)))
    for y, values in enumerate(reversed(series.values())):
        middle = statistics.median(values)
        spread = [y + 0.28 * ((i * 0.618034) % 1 - 0.5) for i in range(len(values))]
        axes.scatter(values, spread, s=12, color=COLOURS["etcd"], alpha=0.5, linewidths=0)
        axes.plot([middle] * 2, [y - 0.34, y + 0.34], color=COLOURS["p2pdb"], linewidth=2.4, solid_capstyle="butt")
        axes.annotate(f"{middle:,.0f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=COLOURS["p2pdb"])
    axes.annotate("median", (1.01, 1.0), xycoords="axes fraction", va="bottom", fontsize=9, color=GREY)
    axes.set_yticks(range(len(series)), list(reversed(series)), fontsize=9)
    axes.set_ylim(-0.7, len(series) - 0.3)
    axes.set_xscale("log")
    _label_decades(axes.xaxis)
    axes.set_xlabel(across)
    axes.set_title(title, loc="left", fontsize=11)
    _dress(axes, "x")
    save(figure, folder / name)


def points(folder: Path, name: str, title: str, across: str, up: str, named: dict[str, tuple[float, float]]) -> None:
    """A few points, each with its name."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for label, (x, y) in named.items():
        axes.scatter([x], [y], s=40, color=COLOURS["p2pdb"])
        axes.annotate(f"  {label}: {y:,.0f} ms", (x, y), va="center", fontsize=9)
    axes.set_xlim(0, 1.6 * max(x for x, _ in named.values()))
    axes.set_ylim(0, 1.15 * max(y for _, y in named.values()))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, loc="left", fontsize=11)
    _dress(axes, "both")
    save(figure, folder / name)


def save(figure: plt.Figure, path: Path) -> None:
    for ending in (".svg", ".png"):
        figure.savefig(path.with_suffix(ending), dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _label_decades(axis: Axis) -> None:
    """Numbers at 1, 2, 5 of each decade while there is room for them, else at the decades."""
    low, high = axis.get_view_interval()
    steps = (1.0, 2.0, 5.0) if high / low < 3000 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(PLAIN_NUMBERS)


def _dress(axes: plt.Axes, grid: str) -> None:
    axes.grid(True, axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
