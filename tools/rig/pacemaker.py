"""Pacemaker and corosync, the usual high availability of Debian, failing over in the network of `tools/bench recovery`.

Method: three hosts, as a majority needs them, each with corosync and Pacemaker in namespaces of its own. A group of IPaddr2 and nginx
(the agents of the package resource-agents) runs on one of them; no host is preferred, no fencing device is there. A client asks for
a page every 20 ms; its outage is counted from the failure to the first page after the first question without answer. Failures: the web
server is killed, and Pacemaker starts it again in its place, or, with migration-threshold=1, on another host; the machine: link down,
every process killed. Two settings: the defaults with a monitor every second, and as short as is sensible: token 300 ms, monitor
every 200 ms.

Then, with the short settings, the agent VirtualDomain and a virtual machine of the image `full` that serves the page at the same address.
Its disk and, where it is restored, its saved state lie ready on every host, as of a perfect replica. Failures: QEMU is killed; the machine.
"""

import contextlib
import json
import os
import random
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
from .virtual_machines import IMAGE, MEMORY_MIB, Libvirtd

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
for place in "$1"/etc/* "$1"/var/*/*; do mount --bind "$place" "${place#"$1"}"; done
mkdir -p /run/lock
corosync -f &
until corosync-quorumtool -s >/dev/null 2>&1; do sleep 0.1; done
pacemakerd &
trap exit TERM
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

# Where each libvirtd has its virtual machine.
GUEST = "/var/lib/libvirt/guest"
# The service starts with the system, which has no other way of starting one.
INSTALL = f"""set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /var/www
echo host 9 >/var/www/index.html
cat >/etc/nginx/nginx.conf <<END
user www-data; pid /run/nginx.pid; error_log stderr; events {{}}
http {{ access_log off; server {{ listen 80; root /var/www; }} }}
END
cat >/usr/lib/p2pdb/service <<END
export PATH=$PATH
mkdir -p /var/log/nginx /var/lib/nginx
ip address add {ADDRESS}/24 dev eth0
ip link set eth0 up
nginx
END
sed -i 's|^installer &|sh /usr/lib/p2pdb/service\\n&|' /usr/lib/p2pdb/run
sync
sh /usr/lib/p2pdb/service
"""


@dataclass(frozen=True)
class Settings:
    name: str
    totem: str
    monitor: str


SETTINGS = [
    Settings("defaults", "", "1s"),
    # knet looks after its links every 200 ms; with a patience taken from such a token it takes living links for dead.
    Settings(
        "tuned",
        "  token: 300\n  token_coefficient: 0\n"
        "  interface {\n    linknumber: 0\n    knet_ping_interval: 250\n    knet_ping_timeout: 1500\n  }",
        "200ms",
    ),
]


def measure(bench: Bench, runs: int) -> list[Case]:
    packages.ensure(PACKAGES, bench.progress)
    cases = []
    for settings in SETTINGS:
        with recovery._network(), bench.fresh():
            cluster = Cluster(bench, settings)
            cluster.start()
            cases.append(_repeat(bench, cluster, "service in its place", runs, cluster.kill_service))
            cluster.move_at_first_failure()
            cases.append(_repeat(bench, cluster, "service", runs, cluster.kill_service))
            cases.append(_repeat(bench, cluster, "machine", runs, cluster.power_off))
    if not (IMAGE / "image.json").exists():
        bench.skip("Pacemaker with virtual machines", "there is no image; build it with 'tools/image full'")
        return cases
    with recovery._network(), bench.fresh():
        guests = Guests(bench, SETTINGS[-1])
        try:
            guests.make_golden()
            guests.start()
            guests.move_at_first_failure()
            for way in ("from cold", "restored"):
                if way == "restored":
                    guests.keep_states()
                cases.append(_repeat(bench, guests, f"virtual machine, {way}", runs, guests.kill_service))
                cases.append(_repeat(bench, guests, f"machine, {way}", runs, guests.power_off))
        finally:
            guests.stop()
    return cases


def _repeat(bench: Bench, cluster: "Cluster", failure: str, runs: int, fail) -> Case:
    case = Case(f"Pacemaker, {cluster.settings.name}: {failure}")
    for number in range(runs):
        bench.progress.phase(f"{case.name}: {number + 1} of {runs}")
        client = Client(bench, ADDRESS, pause=0.02)
        holder = cluster.holder()
        failed_ns = time.time_ns()
        fail(holder)
        bench.processes.wait_until("the client gets a page again", lambda: _outage_ms(client, failed_ns) is not None, 300)
        case.runs.append({"outage (client)": _outage_ms(client, failed_ns) or 0})
        client.stop()
        cluster.mend(holder)
    return case


def _outage_ms(client: Client, failed_ns: int) -> float | None:
    """Until the first page that came after the first question without answer."""
    samples = [(ended, page) for _, ended, page in client.read() if ended > failed_ns]
    lost = next((number for number, (_, page) in enumerate(samples) if page == "nobody"), len(samples))
    return next(((ended - failed_ns) / 1e6 for ended, page in samples[lost:] if page != "nobody"), None)


class Cluster:
    """Three hosts with corosync and Pacemaker, and a web server at an address."""

    program = "nginx"

    def __init__(self, bench: Bench, settings: Settings) -> None:
        self.settings = settings
        self._bench = bench
        self._hosts: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._bench.progress.phase(f"Pacemaker, {self.settings.name}: starting")
        for host in HOSTS:
            self.lay_out(host)
            self.power_on(host)
        self._wait_rest()

    def move_at_first_failure(self) -> None:
        self._ask("crm_attribute", "--type", "rsc_defaults", "--name", "migration-threshold", "--update", "1")

    def holder(self) -> int:
        """The host on which the service is."""
        shown = self._ask("crm_mon", "--one-shot", "--output-as=xml")
        names = [node.get("name", "") for node in ElementTree.fromstring(shown).findall(".//resource/node")]
        return int(names[0].removeprefix("host"))

    def _wait_rest(self) -> None:
        """All hosts are there, no failure is remembered, and nothing is to be done."""
        self._bench.processes.wait_until("the cluster is at rest", self._is_at_rest, 120)
        self._ask("crm_resource", "--cleanup")
        self._ask("crm_resource", "--wait")
        # Not in step with the monitor, which has just begun anew.
        time.sleep(REST_S + random.random())

    def kill_service(self, host: int) -> None:
        for pid in self._pids(host):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == self.program:
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
            self.power_on(host)
        self._wait_rest()

    # ---- what a cluster with another service says otherwise ----

    def resources(self) -> str:
        """The address, then the web server."""
        monitor = self.settings.monitor
        # A status page that is named spares the agent a search with perl at every call.
        values = {"configfile": "/etc/corosync/nginx.conf", "status10url": "http://127.0.0.1/"}
        address = _primitive("address", "IPaddr2", {"ip": ADDRESS, "cidr_netmask": "24", "nic": "eth0"}, monitor)
        return f'<group id="service">{address}{_primitive("web", "nginx", values, monitor)}</group>'

    def environment(self, host: int) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    def lay_out(self, host: int) -> None:
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
        (room / "var/lib/pacemaker/cib/cib.xml").write_text(CIB.format(resources=self.resources()))
        (room / "var/lib/pacemaker/cib/cib.xml").chmod(0o600)
        for path in [room / "var/log/pacemaker", *(room / "var/lib/pacemaker").rglob("*")]:
            shutil.chown(path, "hacluster", "haclient")
        (room / "pages/index.html").write_text(f"host {host}\n")
        (room / "etc/corosync/nginx.conf").write_text(
            # A line begins with what the agent reads, too.
            "pid /run/nginx.pid;\nuser root; error_log /run/nginx.log; events {}\n"
            f"http {{ access_log off; server {{\nlisten 80;\nroot {room}/pages;\n}} }}\n"
        )

    def power_on(self, host: int) -> None:
        argv = [*recovery._enter(host), "unshare", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        argv += ["sh", "-c", INSIDE, "sh", str(self._bench.room(host)), f"host{host}"]
        self._hosts[host] = self._bench.processes.start(f"pacemaker-{host}", argv, environment=self.environment(host))
        self._bench.processes.wait_until(f"host {host} has its namespaces", lambda: self._first(host) is not None, 30, pause=0.02)

    def _ask(self, program: str, *words: str) -> str:
        """A tool of Pacemaker, on the first host."""
        return self._bench.processes.run([*self._enter(HOSTS[0]), tool(program), *words], timeout=90)

    def _enter(self, host: int) -> list[str]:
        return ["nsenter", "--target", str(self._first(host)), "--net", "--mount", "--ipc", "--uts", "--pid", "--"]

    def _first(self, host: int) -> str | None:
        """The first process inside."""
        outer = self._hosts[host].pid
        return next(iter(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()), None)

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


class Guests(Cluster):
    """Three hosts with a libvirtd each, and a virtual machine."""

    program = "qemu-system-x86"

    def __init__(self, bench: Bench, settings: Settings) -> None:
        super().__init__(bench, settings)
        self._golden = bench.work / "golden"
        self._libvirtds: dict[int, Libvirtd] = {}
        self._restores = False

    def make_golden(self) -> None:
        """A disk whose system serves the page after every boot, and a state in which it does."""
        self._bench.progress.phase("Pacemaker: a virtual machine with a service")
        self._golden.mkdir()
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(IMAGE / "disk.qcow2")]
        self._bench.processes.run([*disk, str(self._golden / "disk.qcow2")])
        (self._golden / "guest.xml").write_text(_definition())
        for host in HOSTS:
            recovery._ip("-n", recovery._space(host), "tuntap", "add", "tap0", "mode", "tap")
            recovery._ip("-n", recovery._space(host), "link", "set", "tap0", "master", "eth0", "up")
        self._start_libvirtd(1)
        libvirtd = self._libvirtds[1]
        libvirtd.virsh("create", str(self._golden / "guest.xml"))
        self._bench.processes.wait_until("the virtual machine answers", lambda: libvirtd.answers("guest"), 300)
        install = {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", INSTALL]}}
        libvirtd.virsh("qemu-agent-command", "guest", json.dumps(install))
        Client(self._bench, ADDRESS, pause=0.02).stop()
        libvirtd.virsh("save", "guest", f"{GUEST}/guest.state")
        for name in ("disk.qcow2", "guest.state"):
            shutil.copy(libvirtd.folder / "lib/guest" / name, self._golden)
        self._libvirtds[1].stop()

    def stop(self) -> None:
        self._bench.processes.stop_all()
        for libvirtd in self._libvirtds.values():
            libvirtd.end()

    def keep_states(self) -> None:
        """From now on a virtual machine is restored, not booted."""
        self._restores = True
        holder = self.holder()
        for host in HOSTS:
            if host != holder:
                self._fill(host)

    def resources(self) -> str:
        return _primitive("guest", "VirtualDomain", {"config": f"{GUEST}/guest.xml", "snapshot": GUEST}, self.settings.monitor)

    def environment(self, host: int) -> dict[str, str]:
        return {**super().environment(host), "LIBVIRT_DEFAULT_URI": self._libvirtds[host].uri}

    def lay_out(self, host: int) -> None:
        super().lay_out(host)
        # The agent looks for files by the paths that libvirtd has.
        (self._bench.room(host) / "var/lib/libvirt").symlink_to(self._bench.work / f"libvirt-{host}/lib")

    def power_on(self, host: int) -> None:
        self._start_libvirtd(host)
        super().power_on(host)

    def power_off(self, host: int) -> None:
        super().power_off(host)
        self._libvirtds[host].stop()

    def mend(self, host: int) -> None:
        self._fill(host)
        super().mend(host)

    def _start_libvirtd(self, host: int) -> None:
        self._libvirtds[host] = Libvirtd(self._bench, host)
        # The first question about QEMU takes seconds; a host that has been up for a while has asked.
        self._libvirtds[host].virsh("domcapabilities", "--virttype", "qemu")
        self._fill(host)

    def _fill(self, host: int) -> None:
        """Puts what the virtual machine starts from on a host where it does not run."""
        folder = self._libvirtds[host].folder / "lib/guest"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("disk.qcow2", "guest.xml"):
            shutil.copy(self._golden / name, folder)
        if self._restores:
            # The agent removes it once it has been used.
            (folder / "guest.state").hardlink_to(self._golden / "guest.state")


def _definition() -> str:
    """The agent looks for a line with the name."""
    return (
        f"<domain type='qemu'>\n<name>guest</name>\n<memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64'>hvm</type><kernel>{IMAGE}/vmlinuz</kernel><initrd>{IMAGE}/initrd.img</initrd>"
        "<cmdline>console=ttyS0 quiet panic=-1 net.ifnames=0</cmdline></os><features><acpi/></features>"
        "<on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash><devices>"
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/><source file='{GUEST}/disk.qcow2'/>"
        "<target dev='vda' bus='virtio'/></disk>"
        "<interface type='ethernet'><target dev='tap0' managed='no'/><mac address='52:54:00:00:00:99'/><model type='virtio'/></interface>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon model='none'/>"
        "</devices></domain>\n"
    )


def _primitive(name: str, agent: str, values: dict[str, str], monitor: str) -> str:
    pairs = "".join(f'<nvpair id="{name}-{key}" name="{key}" value="{value}"/>' for key, value in values.items())
    return (
        f'<primitive id="{name}" class="ocf" provider="heartbeat" type="{agent}">'
        f'<instance_attributes id="{name}-values">{pairs}</instance_attributes>'
        f'<operations><op id="{name}-monitor" name="monitor" interval="{monitor}" timeout="20s"/></operations></primitive>'
    )
