"""The six servers of the paper's experiment, with real services, whose originals are virtual machines.

Mail (postfix), Login (sshd), FTP (vsftpd), Proxy (squid), Web 1 and Web 2 (nginx), each a network namespace with a daemon, a libvirtd of its
own and one original: a machine of the image `full`, emulated. A server's own service says "S1 itself", what plays it "S1 played".
"""

import json
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

from . import recovery
from .bench import Bench, tool
from .errors import RigError
from .recovery import CLIENT, SERVERS, SWITCH, Client, Group
from .virtual_machines import IMAGE, MEMORY_MIB, Libvirtd

# Of every cable, as the paper's switch was a 1000BASE-T one.
NETWORK_RATE = "1gbit"
# What each original runs once before it waits: the web server, and what others do before they listen.
REHEARSAL = "; ".join(
    [
        "mkdir -p /var/log/nginx /var/lib/nginx /run/sshd /run/squid",
        "cd /run",
        'printf "user www-data; events {}\\nhttp { server { listen 80; root /etc; } }\\n" >nginx.conf',
        "nginx -c /run/nginx.conf",
        "wget -q -O /dev/null http://127.0.0.1/passwd",
        "nginx -c /run/nginx.conf -s quit",
        'printf "http_port 3128\\npid_filename none\\ncache deny all\\n" >squid.conf',
        "squid -k parse -f squid.conf",
        'ssh-keygen -q -t ed25519 -N "" -f key',
        "sshd -t -f /dev/null -h key",
    ]
)
PROGRAMS = ["postfix", "openssh-server", "vsftpd", "squid", "nginx-light"]
NAMES = {1: "Mail", 2: "Login", 3: "FTP", 4: "Proxy", 5: "Web 1", 6: "Web 2"}
CHECKS = {1: "mail, smtp 25", 2: "login, ssh", 3: "files, ftp", 4: "proxy, tcp 3128", 5: "web, http 80 /", 6: "web, http 80 /"}
QUESTIONS = {1: (25, ""), 2: (22, ""), 3: (21, ""), 4: (3128, "GET http://127.0.0.1:9/ HTTP/1.0\r\n\r\n"), 5: recovery.WEB, 6: recovery.WEB}


class PaperGroup(Group):
    """See above."""

    def __init__(self, bench: Bench, preset: str) -> None:
        super().__init__(bench, preset)
        self._libvirtds: dict[int, Libvirtd] = {}

    def check(self, server: int) -> str:
        # An emulated processor takes long for the first answer of some.
        return CHECKS[server] + (", timeout=1s" if self._preset == "fast" and server in (1, 2) else "")

    def settings(self, server: int, text: str) -> str:
        if server == CLIENT:
            return text
        self._libvirtds[server] = Libvirtd(self._bench, server)
        changes = {
            '#driver = "process"': 'driver = "libvirt"',
            "#count = 2": "count = 1",
            '#uri = "qemu:///system"': f'uri = "{self._libvirtds[server].uri}"',
            '#image = ""': f'image = "{IMAGE}"',
            "#memory_mib = 256": f"memory_mib = {MEMORY_MIB}",
            '#acceleration = "auto"': 'acceleration = "qemu"',
            "#boot_s = 180": "boot_s = 900",
            '#rehearsal = ""': f"rehearsal = '{REHEARSAL}'",
        }
        for default, line in changes.items():
            if default not in text:
                raise RigError(f"p2pdb.toml has no line {default}")
            text = text.replace(default, line)
        return super().settings(server, text)

    def client(self, server: int) -> Client:
        # Every question to sshd is a process, of which an emulated processor can start few.
        pause_s = 0.2 if server == 2 else 0.02
        return Client(self._bench, recovery._service(server), QUESTIONS[server], pause_s)

    def work(self, server: int) -> str:
        return "witness" if server == CLIENT else "daemon"

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
        files, check, script = procedure(server)
        manifest = "format = 1\ndeadline_s = 120\n"
        for name, (target, content) in files.items():
            (folder / name).write_text(content)
            manifest += f'[[file]]\nsource = "{name}"\ntarget = "{target}"\n'
        (folder / "procedure.toml").write_text(manifest + f"[[check]]\ncommand = '{check}'\n")
        (folder / "install.sh").write_text(f"set -eu\n{script}\n")

    # ---- failures ----

    def fail_neighbours(self, kinds: tuple[str, str], server: int) -> dict[str, float]:
        """One failure of one, at once with one of its neighbour: of the service (`St`) or the network (`Nt`)."""
        failing = dict(zip([server, server % len(SERVERS) + 1], kinds, strict=True))

        def fail() -> None:
            for failed, kind in failing.items():
                self._kill(self._services.pop(failed)) if kind == "St" else recovery._plug(failed, "down")

        def mend() -> None:
            for failed, kind in failing.items():
                self._start_service(failed) if kind == "St" else recovery._plug(failed, "up")

        return self._measure(list(failing), fail, mend)

    def papers_failures(self) -> dict[str, Callable[[int], dict[str, float]]]:
        """Those of Figs. 14 and 15, by name."""
        both = {f"{' and '.join(kinds)}, neighbours": partial(self.fail_neighbours, kinds) for kinds in product(("St", "Nt"), repeat=2)}
        return {"St": self.fail_service, "Nt": self.cut_off, **both}

    def fail_machines(self, servers: list[int]) -> dict[str, float]:
        def mend() -> None:
            for server in servers:
                self._power_on(server)

        return self._measure(servers, lambda: [self._power_off(server) for server in servers], mend)

    def fail_host_of_stand_in(self, server: int) -> dict[str, float]:
        """The host of a stand-in is switched off: what it played fails again, and its own service as well."""
        self._kill(self._services.pop(server))
        client = self.client(server)
        client.wait(lambda page: page == f"S{server} played", f"S{server} is played")
        self._why(self._first_other(server), server)
        host = self._host_of_stand_in(server)

        def mend() -> None:
            self._start_service(server)
            self._power_on(host)

        found = self._measure([server, host], lambda: self._power_off(host), mend)
        client.stop()
        return found

    def split(self, away: list[int]) -> dict[str, float]:
        """Some are parted from the rest, where the client is, and see one another."""
        recovery._ip("-n", SWITCH, "link", "add", "apart", "up", "type", "bridge")

        def move(bridge: str) -> None:
            for server in away:
                recovery._ip("-n", SWITCH, "link", "set", f"port{server}", "master", bridge)

        try:
            return self._measure(away, lambda: move("apart"), lambda: move("bridge"))
        finally:
            recovery._ip("-n", SWITCH, "link", "delete", "apart")

    def fail_half_without_decision(self, servers: list[int], wait_s: float) -> dict[str, float]:
        """The half with the first elector is switched off, and nobody may decide, until the first is switched on again after a time."""
        first, *others = servers
        clients = {server: self.client(server) for server in servers}
        failed_ns = time.time_ns()
        for server in servers:
            self._power_off(server)
        time.sleep(wait_s)
        early = [server for server in others if any(page == f"S{server} played" for _, _, page in clients[server].read())]
        if early:
            raise RigError(f"S{early[0]} is played by a half that may not decide")
        self._power_on(first)
        started_ns = time.time_ns()
        for server in others:
            clients[server].wait(lambda page, server=server: page == f"S{server} played", f"S{server} is played")
        found = {
            "outage (client)": max(clients[server].outage_ms(failed_ns, f"S{server} played") for server in others),
            "outage after the first is back": max(clients[server].outage_ms(started_ns, f"S{server} played") for server in others),
        }
        for server in others:
            self._power_on(server)
        for server in servers:
            clients[server].wait(lambda page, server=server: page == f"S{server} itself", f"S{server} serves itself")
            clients[server].stop()
        self._wait_rest()
        return found

    def add_witness(self) -> None:
        """A machine that only votes, beside the client."""
        self._join(CLIENT)
        self._start_daemon(CLIENT)
        told = f"S{CLIENT} votes as a witness"
        self._bench.processes.wait_until("the witness votes", lambda: told in self.call(1, "decisions"), 30)

    def procedure_alone(self, server: int) -> float:
        """Milliseconds of resuming an original, putting the server's procedure into it and running it, with nothing else going on."""
        tested = json.loads(self.call(1, "procedure", "test", f"S{server}", "--json"))
        if tested["failure"] is not None:
            raise RigError(f"procedure test S{server}: {tested['failure']}")
        return tested["resumed_ms"] + tested["installed_ms"]

    def _host_of_stand_in(self, server: int) -> int:
        """After the row `S5b, S5, S2` of the file Problem."""
        for row in self._show("Problem").splitlines():
            _, target, host = row.split(", ")[:3]
            if target == f"S{server}" and host != "---":
                return int(host.removeprefix("S"))
        raise RigError(f"the file Problem does not tell who plays S{server}")


def procedure(server: int) -> tuple[dict[str, tuple[str, str]], str, str]:
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
        return {"main.cf": ("/etc/postfix/main.cf", main)}, "echo QUIT | nc 127.0.0.1 25 | grep -q ^220", script
    if server == 2:
        config = f"HostKey /etc/ssh/ssh_host_ed25519_key\nVersionAddendum {played}.\n"
        script = 'mkdir -p /run/sshd\nssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key\n/usr/sbin/sshd'
        return {"sshd_config": ("/etc/ssh/sshd_config", config)}, "echo | nc 127.0.0.1 22 | grep -q ^SSH", script
    if server == 3:
        config = (
            "listen=YES\nlisten_ipv6=NO\nbackground=YES\nanonymous_enable=YES\nanon_root=/srv/ftp\nsecure_chroot_dir=/run/vsftpd\n"
            f"ftpd_banner={played}.\n"
        )
        return {"vsftpd.conf": ("/etc/vsftpd.conf", config)}, "echo QUIT | nc 127.0.0.1 21 | grep -q ^220", "mkdir -p /run/vsftpd\nvsftpd /etc/vsftpd.conf"
    if server == 4:
        config = (
            "http_port 3128\nhttp_access allow all\ncache deny all\npid_filename /run/squid/squid.pid\naccess_log none\n"
            f"visible_hostname S{server}-played\ncache_effective_user proxy\npinger_enable off\ndns_nameservers 127.0.0.1\n"
        )
        script = (
            "mkdir -p /run/squid /var/log/squid /var/spool/squid\nchown proxy:proxy /run/squid /var/log/squid /var/spool/squid\n"
            "setsid squid -N </dev/null >/dev/null 2>&1 &"
        )
        return {"squid.conf": ("/etc/squid/squid.conf", config)}, "nc 127.0.0.1 3128 </dev/null", script
    config = "user www-data; pid /run/nginx.pid; error_log stderr; events {}\nhttp { access_log off; server { listen 80; root /var/www; } }\n"
    files = {"nginx.conf": ("/etc/nginx/nginx.conf", config), "page": ("/var/www/index.html", f"{played}\n")}
    return files, "wget -q -O /dev/null http://127.0.0.1/", "mkdir -p /var/log/nginx /var/lib/nginx\nnginx"
