"""The report of `tools/bench sync`: samples.csv, rates.csv, report.md, and the short table on the terminal."""

import csv
from dataclasses import dataclass

from . import corosync, etcd, floor, lsync, machine, nfs, p2pdb, syncthing
from .bench import Bench
from .measure import REFERENCE, Latency, Results

PAPER_MS = 110.0

LIMITS = """\
- All six servers share the cores and the one disk of this machine: six disks of their own would sync side by side.
- The network is veth pairs on a bridge in memory: no cable, no switch, no loss.
- "p99" of fewer than 100 samples is the largest of them.
- Systems promise different things: read the column "durable when the sample ends" before comparing. corosync keeps
  nothing on disk; etcd's sample says that a majority of three has the edit; NFS keeps it on the one file server, and
  nobody has it when that server is down; lsyncd and syncthing do not wait for any disk.
- The writers of etcd's rate wait for the answer to their put, which two of three disks have then. The row of p2pdb to
  compare with it has writers that wait for four of six disks; in the other row each waits until all six have its edit. In all
  rows the time ends when everybody has the last edit.
"""


@dataclass(frozen=True)
class Bar:
    """A promise about speed: what was found, and whether it is kept."""

    promise: str
    found: str
    kept: bool


def write(bench: Bench) -> list[Bar]:
    """Writes all files except the plots and returns how the promises stand."""
    results, folder = bench.results, bench.folder
    with open(folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["system", "measure", "start_ns", "done_ns", "milliseconds"])
        for series in results.latencies:
            for start, done in series.samples:
                rows.writerow([series.system, series.label, start, done, f"{(done - start) / 1e6:.4f}"])
    with open(folder / "rates.csv", "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["system", "measure", "writers", "edits_per_second"])
        for rate in results.rates:
            rows.writerows([rate.system, rate.label, rate.writers, f"{value:.1f}"] for value in rate.per_second)
    found = bars(results)
    (folder / "report.md").write_text(_markdown(bench, found), encoding="utf-8")
    return found


def table(results: Results) -> list[str]:
    """The latency table, one line per system, as Markdown that also reads well on a terminal."""
    base, rival = results.find_latency(REFERENCE), results.find_latency(etcd.LABEL)
    header = ["edit on one → all five others", "durable when the sample ends", "n", "median ms", "p99 ms", "× floor", "× etcd"]
    rows = [
        [
            series.label,
            series.durable,
            str(len(series.samples)),
            _number(series.median()),
            _number(series.p99()),
            _ratio(series, base),
            _ratio(series, rival),
        ]
        for series in sorted((one for one in results.latencies if one.samples), key=Latency.median)
    ]
    return aligned([header, *rows])


def rate_table(results: Results) -> list[str]:
    header = ["edits per second until all have them", "1 writer", "32 writers", "× etcd (32)", "client's share of a core (32)"]
    rows = []
    for system in dict.fromkeys(rate.system for rate in results.rates):
        one, many = results.find_rate(system, 1), results.find_rate(system, 32)
        rival = results.find_rate("etcd", 32)
        share = f"{100 * max(many.client_cpu):.0f} %" if many and many.client_cpu else "-"
        rows.append(
            [
                (one or many).label,
                f"{one.median():,.0f}" if one else "-",
                f"{many.median():,.0f}" if many else "-",
                f"{many.median() / rival.median():.2f}" if many and rival else "-",
                share,
            ]
        )
    return aligned([header, *rows])


def bars(results: Results) -> list[Bar]:
    """The promises p2pdb makes about speed; none when p2pdb was not measured."""
    own = results.find_latency(p2pdb.API)
    found = []
    if own is None:
        return found
    if base := results.find_latency(REFERENCE):
        ratio = own.median() / base.median()
        found.append(Bar("durable on all six: median at most 2 × the floor", f"{ratio:.2f} ×", ratio <= 2))
    if rival := results.find_latency(etcd.LABEL):
        faster = rival.median() / own.median()
        found.append(Bar("median at least 2 × faster than etcd's put → all watchers", f"{faster:.2f} ×", faster >= 2))
        text = f"{own.p99():.2f} ms, etcd {rival.p99():.2f} ms"
        found.append(Bar("p99 at most etcd's", text, own.p99() <= rival.p99()))
    if plain := results.find_latency(p2pdb.PLAIN):
        more = plain.median() - own.median()
        found.append(Bar("a plain-file save: at most 1 ms more than the API edit", f"{more:+.2f} ms", more <= 1))
        behind = PAPER_MS / plain.median()
        found.append(Bar("the paper's 110 ms more than 20 × behind a plain-file save", f"{behind:.0f} ×", behind > 20))
        if default := results.find_latency(nfs.KERNEL_DEFAULT):
            behind = default.median() / plain.median()
            found.append(Bar("NFS with its default cache more than 20 × behind", f"{behind:.0f} ×", behind > 20))
    own_rate, rival_rate = results.find_rate(p2pdb.MAJORITY_SYSTEM, 32), results.find_rate("etcd", 32)
    if own_rate and rival_rate:
        ratio = own_rate.median() / rival_rate.median()
        found.append(Bar("32 writers, each waiting for a majority: at least 4 × etcd's edits per second", f"{ratio:.2f} ×", ratio >= 4))
    for idle in results.idles:
        if idle.system == "p2pdb":
            text = f"{idle.cpu_percent:.2f} % and {idle.resident_mib:.0f} MiB"
            kept = idle.cpu_percent < 1 and idle.resident_mib <= 40
            found.append(Bar("idle: under 1 % of a core and 40 MiB per daemon", text, kept))
    return found


def aligned(rows: list[list[str]]) -> list[str]:
    """A table in Markdown that also reads well on a terminal; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def bar_table(found: list[Bar]) -> list[str]:
    return aligned([["promise", "found", "kept"], *([bar.promise, bar.found, "yes" if bar.kept else "NO"] for bar in found)])


def _markdown(bench: Bench, found: list[Bar]) -> str:
    results = bench.results
    parts = ["# How fast: edits until all servers have them", ""]
    for name, why in results.skipped:
        parts.append(f"**SKIPPED {name}**: {why}")
        parts.append("")
    if found:
        parts += ["## Promises", "", *bar_table(found), ""]
    parts += ["## Time of one edit", "", *table(results), "", "![time of one edit](latency.svg)", ""]
    if results.rates:
        parts += ["## Edits per second", "", *rate_table(results), "", "![edits per second](rates.svg)", ""]
    if results.idles:
        rows = [[idle.label, f"{idle.cpu_percent:.2f}", f"{idle.resident_mib:.1f}"] for idle in results.idles]
        parts += ["## Idle, per daemon", "", *aligned([["daemon", "% of a core", "resident MiB"], *rows]), ""]
    parts += ["## How it was measured", "", *_methods(), ""]
    options = bench.options
    parts.append(
        f"{options.samples} samples of fast systems in {options.rounds} rounds, {options.interval_ms} ms apart; "
        f"about {options.slow_samples} of slow ones. The first edits of each measurement are a warm-up and not counted."
    )
    parts += ["", "## Limits", "", LIMITS]
    parts += ["## Machine", "", *(f"- {name}: {value}" for name, value in machine.facts(bench.folder).items())]
    parts += [f"- {name}: {version}" for name, version in results.notes.items()]
    loads = ", ".join(f"{name} {load:.2f}" for name, load in results.loads)
    parts += [f"- load average (1 min) before each measurement: {loads}", ""]
    return "\n".join(parts)


def _methods() -> list[str]:
    """What each module says about itself, so that report and code cannot disagree."""
    modules = [floor, p2pdb, etcd, corosync, nfs, lsync, syncthing]
    return [f"- {' '.join((module.__doc__ or '').split())}" for module in modules]


def _ratio(series: Latency, base: Latency | None) -> str:
    return f"{series.median() / base.median():.2f}" if base else "-"


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
