"""The facts of the machine that a report must name."""

import os
import subprocess
from pathlib import Path


def facts(folder: Path) -> dict[str, str]:
    """What the figures depend on; `folder` is where the systems keep their data."""
    return {
        "processor": f"{_first('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) // 1024} MiB",
        "kernel": os.uname().release,
        "system": _first("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "file system": _output("findmnt", "-n", "-o", "FSTYPE,OPTIONS", "--target", str(folder)),
        "source": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "date": _output("date", "--utc", "+%Y-%m-%d %H:%M UTC"),
    }


def processor_ticks() -> tuple[int, int]:
    """What all processors were idle so far, and all of their time."""
    with open("/proc/stat", encoding="ascii") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _first(path: str, key: str, separator: str = ":") -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(separator)
        if name.strip() == key:
            return value.strip()
    return "-"


def _output(*argv: str) -> str:
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return " ".join(result.stdout.split()) or "-"
