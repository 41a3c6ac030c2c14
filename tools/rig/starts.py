"""How long virtual machines take to start, and what it costs to keep them ready (the paper's Fig. 9), without p2pdb.

Method: machines of the image `full`, until the guest agent answers: from cold; resumed after having answered and been paused in memory,
as p2pdb's originals are; restored from a state on disk; and restored from a state that is fetched from a file server over NFS version 4
(ganesha on another host, read with libnfs), as in the paper's conventional method. Each for one machine and for two at once, on two
hosts, as in the paper; each host has one core for itself: whoever starts the machine, libvirtd and the machine, as on two hosts, of which
one alone has no help of the other either. A start waits until the processors are idle, so that nothing of what came before it is
measured with it.
Of the two that are paused in memory the proportional set of their processes is taken, of the two on disk the size of their states.
"""

import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
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


class Host:
    """A process of a host, on the host's core, that handles the host's machine as it is told to: by names of `ACTS`."""

    def __init__(self, bench: Bench, libvirtd: Libvirtd, core: int) -> None:
        self.name = f"guest-{libvirtd.host}"
        self._orders, orders = multiprocessing.Pipe()
        arguments = (bench, libvirtd, self.name, core, orders)
        # Forked before there is a connection to libvirt, which could not be shared.
        multiprocessing.get_context("fork").Process(target=_handle, args=arguments, daemon=True).start()
        orders.close()
        self.state = Path(self.do("begin"))

    def order(self, act: str) -> None:
        self._orders.send(act)

    def answer(self) -> str:
        try:
            failed, told = self._orders.recv()
        except EOFError:
            failed, told = True, "its process has ended"
        if failed:
            raise RigError(f"{self.name}: {told}")
        return told

    def do(self, act: str) -> str:
        self.order(act)
        return self.answer()


def _handle(bench: Bench, libvirtd: Libvirtd, name: str, core: int, orders: Connection) -> None:
    os.sched_setaffinity(0, {core})
    guest = None
    while True:
        try:
            act = orders.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            guest = guest or Guest(bench, libvirtd, name)
            ACTS[act](bench, guest)
            orders.send((False, str(guest.state)))
        except Exception as error:  # whatever it is, whoever waits for an answer gets one
            orders.send((True, f"{act}: {error}"))


def _fetch_and_restore(bench: Bench, guest: Guest) -> None:
    fetched = guest.state.with_name("fetched")
    fetched.unlink(missing_ok=True)
    bench.processes.run([*recovery._enter(guest.host), tool("nfs-cp"), url(CLIENT, guest.name), str(fetched)])
    guest.restore(fetched)


# What a host does with its machine.
ACTS = {
    "begin": lambda _, guest: None,
    "cold": lambda _, guest: guest.cold(),
    "save": lambda _, guest: guest.save(),
    "restore and pause": lambda _, guest: guest.restore_and_pause(),
    "destroy": lambda _, guest: guest.destroy(),
    "resumed": lambda _, guest: guest.resume(),
    "from disk": lambda _, guest: guest.restore(),
    "over NFS": _fetch_and_restore,
}


def measure(bench: Bench, runs: int) -> Starts:
    packages.ensure(["python3-libvirt"], bench.progress)
    starts = Starts()
    cores = sorted(os.sched_getaffinity(0))
    placed = [(Libvirtd(bench, host, cores[index % len(cores)]), cores[index % len(cores)]) for index, host in enumerate(HOSTS)]
    libvirtds = [libvirtd for libvirtd, _ in placed]
    try:
        hosts = [Host(bench, libvirtd, core) for libvirtd, core in placed]
        share = share_on(bench, CLIENT)
        for number in range(runs):
            bench.progress.phase(f"from cold: {number + 1} of {runs}")
            _time(starts, "one from cold", hosts[:1], "cold")
            hosts[0].do("save" if number == 0 else "destroy")
        hosts[1].do("cold")
        hosts[1].do("save")
        _measure_cost(starts, libvirtds, hosts)
        if share is not None:
            for host in hosts:
                (share / host.name).write_bytes(host.state.read_bytes())
        for number in range(runs):
            for count, word in ((1, "one"), (2, "two")):
                bench.progress.phase(f"activation of {word}: {number + 1} of {runs}")
                for way in WAYS if share is not None else WAYS[:2]:
                    some = hosts[:count]
                    if way == "resumed":
                        _all(some, "restore and pause")
                    _wait_until_idle(bench)
                    _time(starts, f"{word} {way}", some, way)
                    _all(some, "destroy")
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


def _measure_cost(starts: Starts, libvirtds: list[Libvirtd], hosts: list[Host]) -> None:
    _all(hosts, "restore and pause")
    starts.memory_mib["resumed"] = sum(resident_mib(pid) for libvirtd in libvirtds for pid in libvirtd.processes())
    _all(hosts, "destroy")
    starts.memory_mib["from disk"] = 0
    for way in ("resumed", "from disk"):
        starts.disk_mib[way] = sum(host.state.stat().st_size for host in hosts) / (1 << 20)


def _all(hosts: list[Host], act: str) -> None:
    for host in hosts:
        host.do(act)


def _wait_until_idle(bench: Bench) -> None:
    def is_idle() -> bool:
        before = machine.processor_ticks()
        time.sleep(IDLE_S)
        idle, total = (after - before for after, before in zip(machine.processor_ticks(), before, strict=True))
        return idle >= IDLE_SHARE * total

    bench.processes.wait_until("the processors are idle", is_idle, 60)


def _time(starts: Starts, kind: str, hosts: list[Host], act: str) -> None:
    """All at once; until the last one answers."""
    begun = time.monotonic()
    for host in hosts:
        host.order(act)
    for host in hosts:
        host.answer()
    starts.samples.setdefault(kind, []).append((time.monotonic() - begun) * 1000)
