"""Measures any system that keeps a folder the same on all servers: a line is saved on server 1, the others are watched.

The client `native/files.c` saves by open, append, close, and sleeps in inotify on the five other folders (it looks
every so often instead where inotify cannot see). The first save is a warm-up and may take long: it also proves that the
system has come up.
"""

from pathlib import Path

from .bench import Bench
from .measure import Latency

PACKAGES = ["gcc", "libc6-dev"]


def measure_saves(
    bench: Bench,
    series: Latency,
    folders: list[Path],
    count: int,
    *,
    file: str = "Group",
    gap_ms: int = 200,
    poll_us: int = 0,
    patience_each: float = 2,
) -> None:
    """Takes `count` samples; the first folder is where the edits happen."""
    argv = [bench.native("files"), str(count), str(gap_ms), str(poll_us), file, *map(str, folders)]
    bench.take_latency(series, argv, count, timeout=130 + count * patience_each)
