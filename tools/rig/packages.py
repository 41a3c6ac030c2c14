"""Installs the Debian packages a measurement needs, when they are missing.

Method: `dpkg-query` says what is missing; `apt-get install --no-install-recommends` brings it. No service of an
installed package is started: while apt runs, a `policy-rc.d` forbids it, and where systemd runs the units of what was
newly installed are disabled, so that the benchmark leaves no daemon behind.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .errors import RigError, Skipped
from .progress import Progress

POLICY = Path("/usr/sbin/policy-rc.d")

UNITS = {
    "corosync": ["corosync.service"],
    "etcd-server": ["etcd.service"],
    "keepalived": ["keepalived.service"],
    "lsyncd": ["lsyncd.service"],
    "nfs-common": ["nfs-client.target"],
    "nfs-ganesha": ["nfs-ganesha.service"],
    "pacemaker": ["pacemaker.service"],
    "rpcbind": ["rpcbind.service", "rpcbind.socket"],
    "rsync": ["rsync.service"],
}


def ensure(wanted: list[str], progress: Progress) -> None:
    """Installs what is missing of `wanted`; raises `Skipped` when a package cannot be had."""
    missing = [name for name in wanted if not _installed(name)]
    if not missing:
        return
    progress.loud(f"installing: {' '.join(missing)}")
    before = {name for name in UNITS if _installed(name)}
    with _no_service_starts():
        result = _apt_install(missing)
        if result.returncode != 0:
            subprocess.run(["apt-get", "update"], capture_output=True, timeout=300, check=False)
            result = _apt_install(missing)
    if result.returncode != 0:
        raise Skipped(f"apt-get install {' '.join(missing)} failed: {_last_line(result.stderr)}")
    _disable_units({name for name in UNITS if _installed(name)} - before)


def version(name: str) -> str:
    """The installed version of a package, or '-'."""
    result = subprocess.run(
        ["dpkg-query", "-W", "-f=${Version}", name], capture_output=True, text=True, timeout=30, check=False
    )
    return result.stdout.strip() or "-"


def _installed(name: str) -> bool:
    result = subprocess.run(
        ["dpkg-query", "-W", "-f=${db:Status-Abbrev}", name], capture_output=True, text=True, timeout=30, check=False
    )
    return result.stdout.startswith("ii")


def _apt_install(names: list[str]) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0:
        raise RigError(f"packages are missing ({' '.join(names)}) and installing needs root: run 'sudo tools/bench ...'")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    argv = ["apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *names]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=900, check=False)


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def _disable_units(names: set[str]) -> None:
    if not Path("/run/systemd/system").is_dir():
        return
    for name in sorted(names):
        subprocess.run(["systemctl", "disable", "--now", *UNITS[name]], capture_output=True, timeout=60, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
