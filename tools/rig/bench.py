"""What a system's module gets to work with: a folder, processes, compiled clients, and a place for its results."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import RigError, Skipped
from .measure import Idle, Latency, Rate, Results, idle_cost
from .processes import Processes
from .progress import Progress

MEMORY = Path("/dev/shm/p2pdb-rig")
# What every run leaves in its folder.
LOGS = "logs"
NATIVE = Path(__file__).parent / "native"


@dataclass(frozen=True)
class Options:
    """How much is measured; from the command line."""

    samples: int
    slow_samples: int
    interval_ms: int
    rounds: int
    edits_one_writer: int
    edits_many_writers: int
    idle_seconds: float
    binary: Path

    def samples_per_round(self) -> int:
        return max(1, self.samples // self.rounds)


class Bench:
    """One run: its options, its folder, its results."""

    def __init__(self, options: Options, folder: Path, progress: Progress, keep: str = "") -> None:
        """What an earlier run left in the folder goes, but for what is called `keep`."""
        self.options = options
        self.folder = folder
        self.progress = progress
        self.results = Results()
        self.work = folder / "work"
        folder.mkdir(parents=True, exist_ok=True)
        held = list(folder.iterdir())
        if held and not (folder / LOGS).is_dir():
            raise RigError(f"--out {folder}: there are files that no run has written; name an empty folder")
        for old in held:
            if old.is_dir() and not old.is_symlink():
                if old.name != keep:
                    shutil.rmtree(old)
            else:
                old.unlink()
        self.processes = Processes(folder / LOGS)
        self.work.mkdir()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """An empty work folder and no processes left, before and after what is done inside."""
        try:
            yield
        finally:
            self.processes.stop_all()
            shutil.rmtree(MEMORY, ignore_errors=True)
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir()

    def room(self, server: int, part: str = "") -> Path:
        """The folder of one server, on the disk that all systems use."""
        path = self.work / f"s{server}" / part
        path.mkdir(parents=True, exist_ok=True)
        return path

    def memory_room(self, server: int) -> Path:
        """A folder of one server in memory (tmpfs), for what p2pdb keeps there by default."""
        path = MEMORY / f"s{server}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def native(self, name: str, *libraries: str) -> str:
        """Compiles a client of `native/` and says where it is."""
        binary = self.folder / "clients" / name
        if not binary.exists():
            binary.parent.mkdir(exist_ok=True)
            argv = ["cc", "-O2", "-std=gnu11", "-Wall", "-o", str(binary), str(NATIVE / f"{name}.c")]
            result = subprocess.run(
                [*argv, *(f"-l{library}" for library in libraries)], capture_output=True, text=True, timeout=120, check=False
            )
            if result.returncode != 0:
                raise RigError(f"cannot compile {name}.c: {result.stderr.strip()[-600:]}")
        return str(binary)

    def take_latency(self, series: Latency, argv: list[str], count: int, timeout: float) -> None:
        """Runs a client that prints `sample` lines and adds them to `series`."""
        fresh: list[tuple[int, int]] = []

        def take(line: str) -> None:
            kind, *values = line.split()
            if kind == "sample":
                fresh.append((int(values[0]), int(values[1])))
                self.progress.count(len(fresh), count)

        self.progress.phase(series.label)
        self.processes.lines(series.system, argv, timeout=timeout, each=take)
        if len(fresh) < count:
            raise RigError(f"{series.label}: {len(fresh)} samples of {count}")
        series.samples += fresh

    def take_rate(self, rate: Rate, argv: list[str], timeout: float) -> None:
        """Runs a client that prints `rate` and `cpu` lines and adds the figures to `rate`."""
        found: dict[str, list[int]] = {}

        def take(line: str) -> None:
            kind, *values = line.split()
            found[kind] = [int(value) for value in values]

        self.progress.phase(f"{rate.label}, {rate.writers} writer(s)")
        self.processes.lines(rate.system, argv, timeout=timeout, each=take)
        count, elapsed = found["rate"]
        rate.per_second.append(count * 1e9 / elapsed)
        rate.client_cpu.append(found["cpu"][0] / elapsed)

    def skip(self, name: str, why: str) -> None:
        """Notes, loudly and once, that something is not measured."""
        if (name, why) not in self.results.skipped:
            self.results.skipped.append((name, why))
            self.progress.loud(f"SKIPPED {name}: {why}")

    def take_idle(self, system: str, label: str, pids: list[int]) -> None:
        """Measures once per run what the daemons cost when nothing happens."""
        if any(idle.label == label for idle in self.results.idles):
            return
        self.progress.phase(f"{label}: idle for {self.options.idle_seconds:.0f} s")
        self.results.idles.append(Idle(system, label, *idle_cost(pids, self.options.idle_seconds)))


def tool(name: str) -> str:
    """The path of a program that a package was to bring."""
    path = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise Skipped(f"the program {name} is not here although its package is installed")
    return path
