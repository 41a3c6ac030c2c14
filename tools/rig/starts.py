"""How long virtual machines take to start, and what it costs to keep them ready (the paper's Fig. 9), without p2pdb.

Method: machines of the image `full`, until the guest agent answers: from cold; resumed after having answered and been paused in memory,
as p2pdb's originals are; restored from a state on disk; and restored from a state that is fetched from a file server over NFS version 4
(ganesha on another host, read with libnfs), as in the paper's conventional method. Each for one machine and for two at once, on two
hosts, as in the paper; each host has a core for itself, libvirtd and machines, as two hosts have. A start waits until the
processors are idle, so that nothing of what came before it is measured with it.
Of the two that are paused in memory the proportional set of their processes is taken, of the two on disk the size of their states.
"""

import os
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import machine, nfs, packages, recovery
from .bench import Bench, tool
from .errors import RigError, Skipped
from .recovery import CLIENT
from .virtual_machines import Guest, Libvirtd, resident_mib

# Seconds, averages of ten (the paper, Fig. 9).
PAPER = {"one from cold": 13.17, "one resumed": 1.61, "two resumed": 1.67, "one over NFS": 4.62, "two over NFS": 8.50}
WAYS = ("resumed", "from disk", "over NFS")
# The paper's S1 and S3.
HOSTS = (1, 3)
# Of the processors' time, and how long nothing else may have been seen.
IDLE_SHARE = 0.95
IDLE_S = 0.5


@dataclass
class Starts:
    """Milliseconds until machines answered, by kind; MiB that two ready machines take, by the way they wait."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    memory_mib: dict[str, float] = field(default_factory=dict)
    disk_mib: dict[str, float] = field(default_factory=dict)

    def median(self, kind: str) -> float | None:
        values = self.samples.get(kind)
        return statistics.median(values) if values else None


def measure(bench: Bench, runs: int) -> Starts:
    starts = Starts()
    cores = sorted(os.sched_getaffinity(0))
    libvirtds = [Libvirtd(bench, host, cores[index % len(cores)]) for index, host in enumerate(HOSTS)]
    guests = [Guest(bench, libvirtd, f"guest-{libvirtd.host}") for libvirtd in libvirtds]
    try:
        share = share_on(bench, CLIENT)
        for number in range(max(1, runs // 3)):
            bench.progress.phase(f"from cold: {number + 1} of {max(1, runs // 3)}")
            _time(starts, "one from cold", guests[:1], Guest.cold)
            guests[0].save() if number == 0 else guests[0].destroy()
        guests[1].cold()
        guests[1].save()
        _measure_cost(starts, libvirtds, guests)
        if share is not None:
            for guest in guests:
                (share / guest.name).write_bytes(guest.state.read_bytes())

        def over_nfs(guest: Guest) -> None:
            fetched = guest.state.with_name("fetched")
            fetched.unlink(missing_ok=True)
            bench.processes.run([*recovery._enter(guest.host), tool("nfs-cp"), url(CLIENT, guest.name), str(fetched)])
            guest.restore(fetched)

        starters = {"resumed": Guest.resume, "from disk": Guest.restore, "over NFS": over_nfs}
        for number in range(runs):
            for count, word in ((1, "one"), (2, "two")):
                bench.progress.phase(f"activation of {word}: {number + 1} of {runs}")
                for way in WAYS if share is not None else WAYS[:2]:
                    some = guests[:count]
                    if way == "resumed":
                        _all(some, Guest.restore_and_pause)
                    _wait_until_idle(bench)
                    _time(starts, f"{word} {way}", some, starters[way])
                    _all(some, Guest.destroy)
    finally:
        for libvirtd in libvirtds:
            libvirtd.end()
    return starts


def share_on(bench: Bench, host: int) -> Path | None:
    """A folder on a file server of the service network; none where there is no such server."""
    try:
        packages.ensure(["nfs-ganesha", "nfs-ganesha-vfs", "libnfs-utils"], bench.progress)
        ganesha = tool("ganesha.nfsd")
    except Skipped as skipped:
        bench.skip("NFS", str(skipped))
        return None
    room, share = bench.work / "ganesha", bench.work / "share"
    room.mkdir()
    share.mkdir()
    settings = nfs.CONFIGURATION.format(address=recovery._address(host), share=share, state=room)
    (room / "ganesha.conf").write_text(settings)
    argv = [*recovery._enter(host), ganesha, "-F", "-f", str(room / "ganesha.conf"), "-L", "STDERR", "-p", str(room / "pid")]
    bench.processes.start("ganesha", argv)
    listening = [*recovery._enter(host), tool("ss"), "-ltn"]
    bench.processes.wait_until("the file server listens", lambda: ":2049" in bench.processes.run(listening), 30)
    return share


def url(host: int, name: str) -> str:
    """Where a file of the share is, for the programs of libnfs."""
    return f"nfs://{recovery._address(host)}/share/{name}?version=4"


def _measure_cost(starts: Starts, libvirtds: list[Libvirtd], guests: list[Guest]) -> None:
    _all(guests, Guest.restore_and_pause)
    starts.memory_mib["resumed"] = sum(resident_mib(pid) for libvirtd in libvirtds for pid in libvirtd.processes())
    _all(guests, Guest.destroy)
    starts.memory_mib["from disk"] = 0
    for way in ("resumed", "from disk"):
        starts.disk_mib[way] = sum(guest.state.stat().st_size for guest in guests) / (1 << 20)


def _all(guests: list[Guest], act) -> None:
    for guest in guests:
        act(guest)


def _wait_until_idle(bench: Bench) -> None:
    def is_idle() -> bool:
        before = machine.processor_ticks()
        time.sleep(IDLE_S)
        idle, total = (after - before for after, before in zip(machine.processor_ticks(), before, strict=True))
        return idle >= IDLE_SHARE * total

    bench.processes.wait_until("the processors are idle", is_idle, 60)


def _time(starts: Starts, kind: str, guests: list[Guest], start) -> None:
    """All at once; until the last one answers."""
    failures: list[Exception] = []

    def one(guest: Guest) -> None:
        try:
            start(guest)
        except (RigError, subprocess.SubprocessError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(guest,)) for guest in guests]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RigError(f"{kind}: {failures[0]}")
    starts.samples.setdefault(kind, []).append((time.monotonic() - begun) * 1000)
