"""`tools/experiment`: the experiment of the paper (Figs. 7, 9, 14, 15) on this machine, with real services and virtual machines; and more.

Method of the recoveries: six servers as network namespaces on one switch: Mail (postfix), Login (sshd), FTP (vsftpd), Proxy (squid), Web 1
and Web 2 (nginx), each with a daemon, a libvirtd of its own and one original server: a virtual machine of the image `full` (Debian
packages on a qcow2 disk), emulated, paused in memory. A client in a seventh namespace asks the service under test every 20 ms (sshd, which
starts a process for each, every 200 ms). Failures: St, the service is killed; Nt, the server's link is down and nothing is killed;
machines, switched off. `p2pdb why --json` gives the moments of certain, decided and serving; the client's disconnection is counted from
the failure to the first answer of the stand-in. Of several servers the last counts. Between two runs the server comes back, and all is at
rest. "Alone" is what it takes to resume an original, put the procedure into it and run it, on the idle group (`p2pdb procedure test`).
"""

import csv
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import conventional, etcd, machine, namespaces, nfs, p2pdb, pacemaker, packages, paper_group, plot, recovery, report, starts, sync
from .bench import Bench
from .errors import RigError, Skipped
from .paper_group import NAMES, NETWORK_RATE, PaperGroup
from .recovery import Case
from .starts import Starts
from .virtual_machines import IMAGE, MEMORY_MIB

NO_DECISION_S = 10
METHODS = (sync, p2pdb, etcd, nfs, starts, conventional, recovery, pacemaker)
PARTS = ("sync", "starts", "fast", "more", "paper", "peers")


@dataclass
class Findings:
    """What was found so far."""

    starts: Starts = field(default_factory=Starts)
    cases: list[Case] = field(default_factory=list)
    alone_ms: list[float] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def case(self, name: str) -> Case | None:
        return next((case for case in self.cases if case.name == name), None)

    def median(self, name: str, phase: str) -> float | None:
        case = self.case(name)
        return case.median(phase) if case else None


def run(bench: Bench, runs: int, paper_runs: int, extra_runs: int, parts: list[str]) -> None:
    packages.ensure(paper_group.PROGRAMS, bench.progress)
    found = Findings()
    if "sync" in parts:
        sync.run(bench, ["p2pdb", "etcd", "nfs"])
    with namespaces.machine_lock():
        measures = {
            "starts": lambda: _measure_starts(bench, found, runs),
            "fast": lambda: _measure_fast(bench, found, runs, extra_runs),
            "more": lambda: _measure_more(bench, found, extra_runs),
            "paper": lambda: _measure_paper(bench, found, paper_runs),
            "peers": lambda: _measure_peers(bench, found, extra_runs),
        }
        for part, measure in measures.items():
            if part not in parts:
                continue
            try:
                measure()
            except RigError as why:
                # What was measured before stands.
                bench.skip(f"the rest of {part}", str(why))
            _write(bench, found)
    bench.progress.clear()
    print("\n".join(_write(bench, found)))
    print(f"\n{bench.folder / 'report.md'}")


def _measure_starts(bench: Bench, found: Findings, runs: int) -> None:
    with recovery._network(NETWORK_RATE), bench.fresh():
        found.starts = starts.measure(bench, runs)


def _measure_fast(bench: Bench, found: Findings, runs: int, few: int) -> None:
    with recovery._network(NETWORK_RATE), bench.fresh():
        group = PaperGroup(bench, "fast")
        try:
            group.start()
            found.alone_ms = [group.procedure_alone(5) for _ in range(few)]
            _add_papers_cases(bench, found, group, "fast", runs)
            for server in (1, 2, 3, 4):
                _repeat(bench, found, f"St of {NAMES[server]}, fast", few, server, group.fail_service)
        finally:
            group.stop()


def _measure_more(bench: Bench, found: Findings, few: int) -> None:
    """Beyond the paper."""
    with recovery._network(NETWORK_RATE), bench.fresh():
        group = PaperGroup(bench, "fast")
        try:
            group.start()
            _repeat(bench, found, "three machines, fast", few, 4, lambda _: group.fail_machines([4, 5, 6]))
            _repeat(bench, found, "the host of a stand-in, fast", few, 5, group.fail_host_of_stand_in)
            _repeat(bench, found, "two parted from four, fast", few, 5, lambda _: group.split([5, 6]))
            without = "half with the first elector, without witness, fast"
            _repeat(bench, found, without, 1, 1, lambda _: group.fail_half_without_decision([1, 2, 3], NO_DECISION_S))
            group.add_witness()
            _repeat(bench, found, "half with the first elector, with witness, fast", few, 1, lambda _: group.fail_machines([1, 2, 3]))
        finally:
            group.stop()


def _measure_paper(bench: Bench, found: Findings, runs: int) -> None:
    with recovery._network(NETWORK_RATE), bench.fresh():
        group = PaperGroup(bench, "paper")
        try:
            group.start()
            _add_papers_cases(bench, found, group, "paper", runs)
        finally:
            group.stop()
    found.cases += conventional.measure(bench, runs)


def _measure_peers(bench: Bench, found: Findings, few: int) -> None:
    for interval in ("1", "0.1"):
        with recovery._network(), bench.fresh():
            found.cases += _unless_skipped(bench, "keepalived", lambda interval=interval: [recovery._keepalived(bench, interval, few)])
    found.cases += _unless_skipped(bench, "Pacemaker", lambda: pacemaker.measure(bench, few))


def _unless_skipped(bench: Bench, name: str, measure: Callable[[], list[Case]]) -> list[Case]:
    try:
        return measure()
    except (Skipped, RigError) as why:
        bench.skip(name, str(why))
        return []


def _add_papers_cases(bench: Bench, found: Findings, group: PaperGroup, preset: str, runs: int) -> None:
    failures = {"St": group.fail_service, "Nt": group.cut_off, "St and Nt, neighbours": group.fail_neighbours}
    for failure, fail in failures.items():
        _repeat(bench, found, f"{failure}, {preset}", runs, 5, fail)
        _keep_story(bench, group, f"{failure}, {preset}")


def _repeat(bench: Bench, found: Findings, name: str, runs: int, server: int, fail: Callable[[int], dict[str, float]]) -> None:
    found.cases.append(recovery.repeat(bench, name, runs, [server], fail))
    _write(bench, found)


def _keep_story(bench: Bench, group: PaperGroup, name: str) -> None:
    """How p2pdb itself explains the last run of a failure."""
    (bench.folder / f"why {name}.txt").write_text(group.story, encoding="utf-8")


# ---- the report ----


def _write(bench: Bench, found: Findings) -> list[str]:
    cases = [case for case in found.cases if case.runs]
    _write_samples(bench, found, cases)
    pictures = _plot(bench, found, cases)
    lines = ["## How the goals stand", "", *_goals(found), ""]
    if bench.results.latencies:
        lines += ["## Synchronisation of an edit (Fig. 7)", "", *report.table(bench.results), ""]
        lines += ["The paper's files took 110 ms to all servers. To *all five others*: the slowest counts.", ""]
    if found.starts.samples:
        lines += ["## Start of virtual machines (Fig. 9)", "", *_start_table(found.starts), "", *_cost_table(found.starts), ""]
    if cases:
        lines += ["## Recovery (Figs. 14 and 15)", "", *_recovery_table(cases), "", *_remarks(found), ""]
    facts = [f"- {name}: {value}" for name, value in machine.facts(bench.folder).items()]
    image = json.loads((IMAGE / "image.json").read_text())
    took_s = time.monotonic() - found.begun
    facts.append(f"- guests: {MEMORY_MIB} MiB, one emulated processor, {len(image['packages'])} packages; the experiment took {took_s / 60:.0f} min")
    facts += [f"- {name}: {version}" for name, version in bench.results.notes.items()]
    facts += [f"- skipped: {name}: {why}" for name, why in bench.results.skipped]
    methods = [f"- {' '.join((module.__doc__ or '').split())}" for module in METHODS]
    method = " ".join((__doc__ or "").split())
    text = ["# The paper's experiment", "", *lines, *pictures, "## Method", "", method, "", *methods, "", "## Machine", "", *facts, ""]
    (bench.folder / "report.md").write_text("\n".join(text), encoding="utf-8")
    return lines


def _write_samples(bench: Bench, found: Findings, cases: list[Case]) -> None:
    with open(bench.folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["case", "run", "phase", "milliseconds"])
        for series in bench.results.latencies:
            rows.writerows([series.label, number, "edit", f"{value:.3f}"] for number, value in enumerate(series.milliseconds(), 1))
        for kind, values in found.starts.samples.items():
            rows.writerows([kind, number, "start", f"{value:.1f}"] for number, value in enumerate(values, 1))
        rows.writerows(["procedure alone", number, "resume and install", f"{value:.1f}"] for number, value in enumerate(found.alone_ms, 1))
        for case in cases:
            for number, phases in enumerate(case.runs, 1):
                rows.writerows([case.name, number, phase, f"{value:.1f}"] for phase, value in phases.items())


def _plot(bench: Bench, found: Findings, cases: list[Case]) -> list[str]:
    names = []
    if bench.results.latencies:
        plot.latencies(bench.results, bench.folder)
        names.append("latency")
    if found.starts.samples:
        plot.rows(bench.folder, "starts", "Start of virtual machines", "milliseconds until they answer (log scale)", found.starts.samples)
        names.append("starts")
    if found.starts.memory_mib:
        points = {
            f'keep = "{keep}"': (found.starts.memory_mib[way], found.starts.median(f"two {way}") or 0)
            for keep, way in (("paused", "resumed"), ("saved", "from disk"))
        }
        title = "Two originals: what they cost while they wait, and how soon they answer"
        plot.points(bench.folder, "keeping", title, "MiB of memory for two", "milliseconds until both answer", points)
        names.append("keeping")
    outages = {case.name: [phases["outage (client)"] for phases in case.runs] for case in cases}
    if outages:
        plot.rows(bench.folder, "disconnection", "A client's disconnection", "milliseconds from the failure (log scale)", outages)
        names.append("disconnection")
    return [line for name in names for line in (f"![{name}]({name}.svg)", "")]


def _goals(found: Findings) -> list[str]:
    rows = []

    def goal(text: str, value: float | None, most: float | None = None, least: float | None = None) -> None:
        if value is not None:
            kept = (most is None or value <= most) and (least is None or value >= least)
            rows.append([text, f"{value:.2f} ×", "yes" if kept else "NO"])

    goal("two resumed at once: at most 1.1 × one (the paper: 1.04 ×)", _ratio(found.starts.median("two resumed"), found.starts.median("one resumed")), 1.1)
    alone = statistics.median(found.alone_ms) if found.alone_ms else None
    goal("St, verdict to answering: at most 1.5 × resume + push + run alone", _ratio(_from_certain(found, "St, fast"), alone), 1.5)
    installed = _ratio(_from_certain(found, "Nt, fast", "installed"), alone)
    goal("Nt, warm-up hides at least half: verdict to installed at most 0.5 × alone", installed, 0.5)
    for name, paper in (("St", 1.9), ("Nt", 1.9), ("St and Nt, neighbours", 2.2)):
        ours, theirs = (found.median(f"{name}, {which}", recovery.FUNCTION) for which in ("paper", "conventional (NFS)"))
        goal(f"recovery of the function, {name}: conventional at least {paper} × ours (preset paper)", _ratio(theirs, ours), None, paper)
    return report.aligned([["goal", "found", "kept"], *rows])


def _from_certain(found: Findings, name: str, phase: str = "answering (log)") -> float | None:
    """The recovery of the function, as the paper counts it: from the failure's being certain to the service's answering."""
    certain, then = found.median(name, "certain"), found.median(name, phase)
    return None if certain is None or then is None else then - certain


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _start_table(measured: Starts) -> list[str]:
    rows = [["", "runs", "median ms", "smallest to largest", "variation", "the paper, s"]]
    for kind, values in measured.samples.items():
        spread, paper = f"{min(values):.0f} to {max(values):.0f}", starts.PAPER.get(kind)
        rows.append([kind, str(len(values)), f"{statistics.median(values):.0f}", spread, _variation(values), f"{paper}" if paper else "-"])
    lines = report.aligned(rows) + [""]
    for way in starts.WAYS:
        ratio = _ratio(measured.median(f"two {way}"), measured.median(f"one {way}"))
        if ratio:
            lines.append(f"- two at once, {way}: {ratio:.2f} of one")
    for way in ("from disk", "over NFS"):
        ratio = _ratio(measured.median(f"two {way}"), measured.median("two resumed"))
        if ratio:
            lines.append(f"- two at once, {way}: {ratio:.1f} of two resumed")
    return lines


def _cost_table(measured: Starts) -> list[str]:
    rows = [["two originals", "memory, MiB", "on disk, MiB", "one answers after ms", "both answer after ms"]]
    for keep, way in (("paused", "resumed"), ("saved", "from disk")):
        if way in measured.memory_mib:
            one, two = measured.median(f"one {way}") or 0, measured.median(f"two {way}") or 0
            rows.append([f'`keep = "{keep}"`', f"{measured.memory_mib[way]:.0f}", f"{measured.disk_mib[way]:.0f}", f"{one:.0f}", f"{two:.0f}"])
    return report.aligned(rows)


def _recovery_table(cases: list[Case]) -> list[str]:
    phases = [*recovery.PHASES, "back (client)"]
    rows = [["failure", "runs", *(f"{phase} ms" for phase in phases), "disconnection, smallest to largest", "variation"]]
    for case in cases:
        cells = [f"{value:.0f}" if value is not None else "-" for value in map(case.median, phases)]
        variation = _variation([phases["outage (client)"] for phases in case.runs])
        rows.append([case.name, str(len(case.runs)), *cells, case.spread("outage (client)"), variation])
    return report.aligned(rows)


def _remarks(found: Findings) -> list[str]:
    lines = ["- The paper's servers took 4 to 6.4 s from certain to serving, for one and for two at once; its conventional method 10.3 to 12.3 s."]
    if found.alone_ms:
        lines.append(f"- Resume, push and run of Web 1's procedure alone: {statistics.median(found.alone_ms):.0f} ms.")
    for case in found.cases:
        if (took := case.median(recovery.FUNCTION)) is not None:
            lines.append(f"- {case.name}: {took:.0f} ms from certain to serving.")
    back = "outage after the first is back"
    for case in found.cases:
        if (took := case.median(back)) is not None:
            lines.append(f"- {case.name}: nobody decides for {NO_DECISION_S} s; {took:.0f} ms after the first elector is switched on again the others are played.")
    return lines


def _variation(values: list[float]) -> str:
    """The coefficient of variation, as the paper gives it."""
    return f"{statistics.stdev(values) / statistics.mean(values):.2f}" if len(values) > 1 else "-"
