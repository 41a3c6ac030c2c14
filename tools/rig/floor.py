"""The floor: fdatasync here + UDP round trip + fdatasync there, in C, with nothing else.

The chain is what every design must at least do when it tells the others only what is on its own disk. It is measured in
every round, beside each fast system, so that ratios compare what the machine was like at that time. Its parts
(fdatasync alone, the five round trips alone) and variants (telling the others before the own disk is done, files filled
ahead of time) show where the chain's time goes.
"""

from . import namespaces
from .bench import Bench
from .measure import REFERENCE

PACKAGES = ["gcc", "libc6-dev"]

PARTS = {
    "chain": (REFERENCE, "on all six"),
    "tell": ("floor, told before synced", "on all six"),
    "ahead": ("floor, files filled ahead", "on all six"),
    "disk": ("one append + fdatasync", "on one"),
    "network": ("five UDP round trips", "memory only"),
}


def measure(bench: Bench) -> None:
    for mode, (label, durable) in PARTS.items():
        with bench.fresh():
            _measure_part(bench, mode, label, durable)


def _measure_part(bench: Bench, mode: str, label: str, durable: str) -> None:
    count = bench.options.samples_per_round()
    places = [namespaces.place(server) for server in namespaces.SERVERS]
    argv = [bench.native("floor"), mode, str(count), str(bench.options.interval_ms), str(bench.work), *places]
    bench.take_latency(bench.results.latency("floor", label, durable), argv, count, timeout=60 + count)
