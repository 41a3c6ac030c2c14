"""NFS version 4: ganesha on server 1, the file is written by a client there and read by clients on the five others.

Method: three ways to be a client. In user space without any cache (libnfs; the best NFS can do: each client asks the
server again every 0.5 ms), and the kernel's client with `noac` and with its default attribute cache. The kernel's client
needs a kernel that has it; without one, its rows are skipped with a loud line. A save by the kernel's clients is
noticed by reading every 0.2 ms, because inotify does not see changes that other machines make.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import files, packages
from .bench import Bench, tool
from .namespaces import SERVERS, address, enter, place

PACKAGES = ["nfs-ganesha", "nfs-ganesha-vfs", "nfs-common", "libnfs-dev", *files.PACKAGES]
REREAD_US = 500
KERNEL_NOAC = "NFS, ganesha, kernel clients, noac"
KERNEL_DEFAULT = "NFS, ganesha, kernel clients, default cache"
LOOK_US = 200

CONFIGURATION = """
NFS_CORE_PARAM {{
    Bind_addr = {address};
    Protocols = 4;
    Enable_UDP = false;
    Enable_NLM = false;
    Enable_RQUOTA = false;
}}
NFSV4 {{ Graceless = true; Minor_Versions = 0, 1, 2; RecoveryRoot = "{state}"; }}
EXPORT {{
    Export_Id = 1;
    Path = "{share}";
    Pseudo = "/share";
    Protocols = 4;
    Transports = TCP;
    Access_Type = RW;
    Squash = No_Root_Squash;
    SecType = sys;
    FSAL {{ Name = VFS; }}
}}
"""


def measure(bench: Bench) -> None:
    bench.results.notes["nfs-ganesha"] = packages.version("nfs-ganesha")
    with bench.fresh():
        daemon = _start_server(bench)
        _measure_without_cache(bench)
        bench.take_idle("nfs", "nfs-ganesha (the server alone)", [daemon.pid])
        _measure_kernel_clients(bench)


def _start_server(bench: Bench) -> subprocess.Popen[bytes]:
    room = bench.room(1, "ganesha")
    configuration = room / "ganesha.conf"
    share = bench.room(1, "share")
    configuration.write_text(CONFIGURATION.format(address=address(1), share=share, state=room))
    argv = [tool("ganesha.nfsd"), "-F", "-f", str(configuration), "-L", "STDERR", "-p", str(room / "pid")]
    daemon = bench.processes.start("ganesha", argv, server=1)
    bench.progress.phase("nfs: starting")
    bench.processes.wait_until("nfs: the server listens", lambda: ":2049" in _listening(bench), 30)
    return daemon


def _listening(bench: Bench) -> str:
    return bench.processes.run([tool("ss"), "-ltn"], server=1)


def _measure_without_cache(bench: Bench) -> None:
    series = bench.results.latency("nfs", "NFS, ganesha, clients without cache", "on the file server")
    count = bench.options.samples
    argv = [bench.native("nfs", "nfs"), str(count), str(bench.options.interval_ms), str(REREAD_US), "/share", "4"]
    bench.take_latency(series, [*argv, *map(place, SERVERS)], count, timeout=60 + count)


def _measure_kernel_clients(bench: Bench) -> None:
    labels = {"noac": KERNEL_NOAC, "": KERNEL_DEFAULT}
    if not _kernel_has_client():
        for label in labels.values():
            bench.skip(label, "this kernel has no NFS client (no 'nfs4' in /proc/filesystems)")
        return
    for option, label in labels.items():
        count = bench.options.slow_samples if option else max(1, bench.options.slow_samples // 5)
        with _mounts(bench, option) as folders:
            series = bench.results.latency("nfs", label, "on the file server")
            files.measure_saves(bench, series, folders, count, poll_us=LOOK_US, patience_each=65)


def _kernel_has_client() -> bool:
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["modprobe", "nfsv4"], capture_output=True, timeout=30, check=False)
    return "nfs4" in Path("/proc/filesystems").read_text(encoding="ascii").split()


@contextlib.contextmanager
def _mounts(bench: Bench, option: str) -> Iterator[list[Path]]:
    """The share mounted once per server, each mount made in the server's namespace."""
    folders = [bench.room(server, "mount") for server in SERVERS]
    options = ",".join(["vers=4.1", "proto=tcp", *([option] if option else [])])
    try:
        for server, folder in zip(SERVERS, folders, strict=True):
            bench.processes.run(["mount", "-t", "nfs4", "-o", options, f"{address(1)}:/share", str(folder)], server=server)
        yield folders
    finally:
        for server, folder in zip(SERVERS, folders, strict=True):
            subprocess.run([*enter(server), "umount", "-f", "-l", str(folder)], capture_output=True, timeout=30, check=False)
