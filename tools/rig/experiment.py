"""`tools/experiment`: the experiment of the paper (Figs. 9, 14, 15) on this machine, with real services and virtual machines.

Method: six servers as network namespaces on one switch: Mail (postfix), Login (sshd), FTP (vsftpd), Proxy (squid), Web 1 and Web 2
(nginx), each with a daemon, a libvirtd of its own and one original server: a virtual machine of the image `full` (Debian packages on a qcow2
disk), emulated. A client in a seventh namespace asks the service under test every 20 ms. Failures: St, the service is killed; Nt, the server's link
is down and nothing is killed; three, the machines of three servers at once. `p2pdb why --json` gives the moments of certain, decided and
serving; the client's disconnection is counted from the failure to the first answer of the stand-in. Between two runs the server comes back.

Start of virtual machines (Fig. 9), without p2pdb: from cold, resumed after being paused in memory, restored from disk, and restored from a
state that is fetched over NFS version 4 (ganesha on a seventh host, read with libnfs), as in the paper's conventional method; each for one machine
and for two at once, until the guest agent answers.
"""

import contextlib
import csv
import json
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import machine, namespaces, nfs, packages, plot, recovery
from .bench import Bench, tool
from .errors import RigError, Skipped
from .recovery import CLIENT, SERVERS, Client, Group

PROGRAMS = ["postfix", "openssh-server", "vsftpd", "squid", "nginx-light"]
NAMES = {1: "Mail", 2: "Login", 3: "FTP", 4: "Proxy", 5: "Web 1", 6: "Web 2"}
CHECKS = {1: "mail, smtp 25", 2: "login, ssh", 3: "files, ftp", 4: "proxy, tcp 3128", 5: "web, http 80 /", 6: "web, http 80 /"}
QUESTIONS = {1: (25, ""), 2: (22, ""), 3: (21, ""), 4: (3128, "GET http://127.0.0.1:9/ HTTP/1.0\r\n\r\n"), 5: recovery.WEB, 6: recovery.WEB}
MEMORY_MIB = 320
# Seconds, averages of ten (the paper, Fig. 9).
PAPER = {"one from cold": 13.17, "one resumed": 1.61, "two resumed": 1.67, "one over NFS": 4.62, "two over NFS": 8.50}

TOOLS = Path(__file__).resolve().parent.parent
IMAGE = TOOLS.parent / "target/images/full"


@dataclass
class Starts:
    """How long virtual machines took until they answered, by kind, in milliseconds."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, kind: str, milliseconds: float) -> None:
        self.samples.setdefault(kind, []).append(milliseconds)

    def median(self, kind: str) -> float | None:
        values = self.samples.get(kind)
        return statistics.median(values) if values else None


def run(bench: Bench, runs: int, paper_runs: int) -> None:
    packages.ensure(PROGRAMS, bench.progress)
    begun = time.monotonic()
    cases: list[recovery.Case] = []
    with namespaces.machine_lock():
        with recovery._network(), bench.fresh():
            starts = _starts(bench, runs)
        for preset, count in (("fast", runs), ("paper", paper_runs)):
            if count == 0:
                continue
            with recovery._network(), bench.fresh():
                group = Machines(bench, preset)
                try:
                    group.start()
                    for name, servers, fail in (
                        ("St", [5], group.fail_service),
                        ("Nt", [5], group.cut_off),
                        ("St and Nt, neighbours", [5], group.fail_neighbours),
                        ("three machines", [4], group.fail_three),
                    ):
                        cases.append(_repeat(bench, f"{name}, preset {preset}", servers, count, fail))
                        _write(bench, starts, cases, time.monotonic() - begun)
                    if preset == "fast":
                        for server in (1, 2, 3, 4):
                            name = f"St of {NAMES[server]}, preset {preset}"
                            cases.append(_repeat(bench, name, [server], max(1, runs // 3), group.fail_service))
                finally:
                    group.stop()
    bench.progress.clear()
    print("\n".join(_write(bench, starts, cases, time.monotonic() - begun)))
    print(f"\n{bench.folder / 'report.md'}")


def _repeat(bench: Bench, name: str, servers: list[int], runs: int, fail) -> recovery.Case:
    case = recovery.Case(name)
    for number in range(runs):
        bench.progress.phase(f"{name}: {number + 1} of {runs}")
        case.runs.append(fail(servers[number % len(servers)]))
    return case


# ---- six servers with real services ----


class Libvirtd:
    """A libvirtd of one host, see `tools/own-libvirtd`."""

    def __init__(self, bench: Bench, host: int) -> None:
        self._bench = bench
        self.folder = bench.work / f"libvirt-{host}"
        # What it sees as /var/lib/libvirt, so that a saved state fits every host.
        self.machines = self.folder / "lib"
        socket = self.folder / "run/libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={socket}"
        self._process = bench.processes.start(f"libvirtd-{host}", [*recovery._enter(host), str(TOOLS / "own-libvirtd"), str(self.folder)])
        bench.processes.wait_until("libvirtd listens", socket.exists, 30)

    def virsh(self, *words: str) -> str:
        return self._bench.processes.run(["virsh", "-q", "-c", self.uri, *words])

    def answers(self, name: str) -> bool:
        words = ["virsh", "-q", "-c", self.uri, "qemu-agent-command", name, '{"execute":"guest-ping"}']
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0

    def stop(self) -> None:
        """Ends it and its machines, as a power cut does."""
        self._bench.processes.stop(self._process, grace=0.1)
        self.end()

    def end(self) -> None:
        """Ends its machines, which outlive it."""
        for file in self.folder.glob("run/qemu/*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                subprocess.run(["kill", "-9", file.read_text().strip()], check=False, capture_output=True)


class Machines(Group):
    """Six servers with the paper's services, whose originals are virtual machines."""

    def __init__(self, bench: Bench, preset: str) -> None:
        super().__init__(bench, preset)
        self._libvirtds: dict[int, Libvirtd] = {}

    def check(self, server: int) -> str:
        return CHECKS[server]

    def settings(self, server: int, text: str) -> str:
        self._libvirtds[server] = Libvirtd(self._bench, server)
        changes = {
            '#driver = "process"': 'driver = "libvirt"',
            "#count = 2": "count = 1",
            '#uri = "qemu:///system"': f'uri = "{self._libvirtds[server].uri}"',
            '#image = ""': f'image = "{IMAGE}"',
            "#memory_mib = 256": f"memory_mib = {MEMORY_MIB}",
            '#acceleration = "auto"': 'acceleration = "qemu"',
            "#boot_s = 180": "boot_s = 900",
        }
        for default, line in changes.items():
            if default not in text:
                raise RigError(f"p2pdb.toml has no line {default}")
            text = text.replace(default, line)
        return super().settings(server, text)

    def client(self, server: int) -> Client:
        return Client(self._bench, recovery._service(server), QUESTIONS[server], 0.02)

    def originals(self) -> int:
        return len(SERVERS)

    def stop(self) -> None:
        super().stop()
        for libvirtd in self._libvirtds.values():
            libvirtd.end()

    def _power_off(self, server: int) -> None:
        recovery._plug(server, "down")
        self._libvirtds[server].stop()
        super()._power_off(server)

    def _power_on(self, server: int) -> None:
        self._libvirtds[server] = Libvirtd(self._bench, server)
        super()._power_on(server)

    def service(self, server: int) -> list[str]:
        room = self._bench.work / f"service-S{server}"
        room.mkdir(exist_ok=True)
        return getattr(self, f"_{['mail', 'login', 'ftp', 'proxy', 'web', 'web'][server - 1]}")(server, room)

    def _mail(self, server: int, room: Path) -> list[str]:
        for folder in ("queue", "data", "etc"):
            (room / folder).mkdir(exist_ok=True)
        for folder in (room, *room.parents):
            if folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o055)
        self._bench.processes.run(["chown", "postfix", str(room / "data")])
        (room / "etc/main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {room}/queue\ndata_directory = {room}/data\n"
            f"myhostname = mail.example.org\nsmtpd_banner = mail.example.org S{server} itself\ninet_interfaces = all\n"
            f"inet_protocols = ipv4\nmaillog_file_prefixes = {room}\nmaillog_file = {room}/log\nalias_maps =\n"
        )
        (room / "etc/master.cf").write_text(
            "25 inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\nrewrite unix - - n - - trivial-rewrite\n"
            "anvil unix - - n - 1 anvil\ncleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\n"
            "pickup unix n - n 60 1 pickup\nproxymap unix - - n - - proxymap\ntlsmgr unix - - n 1000? 1 tlsmgr\n"
        )
        (room / "data/master.lock").unlink(missing_ok=True)
        return [tool("postfix"), "-c", str(room / "etc"), "start-fg"]

    def _login(self, server: int, room: Path) -> list[str]:
        Path("/run/sshd").mkdir(exist_ok=True)
        if not (room / "key").exists():
            self._bench.processes.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(room / "key")])
        (room / "sshd_config").write_text(f"HostKey {room}/key\nPidFile none\nVersionAddendum S{server} itself.\n")
        return [tool("sshd"), "-D", "-e", "-f", str(room / "sshd_config")]

    def _ftp(self, server: int, room: Path) -> list[str]:
        (room / "empty").mkdir(exist_ok=True)
        (room / "vsftpd.conf").write_text(
            f"listen=YES\nlisten_ipv6=NO\nbackground=NO\nanonymous_enable=YES\nsecure_chroot_dir={room}/empty\n"
            f"seccomp_sandbox=NO\nftpd_banner=S{server} itself.\n"
        )
        return [tool("vsftpd"), str(room / "vsftpd.conf")]

    def _proxy(self, server: int, room: Path) -> list[str]:
        self._bench.processes.run(["chown", "proxy", str(room)])
        (room / "squid.conf").write_text(
            f"http_port 3128\nhttp_access allow all\ncache deny all\npid_filename {room}/pid\ncache_log {room}/cache.log\n"
            f"access_log none\ncache_store_log none\nvisible_hostname S{server}-itself\ncoredump_dir {room}\n"
            "shutdown_lifetime 0 seconds\npinger_enable off\ndns_nameservers 127.0.0.1\n"
        )
        (room / "pid").unlink(missing_ok=True)
        return [tool("squid"), "-N", "-n", "p2pdbrig", "-f", str(room / "squid.conf")]

    def _web(self, server: int, room: Path) -> list[str]:
        (room / "index.html").write_text(f"S{server} itself\n")
        (room / "nginx.conf").write_text(
            f"daemon off; pid {room}/pid; error_log stderr; events {{}}\n"
            f"http {{ access_log off; server {{ listen 80; root {room}; }} }}\n"
        )
        return [tool("nginx"), "-p", str(room), "-c", str(room / "nginx.conf")]

    def write_procedure(self, server: int, folder: Path) -> None:
        files, check, script = _procedure(server)
        manifest = "format = 1\ndeadline_s = 120\n"
        for name, (target, content) in files.items():
            (folder / name).write_text(content)
            manifest += f'[[file]]\nsource = "{name}"\ntarget = "{target}"\n'
        (folder / "procedure.toml").write_text(manifest + f"[[check]]\ncommand = '{check}'\n")
        (folder / "install.sh").write_text(f"set -eu\n{script}\n")

    # ---- failures ----

    def fail_neighbours(self, server: int) -> dict[str, float]:
        """The service of one, the network of its neighbour."""
        other = server % len(SERVERS) + 1

        def fail() -> None:
            self._kill(self._services.pop(server))
            recovery._plug(other, "down")

        def mend() -> None:
            self._start_service(server)
            recovery._plug(other, "up")

        return self._measure([server, other], fail, mend)

    def fail_three(self, server: int) -> dict[str, float]:
        servers = [server, server % len(SERVERS) + 1, (server + 1) % len(SERVERS) + 1]

        def fail() -> None:
            for one in servers:
                self._power_off(one)

        def mend() -> None:
            for one in servers:
                self._power_on(one)

        return self._measure(servers, fail, mend)


def _procedure(server: int) -> tuple[dict[str, tuple[str, str]], str, str]:
    """Files with their targets, the check, and the script of what plays a server."""
    played = f"S{server} played"
    if server == 1:
        main = (
            "compatibility_level = 3.6\nmyhostname = mail.example.org\ninet_interfaces = all\ninet_protocols = ipv4\n"
            f"smtpd_banner = mail.example.org {played}\nalias_maps =\nmydestination = localhost\nmaillog_file = /var/log/postfix.log\n"
        )
        script = (
            "cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf\nmkdir -p /var/lib/postfix\nchown postfix /var/lib/postfix\n"
            "chgrp postdrop /usr/sbin/postqueue /usr/sbin/postdrop\nchmod g+s /usr/sbin/postqueue /usr/sbin/postdrop\npostfix start"
        )
        return {"main.cf": ("/etc/postfix/main.cf", main)}, "nc -z 127.0.0.1 25", script
    if server == 2:
        config = f"HostKey /etc/ssh/ssh_host_ed25519_key\nVersionAddendum {played}.\n"
        script = 'mkdir -p /run/sshd\nssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key\n/usr/sbin/sshd'
        return {"sshd_config": ("/etc/ssh/sshd_config", config)}, "nc -z 127.0.0.1 22", script
    if server == 3:
        config = (
            "listen=YES\nlisten_ipv6=NO\nbackground=YES\nanonymous_enable=YES\nanon_root=/srv/ftp\nsecure_chroot_dir=/run/vsftpd\n"
            f"ftpd_banner={played}.\n"
        )
        return {"vsftpd.conf": ("/etc/vsftpd.conf", config)}, "nc -z 127.0.0.1 21", "mkdir -p /run/vsftpd\nvsftpd /etc/vsftpd.conf"
    if server == 4:
        config = (
            "http_port 3128\nhttp_access allow all\ncache deny all\npid_filename /run/squid/squid.pid\naccess_log none\n"
            f"visible_hostname S{server}-played\ncache_effective_user proxy\npinger_enable off\ndns_nameservers 127.0.0.1\n"
        )
        script = (
            "mkdir -p /run/squid /var/log/squid /var/spool/squid\nchown proxy:proxy /run/squid /var/log/squid /var/spool/squid\n"
            "setsid squid -N </dev/null >/dev/null 2>&1 &"
        )
        return {"squid.conf": ("/etc/squid/squid.conf", config)}, "nc -z 127.0.0.1 3128", script
    config = "user www-data; pid /run/nginx.pid; error_log stderr; events {}\nhttp { access_log off; server { listen 80; root /var/www; } }\n"
    files = {"nginx.conf": ("/etc/nginx/nginx.conf", config), "page": ("/var/www/index.html", f"{played}\n")}
    return files, "wget -q -O /dev/null http://127.0.0.1/", "mkdir -p /var/log/nginx /var/lib/nginx\nnginx"


# ---- the start of virtual machines ----


class Guest:
    """One virtual machine that is measured without p2pdb."""

    def __init__(self, bench: Bench, libvirtd: Libvirtd, name: str, devices: str = "") -> None:
        self._libvirtd = libvirtd
        self.name = name
        self._folder = bench.work / self.name
        self._folder.mkdir()
        self.state = self._folder / "state"
        self.disk = libvirtd.machines / f"{name}.qcow2"
        bench.processes.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(IMAGE / "disk.qcow2"), str(self.disk)])
        self._definition = self._folder / "definition.xml"
        self._definition.write_text(
            f"<domain type='qemu'><name>{self.name}</name><memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64'>hvm</type><kernel>{IMAGE}/vmlinuz</kernel><initrd>{IMAGE}/initrd.img</initrd>"
            "<cmdline>console=ttyS0 quiet panic=-1</cmdline></os><features><acpi/></features>"
            "<on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash><devices>"
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/><source file='/var/lib/libvirt/{name}.qcow2'/>"
            "<target dev='vda' bus='virtio'/></disk>"
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon model='none'/>"
            f"{devices}</devices></domain>"
        )

    def cold(self) -> None:
        self._libvirtd.virsh("create", str(self._definition))
        self._wait()

    def save(self) -> None:
        self._libvirtd.virsh("save", self.name, str(self.state))

    def restore_paused(self) -> None:
        self._libvirtd.virsh("restore", str(self.state), "--paused")

    def resume(self) -> None:
        self._libvirtd.virsh("resume", self.name)
        self._wait()

    def restore(self, state: Path | None = None) -> None:
        self._libvirtd.virsh("restore", str(state or self.state))
        self._wait()

    def destroy(self) -> None:
        self._libvirtd.virsh("destroy", self.name)

    def _wait(self) -> None:
        deadline = time.monotonic() + 300
        while not self._libvirtd.answers(self.name):
            if time.monotonic() > deadline:
                raise RigError(f"{self.name} does not answer")
            time.sleep(0.02)


def _starts(bench: Bench, runs: int) -> Starts:
    starts = Starts()
    libvirtd = Libvirtd(bench, 1)
    guests = [Guest(bench, libvirtd, f"guest-{number}") for number in (1, 2)]
    try:
        share = _share(bench)
        for number in range(max(1, runs // 3)):
            bench.progress.phase(f"from cold: {number + 1} of {max(1, runs // 3)}")
            _time(starts, "one from cold", guests[:1], Guest.cold)
            guests[0].save() if number == 0 else guests[0].destroy()
        guests[1].cold()
        guests[1].save()
        fetched = {guest.name: guest.state.with_name("fetched") for guest in guests}
        if share is not None:
            for guest in guests:
                (share / guest.name).write_bytes(guest.state.read_bytes())

        def over_nfs(guest: Guest) -> None:
            url = f"nfs://{recovery._address(CLIENT)}/share/{guest.name}?version=4"
            fetched[guest.name].unlink(missing_ok=True)
            bench.processes.run([*recovery._enter(1), tool("nfs-cp"), url, str(fetched[guest.name])])
            guest.restore(fetched[guest.name])

        for number in range(runs):
            for count, word in ((1, "one"), (2, "two")):
                some = guests[:count]
                bench.progress.phase(f"activation of {word}: {number + 1} of {runs}")
                for guest in some:
                    guest.restore_paused()
                _time(starts, f"{word} resumed", some, Guest.resume)
                for guest in some:
                    guest.destroy()
                _time(starts, f"{word} from disk", some, Guest.restore)
                for guest in some:
                    guest.destroy()
                if share is not None:
                    _time(starts, f"{word} over NFS", some, over_nfs)
                    for guest in some:
                        guest.destroy()
    finally:
        libvirtd.end()
    return starts


def _time(starts: Starts, kind: str, guests: list[Guest], start) -> None:
    """All at once; until the last one answers."""
    failures: list[Exception] = []

    def one(guest: Guest) -> None:
        try:
            start(guest)
        except (RigError, subprocess.SubprocessError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(guest,)) for guest in guests]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RigError(f"{kind}: {failures[0]}")
    starts.add(kind, (time.monotonic() - begun) * 1000)


def _share(bench: Bench) -> Path | None:
    """A folder on a file server of the service network; none where there is no such server."""
    try:
        packages.ensure(["nfs-ganesha", "nfs-ganesha-vfs", "libnfs-utils"], bench.progress)
        ganesha = tool("ganesha.nfsd")
    except Skipped as skipped:
        bench.skip("NFS", str(skipped))
        return None
    room, share = bench.work / "ganesha", bench.work / "share"
    room.mkdir()
    share.mkdir()
    settings = nfs.CONFIGURATION.format(address=recovery._address(CLIENT), share=share, state=room)
    (room / "ganesha.conf").write_text(settings)
    argv = [*recovery._enter(CLIENT), ganesha, "-F", "-f", str(room / "ganesha.conf"), "-L", "STDERR", "-p", str(room / "pid")]
    bench.processes.start("ganesha", argv)
    listening = [*recovery._enter(CLIENT), tool("ss"), "-ltn"]
    bench.processes.wait_until("the file server listens", lambda: ":2049" in bench.processes.run(listening), 30)
    return share


# ---- the report ----


def _write(bench: Bench, starts: Starts, cases: list[recovery.Case], took_s: float) -> list[str]:
    phases = [*recovery.PHASES, "back (client)"]
    with open(bench.folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["case", "run", "phase", "milliseconds"])
        for kind, values in starts.samples.items():
            rows.writerows([kind, number, "start", f"{value:.1f}"] for number, value in enumerate(values, 1))
        for case in cases:
            for number, found in enumerate(case.runs, 1):
                rows.writerows([case.name, number, phase, f"{value:.1f}"] for phase, value in found.items())
    plot.distributions(bench.folder, "starts", "Start of virtual machines", "milliseconds until they answer (log scale)", starts.samples, "runs")
    outages = {case.name: [found["outage (client)"] for found in case.runs] for case in cases if len(case.runs) > 2}
    if outages:
        plot.distributions(bench.folder, "disconnection", "A client's disconnection", "milliseconds from the failure (log scale)", outages, "runs")
    lines = ["## Start of virtual machines (the paper's Fig. 9)", ""]
    lines += ["| | runs | median ms | smallest to largest | variation | the paper s |", "|---|---|---|---|---|---|"]
    for kind, values in starts.samples.items():
        spread = f"{min(values):.0f} to {max(values):.0f}"
        paper = f"{PAPER[kind]}" if kind in PAPER else "-"
        lines.append(f"| {kind} | {len(values)} | {statistics.median(values):.0f} | {spread} | {_variation(values)} | {paper} |")
    lines += [""]
    for kind in ("resumed", "from disk", "over NFS"):
        one, two = starts.median(f"one {kind}"), starts.median(f"two {kind}")
        if one and two:
            lines.append(f"- two at once, {kind}: {two / one:.2f} of one")
    local, remote = starts.median("two resumed"), starts.median("two over NFS")
    if local and remote:
        lines.append(f"- two over NFS: {remote / local:.1f} of two resumed")
    lines += ["", "## Recovery (Figs. 14 and 15)", ""]
    lines += ["| failure | runs | " + " | ".join(f"{phase} ms" for phase in phases) + " | disconnection, smallest to largest | variation |"]
    lines += ["|---" * (len(phases) + 4) + "|"]
    for case in cases:
        cells = [f"{value:.0f}" if value is not None else "-" for value in map(case.median, phases)]
        variation = _variation([found["outage (client)"] for found in case.runs])
        lines.append(f"| {case.name} | {len(case.runs)} | {' | '.join(cells)} | {case.spread('outage (client)')} | {variation} |")
    lines += [""]
    for case in cases:
        certain, answering = case.median("certain"), case.median("answering (log)")
        if certain is not None and answering is not None:
            lines.append(f"- {case.name}: {answering - certain:.0f} ms from certain to serving")
    facts = [f"- {name}: {value}" for name, value in machine.facts(bench.folder).items()]
    image = json.loads((IMAGE / "image.json").read_text())
    facts.append(f"- guests: {MEMORY_MIB} MiB, one emulated processor, {len(image['packages'])} packages; the experiment took {took_s / 60:.0f} min")
    facts += [f"- skipped: {name}: {why}" for name, why in bench.results.skipped]
    method = " ".join((__doc__ or "").split())
    pictures = ["![starts](starts.svg)", ""] + (["![disconnection](disconnection.svg)", ""] if outages else [])
    report = ["# The paper's experiment", "", *lines, "", *pictures, "## Method", "", method, "", *facts, ""]
    (bench.folder / "report.md").write_text("\n".join(report), encoding="utf-8")
    return lines


def _variation(values: list[float]) -> str:
    """The coefficient of variation, as the paper gives it."""
    return f"{statistics.stdev(values) / statistics.mean(values):.2f}" if len(values) > 1 else "-"
