"""One management server of the paper's conventional method: `manager.py CONFIGURATION HOST`; `manager.py CONFIGURATION found` writes the
management files anew.

Every file is on the NFS share, and is read and written with libnfs: Group (who is there), Operation (who manages whom, made from Group),
Problem (`---, S5, ---`, then `S5b, S5, S2`), Condition (the load of each server), and the lock file, which whoever edits must have made. Of
the two managers of a target the one that gets the lock first recovers it. A log line is `NANOSECONDS WORD SERVER ...`.
"""

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

INTERVAL_S = 10
# Where in the interval load is examined; neither is near its middle, where failures are made.
LOAD_S = (2, 7)
NETWORK_S = 2
SERVICE_S = 3
ORDERS_PORT = 7500
NETWORK_BYTES_S = 125_000_000
READ_BYTES = 65536


def log(*words: str) -> None:
    print(time.time_ns(), *words, flush=True)


def operation(group: list[str]) -> list[str]:
    """The predecessor manages with priority 1, the successor with priority 2."""
    rows = []
    for index, target in enumerate(group):
        rows += [f"P1, {group[index - 1]}, {target}", f"P2, {group[(index + 1) % len(group)]}, {target}"]
    return rows


class Share:
    """The management files."""

    def __init__(self, libnfs: ctypes.CDLL, nfs: ctypes.c_void_p) -> None:
        self._libnfs, self._nfs = libnfs, nfs

    def call(self, name: str, *arguments: object) -> int:
        result = getattr(self._libnfs, f"nfs_{name}")(self._nfs, *arguments)
        if result < 0:
            raise OSError(-result, f"nfs {name}: {(self._libnfs.nfs_get_error(self._nfs) or b'').decode()}")
        return result

    def read(self, name: str) -> list[str]:
        text = ctypes.create_string_buffer(READ_BYTES)
        with self._open(name, os.O_RDONLY) as file:
            size = self.call("read", file, ctypes.c_uint64(READ_BYTES), text)
        return text.raw[:size].decode().splitlines()

    def write(self, name: str, rows: list[str]) -> None:
        """At once, because whoever only reads has no lock."""
        text = "".join(f"{row}\n" for row in rows).encode()
        with self._open("new", os.O_CREAT | os.O_TRUNC | os.O_WRONLY) as file:
            self.call("write", file, ctypes.c_uint64(len(text)), text)
        self.call("rename", b"/new", f"/{name}".encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        while True:
            with contextlib.suppress(FileExistsError), self._open("lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY):
                break
            time.sleep(0.01)
        try:
            yield
        finally:
            self.call("unlink", b"/lock")

    @contextlib.contextmanager
    def _open(self, name: str, how: int) -> Iterator[ctypes.c_void_p]:
        file = ctypes.c_void_p()
        self.call("open", f"/{name}".encode(), how, ctypes.byref(file))
        try:
            yield file
        finally:
            self.call("close", file)


@contextlib.contextmanager
def mounted(server: str) -> Iterator[Share]:
    # The order of arguments is another one in later versions.
    libnfs = ctypes.CDLL("libnfs.so.13")
    libnfs.nfs_init_context.restype = ctypes.c_void_p
    libnfs.nfs_get_error.restype = ctypes.c_char_p
    nfs = ctypes.c_void_p(libnfs.nfs_init_context())
    try:
        libnfs.nfs_set_version(nfs, 4)
        libnfs.nfs_set_autoreconnect(nfs, 0)
        libnfs.nfs_set_timeout(nfs, 2000)
        # Two clients with one name would end each other's open files.
        libnfs.nfs4_set_client_name(nfs, uuid.uuid4().hex.encode())
        share = Share(libnfs, nfs)
        share.call("mount", server.encode(), b"/share")
        yield share
    finally:
        libnfs.nfs_destroy_context(nfs)


def found(settings: dict) -> None:
    group = list(settings["hosts"])
    with mounted(settings["file_server"]) as share:
        for name, rows in (("Group", group), ("Operation", operation(group)), ("Problem", []), ("Condition", [])):
            share.write(name, rows)


class Manager:
    def __init__(self, settings: dict, name: str) -> None:
        self._file_server, self._hosts = settings["file_server"], settings["hosts"]
        self._name = name
        self._own = self._hosts[name]

    def run(self) -> None:
        subprocess.run(["ip", "address", "replace", f"{self._own['service']}/24", "dev", "eth0"], check=True)
        announce(self._own["service"])
        for work in (self._obey, self._examine_load):
            threading.Thread(target=work, daemon=True).start()
        while True:
            wait_for_moment(0)
            try:
                with mounted(self._file_server) as share:
                    rows = [row.split(", ") for row in share.read("Operation")]
            except OSError as error:
                log("unreachable", "file server", str(error))
                continue
            for _, manager, target in rows:
                if manager == self._name:
                    threading.Thread(target=self._examine, args=(target,), daemon=True).start()

    # ---- monitoring and recovery ----

    def _examine(self, target: str) -> None:
        ping = ["ping", "-q", "-c", "1", "-w", str(NETWORK_S), self._hosts[target]["address"]]
        connected = subprocess.run(ping, capture_output=True, check=False).returncode == 0
        if connected and self._answers(target, SERVICE_S):
            return
        log("certain", target, "service" if connected else "network")
        place = self._decide(target)
        if place is None:
            return
        log("decided", target, place)
        if connected:
            self._order(target, "leave")
        self._order(place, "play", target)
        while not self._answers(target, 0.2):
            time.sleep(0.01)
        log("answering", target)

    def _answers(self, target: str, patience_s: float) -> bool:
        host = self._hosts[target]
        try:
            with socket.create_connection((host["service"], host["port"]), patience_s) as link:
                link.settimeout(patience_s)
                link.sendall(host["question"].encode())
                return bool(link.recv(1))
        except OSError:
            return False

    def _decide(self, target: str) -> str | None:
        """Where the target is played, written down; nowhere when that is not for this manager to say."""
        with mounted(self._file_server) as share, share.locked():
            group, problem = share.read("Group"), share.read("Problem")
            if self._name not in group or target not in group:
                return None
            group.remove(target)
            share.write("Problem", [*problem, f"---, {target}, ---"])
            share.write("Group", group)
            share.write("Operation", operation(group))
            busy = [row.split(", ")[2] for row in problem]
            choices = []
            for name, load, written_s in (row.split(", ") for row in share.read("Condition")):
                # Whoever could not write its load in this interval cannot be reached.
                if name in group and time.time() - float(written_s) < INTERVAL_S:
                    choices.append((busy.count(name), float(load), name))
            place = min(choices)[2]
            share.write("Problem", [*problem, f"{target}b, {target}, {place}"])
            return place

    # ---- orders from one management server to another ----

    def _order(self, host: str, *words: str) -> None:
        with socket.create_connection((self._hosts[host]["address"], ORDERS_PORT), NETWORK_S) as link:
            link.settimeout(60)
            link.sendall(" ".join(words).encode())
            told = link.recv(1024).decode()
        if told != "done":
            log("failed", host, told)

    def _obey(self) -> None:
        with socket.create_server((self._own["address"], ORDERS_PORT)) as listening:
            while True:
                link, _ = listening.accept()
                threading.Thread(target=self._carry_out, args=(link,), daemon=True).start()

    def _carry_out(self, link: socket.socket) -> None:
        with link:
            order, *rest = link.recv(1024).decode().split()
            try:
                self._play(*rest) if order == "play" else self._leave()
                told = "done"
            except (OSError, subprocess.SubprocessError) as error:
                told = f"{error} {getattr(error, 'stderr', None) or ''}"
            link.sendall(told.encode())

    def _leave(self) -> None:
        """What the restart of a server begins with."""
        subprocess.run(["ip", "address", "delete", f"{self._own['service']}/24", "dev", "eth0"], check=True, capture_output=True)

    def _play(self, target: str) -> None:
        folder = Path(self._own["machines"])
        for file in (f"{target}b.qcow2", f"{target}b.state"):
            url = f"nfs://{self._file_server}/share/{file}?version=4"
            (folder / file).unlink(missing_ok=True)
            subprocess.run(["nfs-cp", url, str(folder / file)], check=True, capture_output=True)
        log("fetched", target)
        restore = ["virsh", "-q", "-c", self._own["libvirt"], "restore", str(folder / f"{target}b.state")]
        subprocess.run(restore, check=True, capture_output=True)
        log("restored", target)
        announce(self._hosts[target]["service"], self._hosts[target]["mac"])

    # ---- load ----

    def _examine_load(self) -> None:
        """The scarcest of processors, memory and network, as shares: two samples averaged, and the trend goes on."""
        before = None
        while True:
            samples = []
            for moment_s in LOAD_S:
                wait_for_moment(moment_s)
                samples.append(load_sample())
            average = [sum(pair) / len(samples) for pair in zip(*samples, strict=True)]
            predicted = max(now + (now - then) for now, then in zip(average, before or average, strict=True))
            before = average
            with contextlib.suppress(OSError), mounted(self._file_server) as share, share.locked():
                others = [row for row in share.read("Condition") if not row.startswith(f"{self._name}, ")]
                share.write("Condition", [*others, f"{self._name}, {predicted:.4f}, {time.time():.2f}"])


def wait_for_moment(second: int) -> None:
    """Of the interval, which is the same one for everybody."""
    time.sleep((second - time.time()) % INTERVAL_S or INTERVAL_S)


def load_sample() -> tuple[float, float, float]:
    """During one second."""

    def read() -> tuple[int, int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        card = Path("/proc/self/net/dev").read_text().split("uplink:")[1].split()
        return sum(ticks), ticks[3] + ticks[4], int(card[0]) + int(card[8])

    first = read()
    time.sleep(1)
    ticks, idle, network = (after - before for before, after in zip(first, read(), strict=True))
    memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    return 1 - idle / max(1, ticks), 1 - int(memory["MemAvailable:"]) / int(memory["MemTotal:"]), network / NETWORK_BYTES_S


def announce(address: str, mac: str | None = None) -> None:
    """Tells everybody on the network who has the address, this host or its guest: gratuitous ARP, as a request and as a reply."""
    ip, everybody = socket.inet_aton(address), b"\xff" * 6
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(("eth0", 0))
        hardware = bytes.fromhex(mac.replace(":", "")) if mac else link.getsockname()[4]
        for kind in (1, 2):
            link.send(everybody + hardware + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, kind) + hardware + ip + everybody + ip)


if __name__ == "__main__":
    configuration = json.loads(Path(sys.argv[1]).read_text())
    found(configuration) if sys.argv[2] == "found" else Manager(configuration, sys.argv[2]).run()
