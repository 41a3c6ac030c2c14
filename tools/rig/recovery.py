"""`tools/bench recovery`: from a failure to a stand-in that answers, as a client sees it and as the log tells it.

Method: six servers, each a network namespace with a bridge, on one switch; one daemon, one web server (python3) at an exclusive
address and two original servers of the driver `process` each. A client in a seventh namespace asks for a page every 5 ms with
a deadline of 100 ms. A failure is made at a known moment: `service`: the web server is killed; `machine`: link down, every process
of the server killed; `cut off`: link down and nothing killed, so that the server must step down by itself; `two at once`: two
neighbouring machines. `p2pdb why --json` tells when the failure was certain, decided, and the address answered; all clocks
are this machine's. Between two runs the server comes back (`p2pdb failback`). Beside it: keepalived (VRRP version 3) failing
over between two namespaces whose web servers run all the time, with advert_int 1 and 0.1: the address alone moves, nothing
is installed.
"""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import machine, namespaces, packages, plot
from .bench import Bench
from .errors import RigError, Skipped

SERVERS = [1, 2, 3, 4, 5, 6]
CLIENT = 7
PREFIX = "p2pdb-r"
SWITCH = f"{PREFIX}-switch"
PORT = 7400
REST_S = 6
# Figs. 14 and 15 of the paper: seconds from certain to serving by its method and by the conventional one, beside our case.
PAPER = {
    "St, one server": ("service", "4.0 to 6.4", "10.3 to 12.3"),
    "Nt, one server": ("cut off", "4.0 to 6.4", "10.3 to 12.3"),
    "Nt, two servers": ("two at once", "4.08 to 4.30", "10.28 to 10.37"),
}
FUNCTION = "recovery of the function"
PHASES = ["certain", "decided", "answering (log)", "outage (client)"]

POLLER = """
import re, socket, sys, time
address, port, question, pause, out = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), float(sys.argv[4]), open(sys.argv[5], "w", buffering=1)
wanted = re.compile(rb"((?:S\\d+|host)[ -](?:itself|played|\\d+))[^0-9a-z]")
def page():
    try:
        with socket.create_connection((address, port), 0.1) as link:
            link.settimeout(0.1 if port == 80 else 1)
            link.sendall(question)
            text = b""
            while part := link.recv(4096):
                text += part
                if found := wanted.search(text):
                    return found[1].decode().replace("-", " ")
    except OSError:
        pass
    return "nobody"
while True:
    begun = time.time_ns()
    told = page()
    out.write(f"{begun} {time.time_ns()} {told}\\n")
    time.sleep(pause)
"""
WEB = (80, "GET / HTTP/1.0\r\n\r\n")

MANIFEST = """format = 1
[[file]]
source = "page"
target = "/var/www/index.html"
[[check]]
command = "python3 -c \\"import socket; socket.create_connection(('127.0.0.1', 80), 1)\\""
"""
SCRIPT = "cd /var/www && { setsid python3 -m http.server 80 >/dev/null 2>&1 & }\n"


@dataclass
class Case:
    """Runs of one kind of failure; each run has milliseconds by phase."""

    name: str
    runs: list[dict[str, float]] = field(default_factory=list)

    def median(self, phase: str) -> float | None:
        values = [run[phase] for run in self.runs if phase in run]
        return statistics.median(values) if values else None

    def spread(self, phase: str) -> str:
        values = sorted(run[phase] for run in self.runs if phase in run)
        return f"{values[0]:.0f} to {values[-1]:.0f}" if values else "-"


def run(bench: Bench, runs: int, preset: str) -> None:
    if os.geteuid() != 0:
        raise RigError("network namespaces need root: run 'sudo tools/bench recovery'")
    cases = []
    with namespaces.machine_lock():
        with _network(), bench.fresh():
            group = Group(bench, preset)
            try:
                group.start()
                cases += [
                    repeat(bench, "service", runs, SERVERS, group.fail_service),
                    repeat(bench, "machine", runs, SERVERS, group.fail_machine),
                    repeat(bench, "cut off", runs, SERVERS, group.cut_off),
                    repeat(bench, "two at once", runs, SERVERS, group.fail_two),
                ]
            finally:
                group.stop()
        for interval in ("1", "0.1"):
            with contextlib.suppress(Skipped), _network(), bench.fresh():
                cases.append(_keepalived(bench, interval, runs))
    bench.progress.clear()
    _write(bench, cases, preset)


def repeat(bench: Bench, name: str, runs: int, servers: list[int], fail: Callable[[int], dict[str, float]]) -> Case:
    """Runs of one failure, of one server after the other."""
    case = Case(name)
    for number in range(runs):
        bench.progress.phase(f"{name}: {number + 1} of {runs}")
        case.runs.append(fail(servers[number % len(servers)]))
    return case


# ---- the network ----


@contextlib.contextmanager
def _network(rate: str = "") -> Iterator[None]:
    """The hosts on one switch; with a rate, by cables that carry so much each way."""
    _clean()
    try:
        _ip("netns", "add", SWITCH)
        _ip("-n", SWITCH, "link", "add", "bridge", "up", "type", "bridge")
        for host in [*SERVERS, CLIENT]:
            space = _space(host)
            _ip("netns", "add", space)
            _ip("-n", SWITCH, "link", "add", f"port{host}", "type", "veth", "peer", "name", "uplink", "netns", space)
            _ip("-n", SWITCH, "link", "set", f"port{host}", "master", "bridge", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "uplink", "up")
            _ip("-n", space, "link", "add", "eth0", "up", "type", "bridge")
            _ip("-n", space, "link", "set", "uplink", "master", "eth0")
            _ip("-n", space, "address", "add", f"{_address(host)}/24", "dev", "eth0")
            if rate:
                for place, device in ((space, "uplink"), (SWITCH, f"port{host}")):
                    _run("tc", "-n", place, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
        yield
    finally:
        _clean()


def _clean() -> None:
    for space in [*map(_space, [*SERVERS, CLIENT]), SWITCH]:
        if not Path("/run/netns", space).exists():
            continue
        for pid in _ip("netns", "pids", space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", space)


def _end_agents(directory: Path) -> None:
    """Guests have processes of their own, which outlive their daemon."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, words = line.split(None, 1)
        if "util agent" in words and re.search(rf"--hide {re.escape(str(directory))}( |$)", words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for one in found:
        found += [child for child, parent in parents if parent == one]
    return found[1:]


def _space(host: int) -> str:
    return f"{PREFIX}-{host}"


def _address(host: int) -> str:
    return f"10.78.0.{host}"


def _service(server: int) -> str:
    return f"10.78.0.{50 + server}"


def _plug(host: int, state: str) -> None:
    _ip("-n", SWITCH, "link", "set", f"port{host}", state)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*argv: str) -> str:
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode != 0:
        raise RigError(f"'{' '.join(argv)}' failed: {result.stderr.strip()}")
    return result.stdout


def _enter(host: int) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{_space(host)}", "--"]


class Client:
    """Asks for a page all the time, and remembers what it got and when."""

    def __init__(self, bench: Bench, address: str, question: tuple[int, str] = WEB, pause: float = 0.005) -> None:
        self._bench = bench
        self._samples = bench.work / f"client-{time.monotonic_ns()}.txt"
        words = [address, str(question[0]), question[1], str(pause), str(self._samples)]
        self._process = bench.processes.start("client", [*_enter(CLIENT), "python3", "-c", POLLER, *words])
        self.wait(lambda page: page != "nobody", "the client gets a page")

    def read(self) -> list[tuple[int, int, str]]:
        rows = [line.split(" ", 2) for line in self._samples.read_text().splitlines() if line.count(" ") >= 2]
        return [(int(begun), int(ended), page) for begun, ended, page in rows]

    def wait(self, wanted, what: str) -> None:
        def is_so() -> bool:
            return self._samples.exists() and bool(rows := self.read()) and wanted(rows[-1][2])

        self._bench.processes.wait_until(what, is_so, 60, pause=0.02)

    def wait_for_change(self, since_ns: int, page: str, what: str) -> None:
        """Until `page` answers after something else did, or nobody."""

        def has_changed() -> bool:
            pages = [got for _, ended, got in self.read() if ended > since_ns]
            return bool(pages) and pages[-1] == page and any(got != page for got in pages)

        self._bench.processes.wait_until(what, has_changed, 60, pause=0.02)

    def outage_ms(self, failed_ns: int, page: str) -> float:
        """From the failure to the first question that `page` answered after one to which nobody or somebody else did."""
        missed = False
        for _, ended, got in self.read():
            if ended > failed_ns and got == page and missed:
                return (ended - failed_ns) / 1e6
            missed = missed or (ended > failed_ns and got != page)
        raise RigError(f"the client never got '{page}' again")

    def stop(self) -> None:
        self._bench.processes.stop(self._process, grace=0.1)


class Group:
    """Six servers."""

    def __init__(self, bench: Bench, preset: str) -> None:
        self._bench = bench
        self._preset = preset
        self._binary = str(bench.options.binary)
        self._daemons: dict[int, subprocess.Popen[bytes]] = {}
        self._services: dict[int, subprocess.Popen[bytes]] = {}
        # What `p2pdb why` tells of the servers that failed last.
        self.story = ""

    def directory(self, server: int) -> Path:
        return self._bench.work / f"S{server}"

    def call(self, server: int, *words: str) -> str:
        return self._bench.processes.run([*_enter(server), self._binary, *words, "--dir", str(self.directory(server))])

    def start(self) -> None:
        self._bench.progress.phase("starting six servers")
        for server in SERVERS:
            self._join(server)
            self._start_service(server)
            self._start_daemon(server)
        for server in SERVERS:
            name = f"S{server}"
            self.call(1, "files", "add", "Service", f"{name}, {_service(server)}/24, exclusive")
            self.call(1, "files", "add", "Check", f"{name}, {self.check(server)}, preset={self._preset}")
            folder = self._bench.work / f"procedure-{name}"
            folder.mkdir()
            self.write_procedure(server, folder)
            self.call(1, "procedure", "put", str(folder), "--server", name)
        for server in SERVERS:
            self.client(server).stop()
        self._wait_rest()

    # ---- what an experiment with other services and originals says otherwise ----

    def check(self, server: int) -> str:
        return "web, http 80 /"

    def write_procedure(self, server: int, folder: Path) -> None:
        (folder / "procedure.toml").write_text(MANIFEST)
        (folder / "install.sh").write_text(SCRIPT)
        (folder / "page").write_text(f"S{server} played\n")

    def settings(self, server: int, text: str) -> str:
        return text.replace('#interface = ""', 'interface = "eth0"')

    def service(self, server: int) -> list[str]:
        """The command of the server's own service, which stays."""
        pages = self._bench.work / f"pages-S{server}"
        pages.mkdir(exist_ok=True)
        (pages / "index.html").write_text(f"S{server} itself\n")
        return ["python3", "-m", "http.server", "80", "--directory", str(pages)]

    def client(self, server: int) -> "Client":
        return Client(self._bench, _service(server))

    def originals(self) -> int:
        """How many there are in all."""
        return 2 * len(SERVERS)

    def work(self, server: int) -> str:
        """What its daemon is started as."""
        return "daemon"

    def end_guests(self, server: int) -> None:
        """What of a server outlives its daemon."""
        _end_agents(self.directory(server))

    def _join(self, server: int) -> None:
        directory = self.directory(server)
        words = ["--name", f"S{server}", "--listen", f"{_address(server)}:{PORT}", "--dir", str(directory)]
        words += ["--files", str(self._bench.memory_room(server))]
        if server > 1:
            token = self.call(1, "token").splitlines()[-1]
            words = ["join", *words, "--peer", f"{_address(1)}:{PORT}", "--token", token]
        else:
            words = ["init", *words]
        self._bench.processes.run([*_enter(server), self._binary, *words])
        settings = directory / "p2pdb.toml"
        settings.write_text(self.settings(server, settings.read_text()))

    def _start_daemon(self, server: int) -> None:
        argv = [*_enter(server), self._binary, self.work(server), "--dir", str(self.directory(server))]
        self._daemons[server] = self._bench.processes.start(f"S{server}", argv)

        def answers() -> bool:
            try:
                self.call(server, "status")
            except RigError:
                return False
            return True

        self._bench.processes.wait_until(f"S{server} answers", answers, 30)

    def _start_service(self, server: int) -> None:
        argv = [*_enter(server), *self.service(server)]
        self._services[server] = self._bench.processes.start(f"service-S{server}", argv)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """With all that descends from it, also in process groups of their own."""
        for pid in [process.pid, *_descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._bench.processes.stop(process)

    def _first_other(self, *servers: int) -> int:
        return next(server for server in SERVERS if server not in servers)

    def _wait_rest(self) -> None:
        """Everybody is in the group again, every original is ready, no story is open."""

        def is_quiet() -> bool:
            shown = {name: self._show(name) for name in ("Group", "Problem", "Recovery", "Original")}
            originals = shown["Original"].splitlines()
            quiet = len(shown["Group"].splitlines()) == len(SERVERS) and "S" not in shown["Problem"] + shown["Recovery"]
            return quiet and len(originals) == self.originals() and all(", suspended, " in row for row in originals)

        self._bench.processes.wait_until("the group is at rest", is_quiet, 400)
        # Whoever has just come back is not judged at once, and watches anew; that is not what is measured.
        time.sleep(REST_S)

    def _show(self, name: str) -> str:
        """The records of a file; a file without any is told by the exit code."""
        argv = [*_enter(1), self._binary, "files", "show", name, "--dir", str(self.directory(1))]
        return self._bench.processes.answer(argv) or ""

    def stop(self) -> None:
        self._bench.processes.stop_all()
        for server in SERVERS:
            self.end_guests(server)

    # ---- failures ----

    def fail_service(self, server: int) -> dict[str, float]:
        def fail() -> None:
            self._kill(self._services.pop(server))

        return self._measure([server], fail, lambda: self._start_service(server))

    def fail_machine(self, server: int) -> dict[str, float]:
        return self._measure([server], lambda: self._power_off(server), lambda: self._power_on(server))

    def cut_off(self, server: int) -> dict[str, float]:
        return self._measure([server], lambda: _plug(server, "down"), lambda: _plug(server, "up"))

    def fail_two(self, server: int) -> dict[str, float]:
        other = server % len(SERVERS) + 1

        def fail() -> None:
            self._power_off(server)
            self._power_off(other)

        def mend() -> None:
            self._power_on(server)
            self._power_on(other)

        return self._measure([server, other], fail, mend)

    def _power_off(self, server: int) -> None:
        _plug(server, "down")
        for process in (self._daemons.pop(server), self._services.pop(server)):
            self._kill(process)
        for pid in _ip("netns", "pids", _space(server)).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.end_guests(server)

    def _power_on(self, server: int) -> None:
        shown = _ip("-n", _space(server), "-o", "address", "show", "dev", "eth0")
        for held in re.findall(r"inet (10\.78\.0\.\d+)/24", shown):
            if held != _address(server):
                _ip("-n", _space(server), "address", "delete", f"{held}/24", "dev", "eth0")
        _plug(server, "up")
        self._start_service(server)
        self._start_daemon(server)

    def _measure(self, servers: list[int], fail, mend) -> dict[str, float]:
        clients = {server: self.client(server) for server in servers}
        failed_ns = time.time_ns()
        fail()
        for server, client in clients.items():
            client.wait_for_change(failed_ns, f"S{server} played", f"S{server} is played")
        observer = self._first_other(*servers)
        found: dict[str, float] = {}
        self.story = ""
        for server, client in clients.items():
            steps = json.loads(self._why(observer, server))["steps"]
            self.story += self.call(observer, "why", f"S{server}")
            phases = self._phases(steps, failed_ns)
            if "certain" in phases and "answering (log)" in phases:
                phases[FUNCTION] = phases["answering (log)"] - phases["certain"]
            for phase, value in phases.items():
                found[phase] = max(found.get(phase, 0), value)
            outage = client.outage_ms(failed_ns, f"S{server} played")
            found["outage (client)"] = max(found.get("outage (client)", 0), outage)
        begun_ns = time.time_ns()
        mend()
        for server, client in clients.items():
            self._bench.processes.wait_until(
                f"S{server} is linked", lambda server=server: self._try_failback(observer, server), 60
            )
            client.wait(lambda page, server=server: page == f"S{server} itself", f"S{server} serves itself")
            back_ns = next(ended for _, ended, page in client.read() if ended > begun_ns and page == f"S{server} itself")
            found["back (client)"] = max(found.get("back (client)", 0), (back_ns - begun_ns) / 1e6)
            client.stop()
        self._wait_rest()
        return found

    def _why(self, observer: int, server: int) -> str:
        """The story so far, once it tells that the stand-in serves."""
        self._bench.processes.wait_until(
            f"the log tells that S{server} is played",
            lambda: '"the stand-in serves"' in self.call(observer, "why", f"S{server}", "--json"),
            20,
        )
        return self.call(observer, "why", f"S{server}", "--json")

    def _try_failback(self, observer: int, server: int) -> bool:
        try:
            self.call(observer, "failback", f"S{server}")
        except RigError as error:
            # It may have been back before anybody said so.
            return "plays itself" in str(error)
        return True

    def _phases(self, steps: list[dict], failed_ns: int) -> dict[str, float]:
        failed_ms = failed_ns / 1e6
        # Decided, and written down: a decision itself carries the time of the wish.
        wanted = {
            "certain": "the failure is certain",
            "decided": "it is out of the file Group",
            "installed": "the installation procedure is done",
            "answering (log)": "the stand-in serves",
        }
        phases = {}
        for phase, words in wanted.items():
            times = [step["time_ms"] for step in steps if step["what"].startswith(words)]
            if times:
                phases[phase] = max(0.0, times[0] - failed_ms)
        return phases


# ---- keepalived ----


def _keepalived(bench: Bench, interval: str, runs: int) -> Case:
    case = Case(f"keepalived, advert_int {interval}")
    try:
        packages.ensure(["keepalived"], bench.progress)
    except Skipped as skipped:
        bench.skip("keepalived", str(skipped))
        raise
    program = shutil.which("keepalived", path=f"{os.environ['PATH']}:/usr/sbin") or "keepalived"
    address = "10.78.0.99"
    daemons: dict[int, subprocess.Popen[bytes]] = {}

    def start(host: int) -> None:
        settings = bench.work / f"keepalived-{host}.conf"
        priority = 150 if host == 1 else 100
        settings.write_text(
            "global_defs {\n  router_id rig\n  vrrp_version 3\n}\n"
            "vrrp_instance service {\n  state BACKUP\n  interface eth0\n  virtual_router_id 51\n"
            f"  priority {priority}\n  advert_int {interval}\n  virtual_ipaddress {{\n    {address}/24\n  }}\n}}\n"
        )
        files = [f"--{what}pid={bench.work}/keepalived-{host}{what}.pid" for what in ("", "vrrp_", "checkers_")]
        words = ["--dont-fork", "--log-console", "--vrrp", f"--use-file={settings}"]
        daemons[host] = bench.processes.start(f"keepalived-{host}", [*_enter(host), program, *words, *files])

    for host in (1, 2):
        pages = bench.work / f"pages-{host}"
        pages.mkdir()
        (pages / "index.html").write_text(f"host {host}\n")
        argv = [*_enter(host), "python3", "-m", "http.server", "80", "--directory", str(pages)]
        bench.processes.start(f"web-{host}", argv)
        start(host)
    client = Client(bench, address)
    for number in range(runs):
        bench.progress.phase(f"{case.name}: {number + 1} of {runs}")
        client.wait(lambda page: page == "host 1", "the first host has the address")
        failed_ns = time.time_ns()
        _plug(1, "down")
        client.wait(lambda page: page == "host 2", "the second host has the address")
        case.runs.append({"outage (client)": client.outage_ms(failed_ns, "host 2")})
        _plug(1, "up")
    client.stop()
    return case


# ---- the report ----


def _write(bench: Bench, cases: list[Case], preset: str) -> None:
    phases = [*PHASES, "back (client)"]
    with open(bench.folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["case", "run", "phase", "milliseconds"])
        for case in cases:
            for number, found in enumerate(case.runs, 1):
                rows.writerows([case.name, number, phase, f"{value:.1f}"] for phase, value in found.items())
    outages = {case.name: [found["outage (client)"] for found in case.runs] for case in cases if case.runs}
    plot.distributions(bench.folder, "recovery", "A client's outage", "milliseconds from the failure (log scale)", outages, "runs")
    title = "# From a failure to a stand-in that answers" + (", with the preset `paper`" if preset == "paper" else "")
    lines = [title, ""]
    lines += ["| failure | runs | " + " | ".join(f"{phase} ms" for phase in phases) + " | spread of the outage ms |"]
    lines += ["|---" * (len(phases) + 3) + "|"]
    for case in cases:
        medians = [case.median(phase) for phase in phases]
        cells = [f"{value:.0f}" if value is not None else "-" for value in medians]
        lines.append(f"| {case.name} | {len(case.runs)} | {' | '.join(cells)} | {case.spread('outage (client)')} |")
    lines += ["", *_ratios(cases)]
    if preset == "paper":
        lines += ["", *_beside_the_paper(cases)]
    print("\n".join(lines[2:]))
    lines += ["", "![outages](recovery.svg)", "", " ".join((__doc__ or "").split()), ""]
    lines += [f"- {name}: {value}" for name, value in machine.facts(bench.folder).items()]
    (bench.folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{bench.folder / 'report.md'}")


def _beside_the_paper(cases: list[Case]) -> list[str]:
    by_name = {case.name: case for case in cases}
    lines = ["| from certain to serving | here, s | the paper, s | its conventional method, s |", "|---|---|---|---|"]
    for failure, (name, proposed, conventional) in PAPER.items():
        took = by_name[name].median(FUNCTION)
        lines.append(f"| {failure} | {'-' if took is None else f'{took / 1000:.2f}'} | {proposed} | {conventional} |")
    return [*lines, "", "The paper starts virtual machines of 2019 and prepares them by a shell script; here a process that waits is continued."]


def _ratios(cases: list[Case]) -> list[str]:
    by_name = {case.name: case for case in cases}
    lines = []
    for case in cases:
        certain, decided, answering = (case.median(phase) for phase in PHASES[:3])
        if certain is not None and answering is not None:
            decision = f", {decided - certain:.0f} ms to decided and written down" if decided is not None else ""
            lines.append(f"- {case.name}: {answering - certain:.0f} ms from certain to answering{decision}")
    one, two = by_name["machine"].median("outage (client)"), by_name["two at once"].median("outage (client)")
    if one and two:
        lines.append(f"- two at once: {two / one:.2f} of one machine")
    for case in cases:
        if case.name.startswith("keepalived") and one and (other := case.median("outage (client)")):
            lines.append(f"- machine: {one / other:.2f} of {case.name}")
    return lines
