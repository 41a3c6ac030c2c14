"""`tools/bench sync`: how long until all have an edit, and how many edits per second, next to the alternatives.

Fast systems are measured in several rounds, the floor again before each, so that a busy minute of the machine falls on
all of them; slow ones (tens of milliseconds and more) once. A system that cannot be run is skipped, loudly.
"""

import os
import time
from pathlib import Path
from types import ModuleType

from . import corosync, etcd, floor, lsync, namespaces, nfs, p2pdb, packages, syncthing
from .bench import Bench
from .errors import RigError, Skipped

FAST = {"p2pdb": p2pdb, "etcd": etcd, "corosync": corosync}
SLOW = {"nfs": nfs, "lsyncd": lsync, "syncthing": syncthing}
SYSTEMS = {**FAST, **SLOW}
MOST_SETTLE_SECONDS = 30
QUIET_SECONDS = 2
QUIET_REQUESTS = 20


def run(bench: Bench, chosen: list[str]) -> None:
    """Measures the chosen systems and the floor; results are in `bench.results`."""
    able = [name for name in chosen if _prepare(bench, name, SYSTEMS[name])]
    packages.ensure(floor.PACKAGES, bench.progress)
    with namespaces.six_servers():
        for turn in range(bench.options.rounds):
            for name in [name for name in able if name in FAST]:
                bench.progress.prefix = f"round {turn + 1}/{bench.options.rounds}  "
                _settle()
                floor.measure(bench)
                if not _measure(bench, name):
                    able.remove(name)
        bench.progress.prefix = ""
        for name in [name for name in able if name in SLOW]:
            _settle()
            _measure(bench, name)
    bench.progress.clear()


def _prepare(bench: Bench, name: str, system: ModuleType) -> bool:
    try:
        packages.ensure(system.PACKAGES, bench.progress)
    except Skipped as why:
        bench.skip(name, str(why))
        return False
    return True


def _measure(bench: Bench, name: str) -> bool:
    bench.results.loads.append((name, os.getloadavg()[0]))
    try:
        SYSTEMS[name].measure(bench)
    except (RigError, Skipped) as why:
        bench.skip(name, str(why))
        return False
    return True


def _settle() -> None:
    """Waits, bounded, until the disks are quiet: what the last system wrote and what was removed of it slows fsync."""
    os.sync()
    deadline = time.monotonic() + MOST_SETTLE_SECONDS
    time.sleep(1)
    before, quiet = _disk_work(), 0
    while quiet < QUIET_SECONDS and time.monotonic() < deadline:
        time.sleep(1)
        now = _disk_work()
        quiet = quiet + 1 if now - before < QUIET_REQUESTS else 0
        before = now


def _disk_work() -> int:
    """Writes, discards and flushes that all disks have done since the machine started."""
    lines = [line.split() for line in Path("/proc/diskstats").read_text(encoding="ascii").splitlines()]
    return sum(int(fields[column]) for fields in lines for column in (7, 14, 18) if column < len(fields))
