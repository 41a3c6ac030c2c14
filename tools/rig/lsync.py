"""lsyncd + rsync: server 1 watches its folder and calls rsync for each of the five others.

Method: an rsync daemon on servers 2 to 6, one lsyncd on server 1 with one `default.rsync` rule per target. Its delay is
measured at 0 (the best it can do), 1 s and 15 s (Debian's and lsyncd's default). Only one direction is set up; two-way
editing would need one lsyncd per server and would still overwrite concurrent edits.
"""

from . import files, packages
from .bench import Bench, tool
from .namespaces import SERVERS, address

PACKAGES = ["lsyncd", "rsync", *files.PACKAGES]
PORT = 8730

RSYNC = """
use chroot = no
uid = root
gid = root
port = {port}
[share]
    path = {path}
    read only = no
"""

LSYNCD = """
settings {{ nodaemon = true, inotifyMode = "CloseWrite or Modify" }}
{rules}
"""

RULE = """
sync {{ default.rsync, source = "{source}", target = "rsync://{address}:{port}/share", delay = {delay},
    rsync = {{ binary = "{rsync}", archive = true }} }}
"""


def measure(bench: Bench) -> None:
    bench.results.notes["lsyncd"] = packages.version("lsyncd")
    bench.results.notes["rsync"] = packages.version("rsync")
    slow = bench.options.slow_samples
    for delay, count in ((0, 2 * slow), (1, slow), (15, max(1, slow // 5))):
        with bench.fresh():
            _measure_delay(bench, delay, count)


def _measure_delay(bench: Bench, delay: int, count: int) -> None:
    folders = [bench.room(server, "share") for server in SERVERS]
    for server in SERVERS[1:]:
        _start_rsync(bench, server)
    _start_lsyncd(bench, delay)
    default = " (default)" if delay == 15 else ""
    series = bench.results.latency("lsyncd", f"lsyncd + rsync, delay {delay} s{default}", "not synced")
    files.measure_saves(bench, series, folders, count, patience_each=delay + 5)


def _start_rsync(bench: Bench, server: int) -> None:
    configuration = bench.room(server) / "rsyncd.conf"
    configuration.write_text(RSYNC.format(port=PORT, path=bench.room(server, "share")))
    argv = [tool("rsync"), "--daemon", "--no-detach", f"--address={address(server)}", f"--config={configuration}"]
    bench.processes.start(f"rsync-{server}", argv, server=server)


def _start_lsyncd(bench: Bench, delay: int) -> None:
    source, rsync = bench.room(1, "share"), tool("rsync")
    rules = [
        RULE.format(source=source, address=address(server), port=PORT, delay=delay, rsync=rsync) for server in SERVERS[1:]
    ]
    configuration = bench.room(1) / "lsyncd.lua"
    configuration.write_text(LSYNCD.format(rules="".join(rules)))
    bench.processes.start("lsyncd", [tool("lsyncd"), str(configuration)], server=1)
