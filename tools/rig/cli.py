"""The command line of `tools/bench`."""

import argparse
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from . import experiment, findings, logsize, namespaces, packages, priority, recovery, report, scale, sync
from .bench import Bench, Options
from .errors import RigError, Skipped
from .progress import Progress

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "target/bench"
PUBLISHED = ROOT / "src/docs/experiment"

ABOUT = """\
Measures how fast p2pdb is, next to what one would otherwise use, on this one machine.

  sync      time from an edit on one of six servers until the five others have it, and edits per second, for: the floor
            (fdatasync + UDP + fdatasync), p2pdb, etcd, corosync, NFS, lsyncd + rsync, syncthing. Six network namespaces
            on one bridge. About 8 minutes (--quick: 2). Needs root.
  scale     what one edit costs as the group grows: 3, 6, 12, 24, 48 daemons on loopback. About 5 minutes.
  log       open, catch-up and replay of logs of 10 k, 100 k, 1 M entries. About 5 minutes.
  priority  what a management transaction waits while a flood is received, priorities on and off. About 1 minute.
  recovery  from a failure to a stand-in that answers: a service, a machine, a cut, two at once; beside keepalived. About 8
            minutes. Needs root.
  experiment  the paper's experiment and more, with virtual machines; run tools/experiment, which builds what it needs. About 90
            minutes. Needs root.
  clean     removes namespaces and processes that a killed run left behind. Needs root.

Results are in target/bench/NAME/: report.md, samples.csv, plots as SVG and PNG, logs/.

Installs from Debian what is missing: python3-matplotlib, gcc, libc6-dev, iproute2; for sync also etcd-server,
etcd-client, libnghttp2-dev, corosync, libcpg-dev, nfs-ganesha, nfs-ganesha-vfs, nfs-common, libnfs-dev, lsyncd, rsync,
syncthing; for recovery keepalived; for experiment also the services it lets fail, python3-libvirt, libnfs-utils, iputils-ping, pacemaker,
resource-agents. None of them is started or enabled as a service. What cannot be had or run here is skipped with a loud line.

The machine should do nothing else meanwhile: the figures are of the moment, the ratios are of one run.
Exit codes: 0 measured, 1 measured and with --check a promise was not kept, 2 failed.
"""


def main() -> int:
    arguments = _parser().parse_args()
    progress = Progress()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        RESULTS.mkdir(parents=True, exist_ok=True)
        with namespaces.locked(RESULTS):
            return arguments.run(arguments, progress)
    except (RigError, Skipped) as error:
        progress.loud(f"tools/bench: {error}")
        return 2
    except KeyboardInterrupt:
        progress.loud("tools/bench: interrupted; everything it started has been ended")
        return 2


def _end(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--binary", type=Path, default=ROOT / "target/release/p2pdb", help="the p2pdb to measure")
    common.add_argument("--out", type=Path, help="where the results go (default: target/bench/NAME)")
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("sync", parents=[common], help="against the alternatives, in six namespaces")
    one.add_argument("--samples", type=int, default=200, help="of each fast system (default: 200)")
    one.add_argument("--slow-samples", type=int, default=10, help="of each slow system (default: 10)")
    one.add_argument("--interval-ms", type=int, default=20, help="between edits (default: 20)")
    one.add_argument("--rounds", type=int, default=4, help="fast systems take turns so often (default: 4)")
    one.add_argument("--only", default=",".join(sync.SYSTEMS), metavar="NAMES", help="of: %(default)s")
    one.add_argument("--quick", action="store_true", help="fewer samples, one round: to see that all runs")
    one.add_argument("--check", action="store_true", help="exit 1 when p2pdb does not keep a promise")
    one.set_defaults(run=_sync)

    two = commands.add_parser("scale", parents=[common], help="the cost of an edit as the group grows")
    two.add_argument("--sizes", default="3,6,12,24,48", help="numbers of daemons (default: %(default)s)")
    two.add_argument("--samples", type=int, default=100, help="edits at each size (default: 100)")
    two.set_defaults(run=_scale)

    three = commands.add_parser("log", parents=[common], help="opening, catching up and replaying as the log grows")
    three.add_argument("--sizes", default="10000,100000,1000000", help="numbers of entries (default: %(default)s)")
    three.set_defaults(run=_log)

    four = commands.add_parser("priority", parents=[common], help="the wait of a management transaction in a flood")
    four.add_argument("--samples", type=int, default=200, help="management transactions (default: 200)")
    four.set_defaults(run=_priority)

    six = commands.add_parser("recovery", parents=[common], help="from a failure to a stand-in that answers")
    six.add_argument("--runs", type=int, default=10, help="of each kind of failure (default: 10)")
    six.add_argument("--preset", choices=["fast", "paper"], default="fast", help="how often is asked (default: fast)")
    six.set_defaults(run=_recovery)

    seven = commands.add_parser("experiment", parents=[common], help="the paper's, with virtual machines; see tools/experiment")
    seven.add_argument("--runs", type=int, default=10, help="of each case (default: 10)")
    seven.add_argument("--paper-runs", type=int, default=10, help="of each with the preset paper and with the conventional method (default: 10)")
    seven.add_argument("--extra-runs", type=int, default=10, help="of each further failure, and of the peers (default: 10)")
    seven.add_argument("--only", default=",".join(findings.PARTS), metavar="PARTS", help="of: %(default)s; what OUT has of the others stays in the report")
    seven.add_argument("--publish", action="store_true", help="put the report into src/docs/experiment, too; what is there of parts that OUT lacks stays in it")
    seven.set_defaults(samples=100, slow_samples=3, interval_ms=20, rounds=2)
    seven.set_defaults(run=_experiment)

    five = commands.add_parser("clean", help="remove what a killed run left behind")
    five.set_defaults(run=_clean)
    return parser


def _sync(arguments: argparse.Namespace, progress: Progress) -> int:
    chosen = _chosen(arguments.only, sync.SYSTEMS)
    _need_root()
    bench = _bench(arguments, progress)
    sync.run(bench, chosen)
    bars = report.write(bench)
    from . import plot

    plot.latencies(bench.results, bench.folder)
    if bench.results.rates:
        plot.rates(bench.results, bench.folder)
    sections = [report.table(bench.results)]
    if bench.results.rates:
        sections.append(report.rate_table(bench.results))
    if bars:
        sections.append(report.bar_table(bars))
    print("\n\n".join("\n".join(section) for section in sections))
    print(f"\n{bench.folder / 'report.md'}")
    return 1 if arguments.check and (not bars or not all(bar.kept for bar in bars)) else 0


def _scale(arguments: argparse.Namespace, progress: Progress) -> int:
    scale.run(_bench(arguments, progress), _sizes(arguments.sizes, 2, 200), arguments.samples)
    return 0


def _log(arguments: argparse.Namespace, progress: Progress) -> int:
    logsize.run(_bench(arguments, progress), _sizes(arguments.sizes, 1, 100_000_000))
    return 0


def _priority(arguments: argparse.Namespace, progress: Progress) -> int:
    priority.run(_bench(arguments, progress), arguments.samples)
    return 0


def _recovery(arguments: argparse.Namespace, progress: Progress) -> int:
    recovery.run(_bench(arguments, progress), arguments.runs, arguments.preset)
    return 0


def _experiment(arguments: argparse.Namespace, progress: Progress) -> int:
    parts = _chosen(arguments.only, findings.PARTS)
    _need_root()
    bench, published = _bench(arguments, progress, findings.KEPT), PUBLISHED if arguments.publish else None
    experiment.run(bench, arguments.runs, arguments.paper_runs, arguments.extra_runs, parts, published)
    return 0


def _clean(arguments: argparse.Namespace, progress: Progress) -> int:
    _need_root()
    with namespaces.machine_lock():
        namespaces.clean()
    return 0


def _bench(arguments: argparse.Namespace, progress: Progress, keep: str = "") -> Bench:
    """The run's folder, with the plotting library in place and a warning when the machine is busy."""
    packages.ensure(["iproute2"], progress)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        progress.loud(f"WARNING: the machine is busy (load {load:.1f} on {cores} cores); the figures will say so too")
    quick = getattr(arguments, "quick", False)
    options = Options(
        samples=30 if quick else getattr(arguments, "samples", 0),
        slow_samples=3 if quick else getattr(arguments, "slow_samples", 0),
        interval_ms=getattr(arguments, "interval_ms", 0),
        rounds=1 if quick else getattr(arguments, "rounds", 1),
        edits_one_writer=200 if quick else 1000,
        edits_many_writers=2000 if quick else 10000,
        idle_seconds=3 if quick else 15,
        binary=arguments.binary,
    )
    folder = arguments.out or RESULTS / arguments.command
    return Bench(options, folder.resolve(), progress, keep)


def _chosen(text: str, known: Iterable[str]) -> list[str]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise RigError(f"--only {','.join(unknown)}: not one of {', '.join(known)}")
    return chosen


def _sizes(text: str, low: int, high: int) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RigError(f"--sizes {text}: not numbers with commas between them") from error
    if not all(low <= size <= high for size in sizes):
        raise RigError(f"--sizes {text}: each must be from {low} to {high}")
    return sorted(sizes)


def _need_root() -> None:
    if os.geteuid() != 0:
        raise RigError("this needs root (network namespaces, packages): run 'sudo tools/bench ...'")
