"""corosync: a closed process group (CPG) over all six servers; totally ordered messages, in memory only.

Method: one corosync in each namespace, knet transport without encryption, defaults otherwise. The client in C joins the
group once through each of the six. A sample ends when the five others have delivered the message. It is no storage:
nothing of it survives a power cut, so it is here as the bound for messages, not as an equal.
"""

import subprocess

from . import packages
from .bench import Bench, tool
from .namespaces import SERVERS, address, place

PACKAGES = ["corosync", "libcpg-dev", "libcorosync-common-dev", "gcc", "libc6-dev"]
LABEL = "corosync CPG, multicast → five members"

CONFIGURATION = """
totem {{
  version: 2
  cluster_name: bench
  transport: knet
  crypto_cipher: none
  crypto_hash: none
}}
quorum {{
  provider: corosync_votequorum
}}
system {{
  state_dir: {state}
}}
logging {{
  to_stderr: yes
  to_syslog: no
  to_logfile: no
}}
nodelist {{
{nodes}
}}
"""


def measure(bench: Bench) -> None:
    bench.results.notes["corosync"] = packages.version("corosync")
    with bench.fresh():
        members = [_start(bench, server) for server in SERVERS]
        client = bench.native("cpg", "cpg")
        _wait_for_group(bench)
        _latency(bench, client)
        _rate(bench, client, 1, bench.options.edits_one_writer)
        _rate(bench, client, 32, bench.options.edits_many_writers)
        bench.take_idle("corosync", LABEL, [member.pid for member in members])


def _start(bench: Bench, server: int) -> subprocess.Popen[bytes]:
    nodes = "\n".join(f"  node {{\n    nodeid: {one}\n    ring0_addr: {address(one)}\n  }}" for one in SERVERS)
    configuration = bench.room(server, "corosync") / "corosync.conf"
    configuration.write_text(CONFIGURATION.format(state=configuration.parent, nodes=nodes))
    # Its process-id file has a fixed path: a /run of its own lets six run side by side.
    inside = f'mount -t tmpfs tmpfs /run && exec {tool("corosync")} -f -c "$1"'
    argv = ["unshare", "--mount", "sh", "-c", inside, "sh", str(configuration)]
    return bench.processes.start(f"corosync-{server}", argv, server=server)


def _wait_for_group(bench: Bench) -> None:
    bench.progress.phase("corosync: starting")
    quorum = tool("corosync-quorumtool")
    bench.processes.wait_until("corosync: six members", lambda: _members(bench, quorum) == len(SERVERS), 60)


def _members(bench: Bench, quorum: str) -> int:
    """How many members server 1 sees."""
    text = bench.processes.answer([quorum, "-l", "-i"], server=1) or ""
    return sum(address(server) in text for server in SERVERS)


def _latency(bench: Bench, client: str) -> None:
    count = bench.options.samples_per_round()
    series = bench.results.latency("corosync", LABEL, "memory only")
    argv = [client, "latency", str(count), str(bench.options.interval_ms), *map(place, SERVERS)]
    bench.take_latency(series, argv, count, timeout=60 + count)


def _rate(bench: Bench, client: str, writers: int, edits: int) -> None:
    rate = bench.results.rate("corosync", LABEL, writers)
    bench.take_rate(rate, [client, "rate", str(edits), str(writers), *map(place, SERVERS)], timeout=120)
