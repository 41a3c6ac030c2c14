"""Six network namespaces on one bridge: the six servers of a measurement.

`p2pdb-1` .. `p2pdb-6` have the addresses 10.77.0.1 .. 10.77.0.6; the bridge lives in a seventh namespace,
`p2pdb-bridge`. Nothing of it touches the machine's own network, so no packet of a measurement can leave.

One rig at a time: a lock on its state folder says so. A file in it, written before the first namespace is made, says that the
namespaces are the rig's own; only then are leftovers of a killed run removed, with the processes inside them.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import RigError

SERVERS = [1, 2, 3, 4, 5, 6]
BRIDGE = "p2pdb-bridge"
STATE = Path("/run/p2pdb-rig")


def name(server: int) -> str:
    return f"p2pdb-{server}"


def address(server: int) -> str:
    return f"10.77.0.{server}"


def place(server: int) -> str:
    """A server as the C clients take it: namespace and address."""
    return f"{name(server)}@{address(server)}"


def enter(server: int) -> list[str]:
    """The front of a command that is to run on `server`."""
    return ["nsenter", f"--net=/run/netns/{name(server)}", "--"]


@contextlib.contextmanager
def six_servers() -> Iterator[None]:
    """The namespaces for the time of the `with` block; removed at its end, however it ends."""
    if os.geteuid() != 0:
        raise RigError("network namespaces need root: run 'sudo tools/bench ...'")
    with machine_lock():
        clean()
        try:
            _make()
            yield
        finally:
            clean()


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Only one rig on this machine has the namespaces."""
    STATE.mkdir(exist_ok=True)
    with locked(STATE):
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder; refuses when another run holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RigError(f"another measurement is running (it has locked {folder}): wait for it to end") from error
        yield
    finally:
        os.close(descriptor)


def clean() -> None:
    """Removes the rig's namespaces and ends what still runs inside them; refuses namespaces it did not make."""
    present = [space for space in _all_names() if Path("/run/netns", space).exists()]
    owned = STATE / "owned"
    if present and not owned.exists():
        raise RigError(
            f"the namespaces {' '.join(present)} exist and were not made by this rig: "
            "end what uses them and remove them with 'ip netns del NAME'"
        )
    for space in present:
        _end_processes_in(space)
        _ip("netns", "del", space)
    owned.unlink(missing_ok=True)


def _all_names() -> list[str]:
    return [*map(name, SERVERS), BRIDGE]


def _make() -> None:
    (STATE / "owned").write_text("the namespaces p2pdb-* were made by tools/bench\n")
    _ip("netns", "add", BRIDGE)
    _ip("-n", BRIDGE, "link", "add", "bridge", "type", "bridge")
    _ip("-n", BRIDGE, "link", "set", "bridge", "up")
    for server in SERVERS:
        space, port = name(server), f"port{server}"
        _ip("netns", "add", space)
        _ip("-n", BRIDGE, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", BRIDGE, "link", "set", port, "master", "bridge", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{address(server)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")


def _end_processes_in(space: str) -> None:
    for _ in range(50):
        pids = [int(pid) for pid in _ip("netns", "pids", space).split()]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    raise RigError(f"processes in namespace {space} do not end: see 'ip netns pids {space}'")


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    if result.returncode != 0:
        raise RigError(f"'ip {' '.join(arguments)}' failed: {result.stderr.strip()}")
    return result.stdout
