"""`tools/bench scale`: what one edit costs as the group grows.

Method: 3, 6, 12, 24, 48 daemons on ports of 127.0.0.1, each linked with all others. Edits on the first server, 50 ms
apart, each waited for until all have it on disk; messages and bytes are the counters of all links before and after,
less what the same group sends in the same time when nothing happens.
"""

import csv
import time

from . import machine, plot
from .bench import Bench
from .measure import Latency
from .p2pdb import Cluster, loopback

INTERVAL_MS = 50
IDLE_SECONDS = 5


def run(bench: Bench, sizes: list[int], samples: int) -> None:
    rows = []
    for size in sizes:
        with bench.fresh():
            bench.progress.phase(f"{size} daemons: starting")
            rows.append(_measure(bench, size, samples))
    bench.progress.clear()
    _write(bench, rows)


def _measure(bench: Bench, size: int, samples: int) -> dict[str, float]:
    cluster = Cluster(bench.processes, bench.options.binary, loopback(bench.work, size))
    cluster.start(timeout=60 + 5 * size)
    first = cluster.members[0]
    cluster.edit(first, count=10, interval_ms=INTERVAL_MS)
    quiet_messages, quiet_bytes = _idle_per_second(cluster)

    bench.progress.phase(f"{size} daemons: {samples} edits")
    before, begin = cluster.sent(), time.monotonic()
    edits = cluster.edit(first, count=samples, interval_ms=INTERVAL_MS)
    elapsed, after = time.monotonic() - begin, cluster.sent()
    series = Latency("p2pdb", f"{size} daemons", "on all", [edit.stamps() for edit in edits])
    return {
        "daemons": size,
        "median_ms": series.median(),
        "p99_ms": series.p99(),
        "messages_per_edit": (after[0] - before[0] - quiet_messages * elapsed) / samples,
        "bytes_per_edit": (after[1] - before[1] - quiet_bytes * elapsed) / samples,
        "idle_messages_per_second": quiet_messages,
    }


def _idle_per_second(cluster: Cluster) -> tuple[float, float]:
    before, begin = cluster.sent(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    after, elapsed = cluster.sent(), time.monotonic() - begin
    return (after[0] - before[0]) / elapsed, (after[1] - before[1]) / elapsed


def _write(bench: Bench, rows: list[dict[str, float]]) -> None:
    with open(bench.folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        table = csv.DictWriter(out, rows[0])
        table.writeheader()
        table.writerows(rows)

    def points(column: str) -> list[tuple[float, float]]:
        return [(row["daemons"], row[column]) for row in rows]

    across = "daemons in the group (log scale)"
    waits = {"median": points("median_ms"), "p99": points("p99_ms")}
    plot.lines(bench.folder, "latency", "One edit until it is on all disks", across, "milliseconds (log scale)", waits)
    messages = {"messages": points("messages_per_edit")}
    plot.lines(bench.folder, "messages", "What one edit sends", across, "messages per edit (log scale)", messages)
    sizes = {"bytes": points("bytes_per_edit")}
    plot.lines(bench.folder, "bytes", "What one edit sends", across, "bytes per edit (log scale)", sizes)

    lines = ["# One edit as the group grows", "", "| daemons | median ms | p99 ms | messages | bytes | idle messages/s |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [
        f"| {row['daemons']:.0f} | {row['median_ms']:.2f} | {row['p99_ms']:.2f} | {row['messages_per_edit']:.1f} "
        f"| {row['bytes_per_edit']:,.0f} | {row['idle_messages_per_second']:.1f} |"
        for row in rows
    ]
    print("\n".join(lines[2:]))
    lines += ["", "![latency](latency.svg)", "![messages](messages.svg)", "![bytes](bytes.svg)", ""]
    lines += [" ".join((__doc__ or "").split()), ""]
    lines += [f"- {name}: {value}" for name, value in machine.facts(bench.folder).items()]
    (bench.folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{bench.folder / 'report.md'}")
