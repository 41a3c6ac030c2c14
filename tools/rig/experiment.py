"""`tools/experiment`: the experiment of the paper (Figs. 7, 9, 14, 15) on this machine, with real services and virtual machines; and more.

Method of the recoveries: six servers as network namespaces on one switch: Mail (postfix), Login (sshd), FTP (vsftpd), Proxy (squid), Web 1
and Web 2 (nginx), each with a daemon, a libvirtd of its own and one original server: a virtual machine of the image `full` (Debian
packages on a qcow2 disk), emulated, paused in memory. A client in a seventh namespace asks the service under test every 20 ms (sshd, which
starts a process for each, every 200 ms). Failures: St, the service is killed; Nt, the server's link is down and nothing is killed;
machines, switched off. `p2pdb why --json` gives the moments of certain, decided and serving; the client's disconnection is counted from
the failure to the first answer of the stand-in. Of several servers the last counts. Between two runs the server comes back, and all is at
rest. "Alone" is what it takes to resume an original, put the procedure into it and run it, on the idle group (`p2pdb procedure test`).
"""

import contextlib
import csv
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from . import conventional, etcd, machine, namespaces, nfs, p2pdb, pacemaker, packages, paper_group, plot, recovery, report, starts, sync
from .bench import Bench
from .errors import RigError, Skipped
from .findings import KEPT, PARTS, Findings, Part
from .measure import Results
from .paper_group import NAMES, NETWORK_RATE, PaperGroup
from .recovery import Case
from .starts import Starts
from .virtual_machines import IMAGE, MEMORY_MIB

NO_DECISION_S = 10
# The paper's failures that are made with the preset `fast` as well; with `paper` all are.
QUICK = ["St", "Nt", "St and Nt, neighbours"]
# By how much the paper's method was quicker than its conventional one: Fig. 14, and Fig. 15 for two servers.
PAPER_RATIO, PAPER_RATIO_OF_TWO = 1.9, 2.2
METHODS = (sync, p2pdb, etcd, nfs, starts, conventional, recovery, pacemaker)


class Run:
    """The measuring of one part."""

    def __init__(self, bench: Bench, findings: Findings, name: str) -> None:
        self._bench, self._findings, self._name = bench, findings, name
        self._begun = time.monotonic()
        bench.results = Results()
        self.part = Part(results=bench.results)

    def keep(self) -> None:
        """What was found so far stands, whatever comes."""
        facts = machine.facts(self._bench.folder)
        self.part.source, self.part.ended = facts["source"], facts["date"]
        self.part.minutes = (time.monotonic() - self._begun) / 60
        self._findings.put(self._name, self.part)
        _write(self._bench, self._findings)

    def repeat(self, name: str, runs: int, server: int, fail: Callable[[int], dict[str, float]]) -> None:
        self.part.cases.append(recovery.repeat(self._bench, name, runs, [server], fail))
        self.keep()


def run(bench: Bench, runs: int, paper_runs: int, extra_runs: int, parts: list[str], published: Path | None) -> None:
    """Measures parts; those that the folder has from before and that are not measured now stay in the report. `published`: where the
    report is to be put as well; what is there of parts that the folder lacks stays in it, too."""
    packages.ensure(paper_group.PROGRAMS, bench.progress)
    findings = Findings(bench.folder, published)
    measures = {
        "sync": lambda _: sync.run(bench, ["p2pdb", "etcd", "nfs"]),
        "starts": lambda run: _measure_starts(bench, run, runs),
        "fast": lambda run: _measure_fast(bench, run, runs, extra_runs),
        "more": lambda run: _measure_more(bench, run, extra_runs),
        "paper": lambda run: _measure_paper(bench, run, paper_runs),
        "conventional": lambda run: conventional.measure(bench, paper_runs, run.repeat),
        "peers": lambda run: _measure_peers(bench, run, extra_runs),
    }
    for name in (name for name in PARTS if name in parts):
        part = Run(bench, findings, name)
        # The part `sync` takes the lock itself.
        with contextlib.nullcontext() if name == "sync" else namespaces.machine_lock():
            try:
                measures[name](part)
            except RigError as why:
                # What was measured before stands.
                bench.skip(f"the rest of {name}", str(why))
        part.keep()
    bench.progress.clear()
    print("\n".join(_write(bench, findings)))
    print(f"\n{bench.folder / 'report.md'}")
    if published:
        _publish(bench.folder, published)


def _measure_starts(bench: Bench, run: Run, runs: int) -> None:
    with recovery._network(NETWORK_RATE), bench.fresh():
        run.part.starts = starts.measure(bench, runs)


def _measure_fast(bench: Bench, run: Run, runs: int, few: int) -> None:
    with recovery._network(NETWORK_RATE), bench.fresh():
        group = PaperGroup(bench, "fast")
        try:
            group.start()
            run.part.alone_ms = [group.procedure_alone(5) for _ in range(few)]
            _add_papers_cases(run, group, "fast", runs, QUICK)
            for server in (1, 2, 3, 4):
                run.repeat(f"St of {NAMES[server]}, fast", few, server, group.fail_service)
        finally:
            group.stop()


def _measure_more(bench: Bench, run: Run, few: int) -> None:
    """Beyond the paper."""
    with recovery._network(NETWORK_RATE), bench.fresh():
        group = PaperGroup(bench, "fast")
        try:
            group.start()
            run.repeat("three machines, fast", few, 4, lambda _: group.fail_machines([4, 5, 6]))
            run.repeat("the host of a stand-in, fast", few, 5, group.fail_host_of_stand_in)
            run.repeat("two parted from four, fast", few, 5, lambda _: group.split([5, 6]))
            without = "half with the first elector, without witness, fast"
            run.repeat(without, 1, 1, lambda _: group.fail_half_without_decision([1, 2, 3], NO_DECISION_S))
            group.add_witness()
            run.repeat("half with the first elector, with witness, fast", few, 1, lambda _: group.fail_machines([1, 2, 3]))
        finally:
            group.stop()


def _measure_paper(bench: Bench, run: Run, runs: int) -> None:
    with recovery._network(NETWORK_RATE), bench.fresh():
        group = PaperGroup(bench, "paper")
        try:
            group.start()
            _add_papers_cases(run, group, "paper", runs, list(group.papers_failures()))
        finally:
            group.stop()


def _measure_peers(bench: Bench, run: Run, few: int) -> None:
    for interval in ("1", "0.1"):
        with recovery._network(), bench.fresh():
            run.part.cases += _unless_skipped(bench, "keepalived", lambda interval=interval: [recovery._keepalived(bench, interval, few)])
    run.part.cases += _unless_skipped(bench, "Pacemaker", lambda: pacemaker.measure(bench, few))


def _unless_skipped(bench: Bench, name: str, measure: Callable[[], list[Case]]) -> list[Case]:
    try:
        return measure()
    except (Skipped, RigError) as why:
        bench.skip(name, str(why))
        return []


def _add_papers_cases(run: Run, group: PaperGroup, preset: str, runs: int, failures: list[str]) -> None:
    for failure in failures:
        run.repeat(f"{failure}, {preset}", runs, 5, group.papers_failures()[failure])
        run.part.stories[f"{failure}, {preset}"] = group.story


# ---- the report ----


def _publish(found: Path, published: Path) -> None:
    """The report becomes the README of a folder, with what people have to say of it in front, from `remarks.md` there."""
    for old in (*published.glob("why-*.txt"), *published.glob("*.svg")):
        old.unlink()
    for kept in (*found.glob("why-*.txt"), *found.glob("*.svg"), found / "samples.csv"):
        shutil.copy(kept, published)
    shutil.copytree(found / KEPT, published / KEPT, dirs_exist_ok=True)
    title, rest = (found / "report.md").read_text(encoding="utf-8").split("\n", 1)
    remarks = published / "remarks.md"
    said = remarks.read_text(encoding="utf-8").partition("\n")[2].strip() if remarks.exists() else ""
    (published / "README.md").write_text(f"{title}\n\n{said}\n{rest}", encoding="utf-8")


def _write(bench: Bench, found: Findings) -> list[str]:
    _write_samples(bench, found)
    for part in found.parts.values():
        for name, story in part.stories.items():
            slug = name.lower().replace(",", "").replace(" ", "-")
            (bench.folder / f"why-{slug}.txt").write_text(story, encoding="utf-8")
    pictures = _plot(bench, found)
    lines = ["## How the goals stand", "", *_goals(found), ""]
    if found.results.latencies:
        lines += ["## Synchronisation of an edit (Fig. 7)", "", *report.table(found.results), ""]
        lines += ["The paper's files took 110 ms to all servers. To *all five others*: the slowest counts.", ""]
    if found.starts.samples:
        lines += ["## Start of virtual machines (Fig. 9)", "", *_start_table(found.starts), "", *_cost_table(found.starts), ""]
    if found.cases:
        lines += ["## Recovery (Figs. 14 and 15)", "", *_recovery_table(found.cases), "", *_remarks(found), ""]
    methods = [f"- {' '.join((module.__doc__ or '').split())}" for module in METHODS]
    method = " ".join((__doc__ or "").split())
    text = ["# The paper's experiment", "", *lines, *pictures, "## Method", "", method, "", *methods, ""]
    text += ["## Parts, and the machine", "", *_part_table(found), "", *_facts(bench, found), ""]
    (bench.folder / "report.md").write_text("\n".join(text), encoding="utf-8")
    return lines


def _part_table(found: Findings) -> list[str]:
    rows = [[name, part.source, part.ended, f"{part.minutes:.0f}"] for name, part in found.parts.items()]
    return report.aligned([["part", "code", "ended", "minutes"], *rows])


def _facts(bench: Bench, found: Findings) -> list[str]:
    image = json.loads((IMAGE / "image.json").read_text())
    facts = {name: value for name, value in machine.facts(bench.folder).items() if name not in ("source", "date")}
    facts["guests"] = f"{MEMORY_MIB} MiB, one emulated processor, {len(image['packages'])} packages"
    for part in found.parts.values():
        facts |= part.results.notes
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    skipped = dict.fromkeys(entry for part in found.parts.values() for entry in part.results.skipped)
    return lines + [f"- skipped: {name}: {why}" for name, why in skipped]


def _write_samples(bench: Bench, found: Findings) -> None:
    with open(bench.folder / "samples.csv", "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["case", "run", "phase", "milliseconds"])
        for series in found.results.latencies:
            rows.writerows([series.label, number, "edit", f"{value:.3f}"] for number, value in enumerate(series.milliseconds(), 1))
        for kind, values in found.starts.samples.items():
            rows.writerows([kind, number, "start", f"{value:.1f}"] for number, value in enumerate(values, 1))
        rows.writerows(["procedure alone", number, "resume and install", f"{value:.1f}"] for number, value in enumerate(found.alone_ms, 1))
        for case in found.cases:
            for number, phases in enumerate(case.runs, 1):
                rows.writerows([case.name, number, phase, f"{value:.1f}"] for phase, value in phases.items())


def _plot(bench: Bench, found: Findings) -> list[str]:
    names = []
    if found.results.latencies:
        plot.latencies(found.results, bench.folder)
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
    outages = {case.name: [phases["outage (client)"] for phases in case.runs] for case in found.cases}
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
    for case in found.cases:
        name, _, preset = case.name.rpartition(", ")
        if preset != "paper":
            continue
        ours, theirs = case.median(recovery.FUNCTION), found.median(f"{name}, conventional (NFS)", recovery.FUNCTION)
        paper = PAPER_RATIO_OF_TWO if "neighbours" in name else PAPER_RATIO
        goal(f"recovery of the function, {name}: conventional at least {paper} × ours (preset paper)", _ratio(theirs, ours), None, paper)
    return report.aligned([["goal", "found", "kept"], *rows])


def _from_certain(found: Findings, name: str, phase: str = "answering (log)") -> float | None:
    """The recovery of the function, as the paper counts it: from the failure's being certain to the service's answering. The median of the
    runs' own differences, not the difference of two medians, which may be of different runs."""
    case = found.case(name)
    took = [phases[phase] - phases["certain"] for phases in case.runs if phase in phases and "certain" in phases] if case else []
    return statistics.median(took) if took else None


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
