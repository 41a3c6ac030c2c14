"""etcd: three members on servers 1 to 3, watchers on servers 2 to 6.

Method, chosen to give etcd its best numbers: the member on server 1 is made leader and takes the puts; the watchers of
servers 2 and 3 ask their own member, those of 4 to 6 one member each. The client is a small gRPC client in C (one
process, one event loop, persistent connections), so that it takes next to nothing of the two cores; the report shows its
share. A latency sample ends when the last of the five watchers has the event. For the rate each writer waits only for
the answer to its put, and the time ends when all five watchers have the last event.
"""

import json
import subprocess

from . import namespaces, packages
from .bench import Bench, tool
from .namespaces import address, place

PACKAGES = ["etcd-server", "etcd-client", "libnghttp2-dev", "gcc", "libc6-dev"]
LABEL = "etcd, 3 members, put → five watchers"
MEMBERS = [1, 2, 3]
ASKED = {2: 2, 3: 3, 4: 1, 5: 2, 6: 3}


def measure(bench: Bench) -> None:
    bench.results.notes["etcd"] = packages.version("etcd-server")
    with bench.fresh():
        members = [_start(bench, member) for member in MEMBERS]
        _make_first_leader(bench)
        client = bench.native("etcd", "nghttp2")
        _latency(bench, client)
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


def _latency(bench: Bench, client: str) -> None:
    count = bench.options.samples_per_round()
    series = bench.results.latency("etcd", LABEL, "on 2 of 3 members")
    argv = [client, "latency", str(count), str(bench.options.interval_ms), *_clients()]
    bench.take_latency(series, argv, count, timeout=60 + count)


def _rate(bench: Bench, client: str, writers: int, edits: int) -> None:
    rate = bench.results.rate("etcd", LABEL, writers)
    bench.take_rate(rate, [client, "rate", str(edits), str(writers), *_clients()], timeout=120)
