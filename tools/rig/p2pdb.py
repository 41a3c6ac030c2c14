"""p2pdb itself, driven by nothing but its command line.

The only file of the rig that knows how p2pdb is spoken to: `init`, `token`, `join`, `daemon`, `status --json`,
`bench edit`, `bench watch`, `bench fill`, `replay`. Used in namespaces by `tools/bench sync`, on loopback by the others.

An edit measured with `--wait all` ends when it is on the disks of all servers and readable there, so it is compared with
weaker promises of the others; the same edits are also stamped by five watchers, the way etcd's are.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files
from .bench import Bench
from .errors import RigError, Skipped
from .measure import Latency
from .namespaces import SERVERS, address
from .processes import Processes

PACKAGES = files.PACKAGES
PORT = 7700
API = "p2pdb, edit → on six disks and readable"
WATCHED = "p2pdb, edit → five watchers"
MAJORITY = "p2pdb, each waits for a majority → on six disks and readable"
MAJORITY_SYSTEM = "p2pdb, majority"
LOCAL = "p2pdb, edit → own disk"
SAVED_FILE = "Notes"
PLAIN = "p2pdb, plain-file save → five plain files"
FILE = "Bench"
EDIT_BYTES = 200  # as in native/common.h


@dataclass(frozen=True)
class Member:
    """One server: its name, its address, its folders, and the namespace it lives in (none on loopback)."""

    name: str
    listen: str
    directory: Path
    files: Path
    server: int | None = None


@dataclass(frozen=True)
class Edit:
    """One edit: its entry, and when it began and was done."""

    entry: str
    start_ns: int
    done_ns: int

    def stamps(self) -> tuple[int, int]:
        return self.start_ns, self.done_ns


class Cluster:
    """Members that run and know each other."""

    def __init__(self, processes: Processes, binary: Path, members: list[Member]) -> None:
        if not binary.is_file():
            raise Skipped(f"there is no {binary}: build it with 'cargo build --release' or name one with --binary")
        self.members = members
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._processes = processes
        self._binary = str(binary.resolve())

    def start(self, timeout: float = 120) -> None:
        """Makes the first server, lets the others join it one after the other, and waits until all are linked."""
        self.create_first()
        self.start_daemon(self.members[0])
        for member in self.members[1:]:
            self.join(member)
            self.start_daemon(member)
        self._processes.wait_until("p2pdb: every server operating and linked", self._complete, timeout, 0.2)

    def create_first(self) -> None:
        first = self.members[0]
        self.call(first, "init", "--name", first.name, "--listen", first.listen, *_folders(first))

    def join(self, member: Member) -> None:
        first = self.members[0]
        token = self.call(first, "token", "--dir", str(first.directory)).strip()
        names = ["--name", member.name, "--listen", member.listen, *_folders(member)]
        self.call(member, "join", *names, "--peer", first.listen, "--token", token)

    def start_daemon(self, member: Member) -> None:
        argv = [self._binary, "daemon", "--dir", str(member.directory)]
        self.daemons[member.name] = self._processes.start(f"p2pdb-{member.name}", argv, server=member.server)
        what = f"p2pdb: {member.name} operating"
        self._processes.wait_until(what, lambda: self.operating(member), 300, 0.05)

    def stop_daemon(self, member: Member) -> None:
        self._processes.stop(self.daemons.pop(member.name), grace=30)

    def status(self, member: Member) -> dict[str, Any]:
        return json.loads(self.call(member, "status", "--dir", str(member.directory), "--json"))

    def operating(self, member: Member) -> bool:
        argv = [self._binary, "status", "--dir", str(member.directory), "--json"]
        answer = self._processes.answer(argv, server=member.server)
        return answer is not None and json.loads(answer)["lifecycle"] == "operating"

    def sent(self) -> tuple[int, int]:
        """Messages and bytes that all members have sent to each other since they started."""
        links = [link for member in self.members for link in self.status(member)["members"]]
        return sum(link["messages_sent"] for link in links), sum(link["bytes_sent"] for link in links)

    def entries(self, member: Member) -> int:
        """How many entries the log of `member` holds."""
        return self.status(member)["log"]["entries"]

    def call(self, member: Member, *arguments: str, timeout: float = 60) -> str:
        return self._processes.run([self._binary, *arguments], server=member.server, timeout=timeout)

    def edit(
        self, member: Member, *, count: int, writers: int = 1, interval_ms: int = 0, wait: str = "all", timeout: float = 300
    ) -> list[Edit]:
        """Makes edits through the API of `member`."""
        found: list[Edit] = []

        def take(line: str) -> None:
            answer = json.loads(line)
            if "summary" not in answer:
                found.append(Edit(answer["entry"], answer["start_ns"], answer["done_ns"]))

        argv = [self._binary, *edit_command(member, count, writers, interval_ms, wait)]
        self._processes.lines(f"edit-{member.name}", argv, server=member.server, timeout=timeout, each=take)
        return found

    def edits_per_second(self, member: Member, *, count: int, writers: int, wait: str = "all", timeout: float = 300) -> float:
        """Makes edits without pause, each waited for at a level; the time ends when all have the last."""
        lines: list[str] = []
        argv = [self._binary, *edit_command(member, count, writers, 0, wait), "--quiet", "--until-all"]
        self._processes.lines(f"rate-{member.name}", argv, server=member.server, timeout=timeout, each=lines.append)
        return json.loads(lines[-1])["summary"]["per_second"]

    def start_edits(self, member: Member, *, count: int, writers: int, wait: str) -> subprocess.Popen[bytes]:
        """Makes edits in the background."""
        argv = [self._binary, *edit_command(member, count, writers, 0, wait), "--quiet"]
        return self._processes.start(f"flood-{member.name}", argv, server=member.server)

    def start_watch(self, member: Member, output: Path) -> subprocess.Popen[bytes]:
        argv = [self._binary, "bench", "watch", "--dir", str(member.directory), "--file", FILE, "--json"]
        return self._processes.start(f"watch-{member.name}", argv, server=member.server, output=output)

    def _complete(self) -> bool:
        return all(self._links_up(member) == len(self.members) - 1 for member in self.members)

    def _links_up(self, member: Member) -> int:
        return sum(other["link"] == "up" for other in self.status(member)["members"])


def edit_command(member: Member, count: int, writers: int, interval_ms: int, wait: str) -> list[str]:
    numbers = ["--count", str(count), "--writers", str(writers), "--interval-ms", str(interval_ms)]
    text = ["--file", FILE, "--bytes", str(EDIT_BYTES), "--wait", wait, "--json"]
    return ["bench", "edit", "--dir", str(member.directory), *numbers, *text]


def loopback(folder: Path, count: int) -> list[Member]:
    """Members on ports of 127.0.0.1, with everything below `folder`."""
    return [
        Member(f"S{i}", f"127.0.0.1:{PORT + i}", folder / f"s{i}" / "db", folder / f"s{i}" / "files")
        for i in range(1, count + 1)
    ]


def measure(bench: Bench) -> None:
    options = bench.options
    with bench.fresh():
        members = [
            Member(f"S{i}", f"{address(i)}:{PORT}", bench.room(i) / "db", bench.memory_room(i), i) for i in SERVERS
        ]
        cluster = Cluster(bench.processes, options.binary, members)
        bench.results.notes["p2pdb"] = cluster.call(members[0], "--version").strip()
        bench.progress.phase("p2pdb: starting")
        cluster.start()
        _measure_edits(bench, cluster)
        for writers, edits in ((1, options.edits_one_writer), (32, options.edits_many_writers)):
            bench.progress.phase(f"p2pdb, {writers} writer(s)")
            for system, label, wait in (("p2pdb", API, "all"), (MAJORITY_SYSTEM, MAJORITY, "majority")):
                per_second = cluster.edits_per_second(members[0], count=edits, writers=writers, wait=wait)
                bench.results.rate(system, label, writers).per_second.append(per_second)
        _measure_saves(bench, cluster)
        bench.take_idle("p2pdb", "p2pdb", [daemon.pid for daemon in cluster.daemons.values()])


def _measure_edits(bench: Bench, cluster: Cluster) -> None:
    """First alone, then with a watcher on each other server, which costs processor time of its own."""
    first, *others = cluster.members
    count = bench.options.samples_per_round()
    interval_ms = bench.options.interval_ms
    cluster.edit(first, count=10, interval_ms=interval_ms)
    for label, durable, wait in ((API, "on all six", "all"), (LOCAL, "on one", "local")):
        bench.progress.phase(label)
        edits = cluster.edit(first, count=count, interval_ms=interval_ms, wait=wait)
        bench.results.latency("p2pdb", label, durable).samples += [edit.stamps() for edit in edits]
    bench.progress.phase(WATCHED)
    outputs = [bench.work / f"watch-{member.name}" for member in others]
    watchers = [cluster.start_watch(member, output) for member, output in zip(others, outputs, strict=True)]
    cluster.edit(first, count=10, interval_ms=interval_ms)
    edits = cluster.edit(first, count=count, interval_ms=interval_ms, wait="all")
    _add_watched(bench, bench.results.latency("p2pdb", WATCHED, "on all six"), edits, outputs)
    for watcher in watchers:
        bench.processes.stop(watcher)


def _add_watched(bench: Bench, series: Latency, edits: list[Edit], outputs: list[Path]) -> None:
    """Pairs the edits with what the watchers stamped."""
    wanted = {edit.entry for edit in edits}
    what = "p2pdb: the watchers to print every edit"
    bench.processes.wait_until(what, lambda: all(wanted <= _readable(output).keys() for output in outputs), 30)
    stamps = [_readable(output) for output in outputs]
    series.samples += [(edit.start_ns, max(one[edit.entry] for one in stamps)) for edit in edits]


def _readable(output: Path) -> dict[str, int]:
    """When each entry became readable at one watcher; its last line may be half written."""
    lines = output.read_text(encoding="utf-8").split("\n")[:-1]
    return {found["entry"]: found["readable_ns"] for found in map(json.loads, lines) if "entry" in found}


def _measure_saves(bench: Bench, cluster: Cluster) -> None:
    series = bench.results.latency("p2pdb", PLAIN, "on all six")
    folders = [member.files for member in cluster.members]
    try:
        # A file of its own, as small as management files are: what the flood before has filled is not what people edit.
        first = cluster.members[0]
        cluster.call(first, "files", "add", SAVED_FILE, "first, line", "--wait", "all", "--dir", str(first.directory))
        bench.processes.wait_until("p2pdb: the file to be saved", lambda: all((f / SAVED_FILE).exists() for f in folders), 30)
        files.measure_saves(bench, series, folders, bench.options.samples_per_round(), file=SAVED_FILE, gap_ms=20)
    except RigError as why:
        bench.skip(PLAIN, str(why))


def _folders(member: Member) -> list[str]:
    return ["--dir", str(member.directory), "--files", str(member.files)]
