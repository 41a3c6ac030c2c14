"""`tools/bench log`: what a long log costs.

Method, for logs of 10 k, 100 k, 1 M entries made by `bench fill`: *open* is the time from starting the daemon until it is
operating; *rebuild* the same after the view was moved away, so that it is made anew from the log; *catch-up* the time from
starting a newcomer that has just joined until it holds every entry; *replay* the time of `p2pdb replay` over the log.
"""

import csv
import time
from collections.abc import Callable

from . import machine, plot
from .bench import Bench
from .p2pdb import Cluster, loopback

MEASURES = {
    "open_s": "open",
    "rebuild_s": "rebuild the view",
    "catch_up_s": "catch up a newcomer",
    "replay_s": "replay",
}
PATIENCE_SECONDS = 900


def run(bench: Bench, sizes: list[int]) -> None:
    rows = []
    for size in sizes:
        with bench.fresh():
            rows.append(_measure(bench, size))
    bench.progress.clear()
    _write(bench, rows)


def _measure(bench: Bench, size: int) -> dict[str, float]:
    cluster = Cluster(bench.processes, bench.options.binary, loopback(bench.work, 2))
    first, newcomer = cluster.members
    bench.progress.phase(f"{size:,} entries: filling")
    cluster.create_first()
    # Its first start founds the group; without one, nobody could be sure that the log is whole.
    cluster.start_daemon(first)
    cluster.stop_daemon(first)
    cluster.call(first, "bench", "fill", "--dir", str(first.directory), "--entries", str(size), timeout=PATIENCE_SECONDS)
    row: dict[str, float] = {"entries": size, "log_mib": _log_bytes(bench) / 2**20}

    bench.progress.phase(f"{size:,} entries: open")
    row["open_s"] = _timed(lambda: cluster.start_daemon(first))

    bench.progress.phase(f"{size:,} entries: catch-up")
    cluster.join(newcomer)
    wanted = cluster.entries(first)
    begin = time.monotonic()
    cluster.start_daemon(newcomer)
    what = "p2pdb: the newcomer to hold every entry"
    bench.processes.wait_until(what, lambda: cluster.entries(newcomer) >= wanted, PATIENCE_SECONDS, 0.05)
    row["catch_up_s"] = time.monotonic() - begin
    cluster.stop_daemon(newcomer)

    bench.progress.phase(f"{size:,} entries: rebuild")
    cluster.stop_daemon(first)
    if (view := first.directory / "view").exists():
        view.rename(view.with_name("view.before"))
    row["rebuild_s"] = _timed(lambda: cluster.start_daemon(first))
    cluster.stop_daemon(first)

    bench.progress.phase(f"{size:,} entries: replay")
    row["replay_s"] = _timed(lambda: cluster.call(first, "replay", str(first.directory), timeout=PATIENCE_SECONDS))
    return row


def _timed(work: Callable[[], object]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _log_bytes(bench: Bench) -> int:
    return sum(path.stat().st_size for path in bench.work.rglob("Diff.dat/*") if path.is_file())


def _write(bench: Bench, rows: list[dict[str, float]]) -> None:
    with open(bench.folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        table = csv.DictWriter(out, rows[0])
        table.writeheader()
        table.writerows(rows)
    series = {name: [(row["entries"], row[column]) for row in rows] for column, name in MEASURES.items()}
    plot.lines(
        bench.folder, "log", "What a long log costs", "entries in the log (log scale)", "seconds (log scale)", series
    )
    lines = ["# As the log grows", "", "| entries | log MiB | " + " | ".join(f"{name} s" for name in MEASURES.values()) + " |"]
    lines.append("|" + "---|" * (2 + len(MEASURES)))
    for row in rows:
        cells = [f"{row['entries']:,.0f}", f"{row['log_mib']:.1f}", *(f"{row[column]:.2f}" for column in MEASURES)]
        lines.append("| " + " | ".join(cells) + " |")
    print("\n".join(lines[2:]))
    lines += ["", "![as the log grows](log.svg)", "", " ".join((__doc__ or "").split()), ""]
    lines += [f"- {name}: {value}" for name, value in machine.facts(bench.folder).items()]
    (bench.folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{bench.folder / 'report.md'}")
