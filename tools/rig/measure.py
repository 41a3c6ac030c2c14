"""What a measurement gives: latencies, rates, idle costs; and the figures drawn from them.

A latency sample is a pair of CLOCK_MONOTONIC stamps: the edit begins, the last of the others has it. Samples of the same
label taken in several rounds of one run are pooled; of several rates of one label the median counts.
"""

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

REFERENCE = "floor"


@dataclass
class Latency:
    system: str
    label: str
    durable: str
    samples: list[tuple[int, int]] = field(default_factory=list)

    def milliseconds(self) -> list[float]:
        return sorted((done - start) / 1e6 for start, done in self.samples)

    def median(self) -> float:
        return statistics.median(self.milliseconds())

    def p99(self) -> float:
        """The 99th percentile by nearest rank; of fewer than 100 samples that is the largest."""
        values = self.milliseconds()
        return values[-(-99 * len(values) // 100) - 1]


@dataclass
class Rate:
    system: str
    label: str
    writers: int
    per_second: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.per_second)


@dataclass
class Idle:
    system: str
    label: str
    cpu_percent: float
    resident_mib: float


@dataclass
class Results:
    """Everything one run found."""

    latencies: list[Latency] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    idles: list[Idle] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    loads: list[tuple[str, float]] = field(default_factory=list)

    def latency(self, system: str, label: str, durable: str) -> Latency:
        """The series of this label, begun when it is new."""
        for known in self.latencies:
            if known.label == label:
                return known
        self.latencies.append(Latency(system, label, durable))
        return self.latencies[-1]

    def rate(self, system: str, label: str, writers: int) -> Rate:
        for known in self.rates:
            if (known.label, known.writers) == (label, writers):
                return known
        self.rates.append(Rate(system, label, writers))
        return self.rates[-1]

    def find_latency(self, label: str) -> Latency | None:
        return next((known for known in self.latencies if known.label == label and known.samples), None)

    def find_rate(self, system: str, writers: int) -> Rate | None:
        return next((known for known in self.rates if (known.system, known.writers) == (system, writers)), None)


def idle_cost(pids: list[int], seconds: float) -> tuple[float, float]:
    """Processor share in percent of one core and resident MiB, both per process, over `seconds` without work."""
    before = sum(_cpu_seconds(pid) for pid in pids)
    begin = time.monotonic()
    time.sleep(seconds)
    spent = sum(_cpu_seconds(pid) for pid in pids) - before
    elapsed = time.monotonic() - begin
    resident = sum(_resident_bytes(pid) for pid in pids)
    return 100 * spent / elapsed / len(pids), resident / 2**20 / len(pids)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
