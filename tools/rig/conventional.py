"""The paper's conventional method (its section 2 and Fig. 13) as the baseline of recovery: everything is on one NFS file server.

Method: the six servers, their services, their libvirtds and the client of the experiment; no p2pdb. On each host a manager (`manager.py`)
shares the management files through NFS (version 4, ganesha in the client's network, libnfs), and examines the hosts that the file
Operation says, in step with the others every 10 s (network 2 s, service 3 s, one failure counts). The system data of the virtual servers,
a saved state that plays the service already and its disk, are on the share and nowhere else; the host with the lowest load gets them with
nfs-cp, restores them, and announces the address. What a kernel's client would read through a mount is copied, and the disk's backing image
is on every host. Failures are made in the middle of an interval, as in the paper. `recovery of the function` is from certain to answering
(Figs. 14 and 15).
"""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from . import manager, packages, paper_group, recovery, starts
from .bench import LOGS, Bench
from .errors import RigError
from .paper_group import NETWORK_RATE, PaperGroup
from .recovery import CLIENT, SERVERS
from .virtual_machines import Guest, Libvirtd

# Whose virtual servers are prepared: those that fail.
TARGETS = [5, 6]
PROGRAM = Path(manager.__file__)


def measure(bench: Bench, runs: int, repeat: Callable[[str, int, int, Callable[[int], dict[str, float]]], None]) -> None:
    """With the machine's lock held; nothing where there is no file server. `repeat` is told name, runs, server and failure of each case."""
    packages.ensure([*paper_group.PROGRAMS, "iputils-ping"], bench.progress)
    with recovery._network(NETWORK_RATE), bench.fresh():
        share = starts.share_on(bench, CLIENT)
        if share is None:
            return
        group = Conventional(bench, share)
        try:
            group.start()
            for name, fail in group.papers_failures().items():
                repeat(f"{name}, conventional (NFS)", runs, TARGETS[0], fail)
        finally:
            group.stop()


class Conventional(PaperGroup):
    """The same servers, recovered by managers that share files."""

    def __init__(self, bench: Bench, share: Path) -> None:
        super().__init__(bench, "conventional")
        self._share = share
        self._settings = bench.work / "managers.json"
        self._managers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._libvirtds = {server: Libvirtd(self._bench, server) for server in SERVERS}
        for libvirtd in self._libvirtds.values():
            # Its first look at the emulator takes seconds; a host that keeps original servers has had it.
            libvirtd.virsh("domcapabilities", "--virttype", "qemu")
        hosts = {}
        for server, libvirtd in self._libvirtds.items():
            port, question = paper_group.QUESTIONS[server]
            hosts[f"S{server}"] = {
                "address": recovery._address(server), "service": recovery._service(server), "port": port, "question": question,
                "mac": _mac(server), "libvirt": libvirtd.uri, "machines": str(libvirtd.machines),
            }  # fmt: skip
        self._settings.write_text(json.dumps({"file_server": recovery._address(CLIENT), "hosts": hosts}))
        for server in TARGETS:
            self._bench.progress.phase(f"conventional: preparing the virtual server of S{server}")
            self._prepare(server)
        for server in SERVERS:
            self._start_service(server)

    def _prepare(self, server: int) -> None:
        """Installed and running once, with the address, while nobody else has it; then only the share has it."""
        card = f"<interface type='bridge'><source bridge='eth0'/><mac address='{_mac(server)}'/><model type='virtio'/></interface>"
        libvirtd = self._libvirtds[server]
        guest = Guest(self._bench, libvirtd, f"S{server}b", card)
        guest.cold()
        files, check, script = paper_group.procedure(server)
        lines = ["set -e"]
        for target, content in files.values():
            lines.append(f"mkdir -p {Path(target).parent}; echo {base64.b64encode(content.encode()).decode()} | base64 -d >{target}")
        lines += [script, check, f"ip address add {recovery._service(server)}/24 dev eth0", "ip link set eth0 up"]
        _run_in_guest(libvirtd, guest.name, "\n".join(lines))
        self.client(server).stop()
        guest.save()
        shutil.move(guest.state, self._share / f"{guest.name}.state")
        shutil.move(guest.disk, self._share / f"{guest.name}.qcow2")

    def _measure(self, servers: list[int], fail, mend) -> dict[str, float]:
        self._start_managers()
        clients = {server: self.client(server) for server in servers}
        for server, client in clients.items():
            client.wait(lambda page, server=server: page == f"S{server} itself", f"S{server} serves itself")
        manager.wait_for_moment(manager.INTERVAL_S // 2)
        if problem := (self._share / "Problem").read_text():
            raise RigError(f"a manager found a problem before there was one: {problem}")
        failed_ns = time.time_ns()
        fail()
        found: dict[str, float] = {}
        for server, client in clients.items():
            client.wait(lambda page, server=server: page == f"S{server} played", f"S{server} is played")
            for phase, value in self._story(server, failed_ns).items():
                found[phase] = max(found.get(phase, 0), value)
            found["outage (client)"] = max(found.get("outage (client)", 0), client.outage_ms(failed_ns, f"S{server} played"))
            client.stop()
        for process in self._managers:
            self._bench.processes.stop(process, grace=0.1)
        for server in servers:
            place = next(place for _, place in self._told("decided", server, failed_ns))
            self._libvirtds[int(place[1:])].virsh("destroy", f"S{server}b")
        mend()
        return found

    def _start_managers(self) -> None:
        """Anew, so that nothing of the run before is left; until the load of each is known."""
        program = ["python3", str(PROGRAM), str(self._settings)]
        self._bench.processes.run([*recovery._enter(SERVERS[0]), *program, "found"])
        self._managers = [
            self._bench.processes.start(f"manager-S{server}", [*recovery._enter(server), *program, f"S{server}"]) for server in SERVERS
        ]

        def know_all() -> bool:
            return len((self._share / "Condition").read_text().splitlines()) == len(SERVERS)

        self._bench.processes.wait_until("every server's load is known", know_all, 3 * manager.INTERVAL_S)

    def _story(self, server: int, failed_ns: int) -> dict[str, float]:
        """When the first manager said what of a server, in milliseconds since the failure."""

        def first(word: str) -> float:
            return (min(when_ns for when_ns, _ in self._told(word, server, failed_ns)) - failed_ns) / 1e6

        self._bench.processes.wait_until(
            f"S{server} answers its manager", lambda: bool(self._told("answering", server, failed_ns)), 20
        )
        certain, decided, answering = first("certain"), first("decided"), first("answering")
        return {"certain": certain, "decided": decided, "answering (log)": answering, recovery.FUNCTION: answering - certain}

    def _told(self, word: str, server: int, since_ns: int) -> list[tuple[int, str]]:
        """Moments and last words of the managers' log lines."""
        told = []
        for log in (self._bench.folder / LOGS).glob("manager-S*.log"):
            for line in log.read_text().splitlines():
                words = line.split()
                if words[1:3] == [word, f"S{server}"] and int(words[0]) > since_ns:
                    told.append((int(words[0]), words[-1]))
        return told


def _mac(server: int) -> str:
    return f"52:54:00:78:00:{50 + server:02x}"


def _run_in_guest(libvirtd: Libvirtd, name: str, script: str) -> None:
    def ask(command: str, **arguments: object) -> dict:
        return json.loads(libvirtd.virsh("qemu-agent-command", name, json.dumps({"execute": command, "arguments": arguments})))["return"]

    # Its output is not captured: the service that it starts would keep that open, and the agent would wait for the end of it.
    pid = ask("guest-exec", path="/bin/sh", **{"input-data": base64.b64encode(script.encode()).decode()})["pid"]
    deadline = time.monotonic() + 120
    while not (told := ask("guest-exec-status", pid=pid))["exited"]:
        if time.monotonic() > deadline:
            raise RigError(f"{name}: the installation did not end")
        time.sleep(0.1)
    if told["exitcode"] != 0:
        raise RigError(f"{name}: the installation ended with {told['exitcode']}")
