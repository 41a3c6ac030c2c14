"""`tools/bench priority`: what a management transaction waits while a flood is being received.

Method: three daemons on loopback. Two of them make edits without pause (8 writers each, waiting for their own disk only),
so that the third receives all the time; on the third, management transactions are made 20 ms apart and each is waited for
until it is on its own disk. Once with priorities, once with `enabled = false` under `[priority]` in the configuration of the third,
once without any flood.
"""

import csv
from pathlib import Path

from . import machine, plot
from .bench import Bench
from .errors import RigError
from .measure import Latency
from .p2pdb import Cluster, loopback

INTERVAL_MS = 20
FLOOD_EDITS = 5_000_000
FLOOD_WRITERS = 8


def run(bench: Bench, samples: int) -> None:
    found = [
        _measure(bench, "no flood", samples, flood=False, priorities=True),
        _measure(bench, "flood, with priorities", samples, flood=True, priorities=True),
        _measure(bench, "flood, without priorities", samples, flood=True, priorities=False),
    ]
    bench.progress.clear()
    _write(bench, found)


def _measure(bench: Bench, name: str, samples: int, *, flood: bool, priorities: bool) -> Latency:
    with bench.fresh():
        bench.progress.phase(name)
        cluster = Cluster(bench.processes, bench.options.binary, loopback(bench.work, 3))
        cluster.start()
        first, *others = cluster.members
        if not priorities:
            cluster.stop_daemon(first)
            _switch_priorities_off(first.directory / "p2pdb.toml")
            cluster.start_daemon(first)
        if flood:
            for member in others:
                cluster.start_edits(member, count=FLOOD_EDITS, writers=FLOOD_WRITERS, wait="local")
        cluster.edit(first, count=10, interval_ms=INTERVAL_MS, wait="local")
        edits = cluster.edit(first, count=samples, interval_ms=INTERVAL_MS, wait="local")
        return Latency("p2pdb", name, "on one", [edit.stamps() for edit in edits])


def _switch_priorities_off(configuration: Path) -> None:
    text = configuration.read_text(encoding="utf-8")
    if "[priority]" not in text:
        raise RigError(f"{configuration} has no section [priority] to switch off")
    configuration.write_text(text.replace("[priority]", "[priority]\nenabled = false", 1), encoding="utf-8")


def _write(bench: Bench, found: list[Latency]) -> None:
    with open(bench.folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["case", "start_ns", "done_ns", "milliseconds"])
        for series in found:
            rows.writerows([series.label, start, done, f"{(done - start) / 1e6:.4f}"] for start, done in series.samples)
    waits = {series.label: series.milliseconds() for series in found}
    title, across = "Wait of a management transaction", "milliseconds until it is on its own disk (log scale)"
    plot.distributions(bench.folder, "priority", title, across, waits)
    lines = ["# What a management transaction waits", "", "| case | median ms | p99 ms |", "|---|---|---|"]
    lines += [f"| {series.label} | {series.median():.2f} | {series.p99():.2f} |" for series in found]
    print("\n".join(lines[2:]))
    lines += ["", "![waits](priority.svg)", "", " ".join((__doc__ or "").split()), ""]
    lines += [f"- {name}: {value}" for name, value in machine.facts(bench.folder).items()]
    (bench.folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{bench.folder / 'report.md'}")
