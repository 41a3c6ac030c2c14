"""etcd: three members on servers 1 to 3, watchers on servers 2 to 6.

Method, chosen to give etcd its best numbers: the member on server 1 is made leader and takes the puts; the watchers of
servers 2 and 3 ask their own member, those of 4 to 6 one member each. The client is a small gRPC client in C (one
process, one event loop, persistent connections), so that it takes next to nothing of the two cores; the report shows its
share. A latency sample ends when the last of the five watchers has the event. The same with five `etcdctl watch` processes, as a script would do it, is a row of its own. For the rate each writer waits only for
the answer to its put, and the time ends when all five watchers have the last event.
"""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator

from . import namespaces, packages
from .bench import Bench, tool
from .errors import RigError
from .namespaces import address, place

PACKAGES = ["etcd-server", "etcd-client", "libnghttp2-dev", "gcc", "libc6-dev"]
LABEL = "etcd, 3 members, put → five watchers"
ANSWER = "etcd, 3 members, put → answer"
SCRIPTED = "etcd, 3 members, put → five 'etcdctl watch'"
MEMBERS = [1, 2, 3]
WARM_UP = 10  # as in native/common.h
WATCH_START_SECONDS = 2
ASKED = {2: 2, 3: 3, 4: 1, 5: 2, 6: 3}


def measure(bench: Bench) -> None:
    bench.results.notes["etcd"] = packages.version("etcd-server")
    with bench.fresh():
        members = [_start(bench, member) for member in MEMBERS]
        _make_first_leader(bench)
        client = bench.native("etcd", "nghttp2")
        _latency(bench, client, LABEL, _clients())
        _latency(bench, client, ANSWER, _clients()[:1])
        _latency_scripted(bench, client)
        _rate(bench, client, 1, bench.options.edits_one_writer)
        _rate(bench, client, 32, bench.options.edits_many_writers)
        bench.take_idle("etcd", LABEL, [member.pid for member in members])


def _start(bench: Bench, member: int) -> subprocess.Popen[bytes]:
    peers = ",".join(f"m{other}=http://{address(other)}:2380" for other in MEMBERS)
    argv = [tool("etcd"), "--name", f"m{member}", "--data-dir", str(bench.room(member, "etcd"))]
    argv += ["--listen-peer-urls", f"http://{address(member)}:2380"]
    argv += ["--initial-advertise-peer-urls", f"http://{address(member)}:2380"]
    argv += ["--listen-client-urls", f"http://{address(member)}:2379"]
    argv += ["--advertise-client-urls", f"http://{address(member)}:2379"]
    argv += ["--initial-cluster", peers, "--initial-cluster-state", "new", "--initial-cluster-token", "bench"]
    return bench.processes.start(f"etcd-{member}", [*argv, "--logger", "zap", "--log-level", "error"], server=member)


def _make_first_leader(bench: Bench) -> None:
    bench.progress.phase("etcd: starting")
    bench.processes.wait_until("etcd: three members with a leader", lambda: _leader(bench) is not None, 60)
    if _leader(bench) == 1:
        return
    status = json.loads(_ask_status(bench) or "[]")
    first = next(one["Status"]["header"]["member_id"] for one in status if address(1) in one["Endpoint"])
    leader = _leader(bench)
    argv = [tool("etcdctl"), "--endpoints", f"http://{address(leader or 1)}:2379", "move-leader", f"{first:x}"]
    bench.processes.run(argv, server=1)
    bench.processes.wait_until("etcd: server 1 as leader", lambda: _leader(bench) == 1, 30)


def _leader(bench: Bench) -> int | None:
    """The member that all members hold for the leader."""
    answer = _ask_status(bench)
    if answer is None:
        return None
    status = json.loads(answer)
    leaders = {one["Status"]["leader"] for one in status}
    if len(leaders) != 1 or len(status) != len(MEMBERS):
        return None
    for one in status:
        if one["Status"]["header"]["member_id"] in leaders:
            return next(member for member in MEMBERS if f"{address(member)}:" in one["Endpoint"])
    return None


def _ask_status(bench: Bench) -> str | None:
    endpoints = ",".join(f"http://{address(member)}:2379" for member in MEMBERS)
    argv = [tool("etcdctl"), "--endpoints", endpoints, "endpoint", "status", "--write-out", "json"]
    return bench.processes.answer(argv, server=1)


def _clients() -> list[str]:
    putter = f"{place(1)}={address(1)}"
    return [putter, *(f"{place(server)}={address(ASKED[server])}" for server in namespaces.SERVERS[1:])]


def _latency(bench: Bench, client: str, label: str, clients: list[str]) -> None:
    count = bench.options.samples_per_round()
    series = bench.results.latency("etcd", label, "on 2 of 3 members")
    argv = [client, "latency", str(count), str(bench.options.interval_ms), *clients]
    bench.take_latency(series, argv, count, timeout=60 + count)


def _latency_scripted(bench: Bench, client: str) -> None:
    """Five `etcdctl watch` print what they see; a line is stamped when it arrives here."""
    count = bench.options.samples_per_round()
    watchers = [_start_etcdctl_watch(bench, server) for server in namespaces.SERVERS[1:]]
    puts = bench.work / "puts"
    seen: list[list[int]] = [[] for _ in watchers]
    with _arrivals(watchers) as next_arrivals:
        time.sleep(WATCH_START_SECONDS)
        argv = [client, "latency", str(count), str(bench.options.interval_ms), *_clients()[:1]]
        bench.progress.phase(SCRIPTED)
        bench.processes.start("etcd-puts", argv, server=1, output=puts)
        deadline = time.monotonic() + 60 + count
        while any(len(stamps) < count + WARM_UP for stamps in seen):
            if time.monotonic() > deadline:
                raise RigError(f"{SCRIPTED}: the watchers did not print all events in time")
            for index, stamps in next_arrivals():
                seen[index] += stamps
    for watcher in watchers:
        bench.processes.stop(watcher)
    starts = [int(line.split()[1]) for line in puts.read_text(encoding="ascii").splitlines()]
    series = bench.results.latency("etcd", SCRIPTED, "on 2 of 3 members")
    last = [max(stamps) for stamps in zip(*(stamps[WARM_UP:] for stamps in seen), strict=True)]
    series.samples += list(zip(starts, last, strict=True))


def _start_etcdctl_watch(bench: Bench, server: int) -> subprocess.Popen[bytes]:
    endpoint = f"http://{address(ASKED[server])}:2379"
    argv = [tool("etcdctl"), "--endpoints", endpoint, "watch", "--prefix", "bench/"]
    return bench.processes.start(f"etcdctl-{server}", argv, server=server, piped=True)


@contextlib.contextmanager
def _arrivals(watchers: list[subprocess.Popen[bytes]]) -> Iterator[Callable[[], list[tuple[int, list[int]]]]]:
    """Gives a function that waits for output of the watchers and returns who printed events, with their stamps."""
    with selectors.DefaultSelector() as selector:
        for index, watcher in enumerate(watchers):
            assert watcher.stdout is not None
            selector.register(watcher.stdout, selectors.EVENT_READ, index)

        def wait() -> list[tuple[int, list[int]]]:
            found = []
            for key, _ in selector.select(1):
                now = time.monotonic_ns()
                found.append((key.data, [now] * os.read(key.fd, 65536).count(b"PUT\n")))
            return found

        yield wait


def _rate(bench: Bench, client: str, writers: int, edits: int) -> None:
    rate = bench.results.rate("etcd", LABEL, writers)
    bench.take_rate(rate, [client, "rate", str(edits), str(writers), *_clients()], timeout=120)
