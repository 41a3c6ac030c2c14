"""Pacemaker and corosync, the usual high availability of Debian, failing over in the network of `tools/bench recovery`.

Method: three hosts, as a majority needs them, each with corosync and Pacemaker in namespaces of its own. A group of IPaddr2 and nginx
(the agents of the package resource-agents) runs on one of them; no host is preferred, no fencing device is there. A client asks for
a page every 20 ms; its outage is counted from the failure to the first page after the first question without answer. Failures: the web
server is killed, and Pacemaker starts it again in its place, or, with migration-threshold=1, on another host; the machine: link down,
every process killed. Two settings: the defaults with a monitor every second, and as short as is sensible: token 300 ms, monitor
every 200 ms.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from . import packages, recovery
from .bench import Bench, tool
from .recovery import Case, Client

PACKAGES = ["pacemaker", "corosync", "pacemaker-cli-utils", "resource-agents", "nginx-light", "procps"]
HOSTS = [1, 2, 3]
ADDRESS = "10.78.0.99"
REST_S = 3

COROSYNC = """totem {{
  version: 2
  cluster_name: rig
  transport: knet
  crypto_cipher: none
  crypto_hash: none
{totem}
}}
quorum {{
  provider: corosync_votequorum
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

# The paths of both are fixed: every host has them for itself. The shell stays as the first process and buries the dead, as init does.
INSIDE = """set -e
hostname "$2"
for place in /run /dev/shm; do mount -t tmpfs tmpfs "$place"; done
for place in /etc/corosync /var/lib/corosync /var/lib/pacemaker /var/log/pacemaker; do mount --bind "$1$place" "$place"; done
mkdir -p /run/lock
corosync -f &
until corosync-quorumtool -s >/dev/null 2>&1; do sleep 0.1; done
pacemakerd &
wait
"""

CIB = """<cib validate-with="pacemaker-3.0" epoch="1" num_updates="0" admin_epoch="0"><configuration>
<crm_config><cluster_property_set id="options">
<nvpair id="stonith" name="stonith-enabled" value="false"/>
</cluster_property_set></crm_config>
<nodes/>
<resources>{resources}</resources>
<constraints/>
<rsc_defaults><meta_attributes id="defaults">
<nvpair id="stickiness" name="resource-stickiness" value="1"/>
</meta_attributes></rsc_defaults>
</configuration><status/></cib>
"""


@dataclass(frozen=True)
class Settings:
    name: str
    totem: str
    monitor: str


SETTINGS = [
    Settings("defaults", "", "1s"),
    Settings("tuned", "  token: 300\n  token_coefficient: 0", "200ms"),
]


def measure(bench: Bench, runs: int) -> list[Case]:
    packages.ensure(PACKAGES, bench.progress)
    cases = []
    for settings in SETTINGS:
        with recovery._network(), bench.fresh():
            cluster = Cluster(bench, settings, _web(settings))
            cluster.start()
            client = Client(bench, ADDRESS, pause=0.02)
            cases.append(_repeat(bench, cluster, client, "service in its place", runs, cluster.kill_service))
            cluster.tool(1, "crm_attribute", "--type", "rsc_defaults", "--name", "migration-threshold", "--update", "1")
            cases.append(_repeat(bench, cluster, client, "service", runs, cluster.kill_service))
            cases.append(_repeat(bench, cluster, client, "machine", runs, cluster.power_off))
    return cases


def _repeat(bench: Bench, cluster: "Cluster", client: Client, failure: str, runs: int, fail) -> Case:
    case = Case(f"Pacemaker, {cluster.settings.name}: {failure}")
    for number in range(runs):
        bench.progress.phase(f"{case.name}: {number + 1} of {runs}")
        cluster.wait_rest()
        client.wait(lambda page: page != "nobody", "the client gets a page")
        holder = int(client.read()[-1][2].removeprefix("host "))
        failed_ns = time.time_ns()
        fail(holder)
        bench.processes.wait_until("the client gets a page again", lambda: _outage_ms(client, failed_ns) is not None, 120, pause=0.05)
        case.runs.append({"outage (client)": _outage_ms(client, failed_ns) or 0})
        cluster.mend(holder)
    return case


def _outage_ms(client: Client, failed_ns: int) -> float | None:
    """Until the first page that came after the first question without answer."""
    samples = [(ended, page) for _, ended, page in client.read() if ended > failed_ns]
    lost = next((number for number, (_, page) in enumerate(samples) if page == "nobody"), len(samples))
    return next(((ended - failed_ns) / 1e6 for ended, page in samples[lost:] if page != "nobody"), None)


class Cluster:
    """Three hosts with corosync and Pacemaker."""

    def __init__(self, bench: Bench, settings: Settings, resources: str) -> None:
        self.settings = settings
        self._bench = bench
        self._resources = resources
        self._hosts: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._bench.progress.phase(f"Pacemaker, {self.settings.name}: starting")
        for host in HOSTS:
            self._lay_out(host)
            self._power_on(host)
        self.wait_rest()

    def tool(self, host: int, *words: str) -> str:
        """A tool of Pacemaker on a host."""
        return self._bench.processes.run([*self._enter(host), *words], timeout=90)

    def wait_rest(self) -> None:
        """All hosts are there, and nothing is to be done."""
        self._bench.processes.wait_until("the cluster is at rest", self._is_at_rest, 120)
        self.tool(HOSTS[0], "crm_resource", "--wait")
        time.sleep(REST_S)

    def kill_service(self, host: int) -> None:
        for pid in self._pids(host):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "nginx":
                    os.kill(pid, signal.SIGKILL)

    def power_off(self, host: int) -> None:
        recovery._plug(host, "down")
        process = self._hosts.pop(host)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._bench.processes.stop(process)
        for pid in self._pids(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def mend(self, host: int) -> None:
        if host not in self._hosts:
            recovery._ip("-n", recovery._space(host), "address", "flush", "dev", "eth0", "to", ADDRESS)
            recovery._plug(host, "up")
            self._power_on(host)
        self.wait_rest()
        self.tool(HOSTS[0], "crm_resource", "--cleanup")

    def _lay_out(self, host: int) -> None:
        """What the host has on its disk."""
        room = self._bench.room(host)
        for place in ("etc/corosync", "var/lib/corosync", "var/lib/pacemaker", "var/log/pacemaker", "pages"):
            (room / place).mkdir(parents=True)
        nodes = "\n".join(
            f"  node {{\n    nodeid: {one}\n    name: host{one}\n    ring0_addr: {recovery._address(one)}\n  }}" for one in HOSTS
        )
        (room / "etc/corosync/corosync.conf").write_text(COROSYNC.format(totem=self.settings.totem, nodes=nodes))
        for place in ("blackbox", "cib", "cores", "pengine"):
            (room / "var/lib/pacemaker" / place).mkdir(mode=0o750)
        (room / "var/lib/pacemaker/cib/cib.xml").write_text(CIB.format(resources=self._resources))
        (room / "var/lib/pacemaker/cib/cib.xml").chmod(0o600)
        for path in [room / "var/log/pacemaker", *(room / "var/lib/pacemaker").rglob("*")]:
            shutil.chown(path, "hacluster", "haclient")
        (room / "pages/index.html").write_text(f"host {host}\n")
        (room / "etc/corosync/nginx.conf").write_text(
            # A line begins with what the agent reads, too.
            "pid /run/nginx.pid;\nerror_log /run/nginx.log; events {}\n"
            f"http {{ access_log off; server {{\nlisten 80;\nroot {room}/pages;\n}} }}\n"
        )

    def _power_on(self, host: int) -> None:
        argv = [*recovery._enter(host), "unshare", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        argv += ["sh", "-c", INSIDE, "sh", str(self._bench.room(host)), f"host{host}"]
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        self._hosts[host] = self._bench.processes.start(f"pacemaker-{host}", argv, environment={"PATH": path})

    def _enter(self, host: int) -> list[str]:
        outer = self._hosts[host].pid
        first = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0]
        return ["nsenter", "--target", first, "--net", "--mount", "--ipc", "--uts", "--pid", "--"]

    def _pids(self, host: int) -> list[int]:
        return [int(pid) for pid in recovery._ip("netns", "pids", recovery._space(host)).split()]

    def _is_at_rest(self) -> bool:
        for host in HOSTS:
            shown = self._bench.processes.answer([*self._enter(host), tool("crm_mon"), "--one-shot", "--output-as=xml"])
            if shown is None:
                return False
            tree = ElementTree.fromstring(shown)
            online = [node for node in tree.findall("nodes/node") if node.get("online") == "true" and node.get("pending") == "false"]
            resources = tree.findall(".//resource")
            if len(online) < len(HOSTS) or not resources or any(one.get("role") != "Started" for one in resources):
                return False
        return True


def _web(settings: Settings) -> str:
    """The address, then the web server."""
    # A status page that is named spares the agent a search with perl at every call.
    values = {"configfile": "/etc/corosync/nginx.conf", "status10url": "http://127.0.0.1/"}
    members = _primitive("address", "IPaddr2", {"ip": ADDRESS, "cidr_netmask": "24", "nic": "eth0"}, settings.monitor)
    return f'<group id="service">{members}{_primitive("web", "nginx", values, settings.monitor)}</group>'


def _primitive(name: str, agent: str, values: dict[str, str], monitor: str) -> str:
    pairs = "".join(f'<nvpair id="{name}-{key}" name="{key}" value="{value}"/>' for key, value in values.items())
    return (
        f'<primitive id="{name}" class="ocf" provider="heartbeat" type="{agent}">'
        f'<instance_attributes id="{name}-values">{pairs}</instance_attributes>'
        f'<operations><op id="{name}-monitor" name="monitor" interval="{monitor}" timeout="20s"/></operations></primitive>'
    )
