"""What the parts of the experiment found: each a file in the folder of the results, which outlives the next run.

So parts can be measured one after the other, on different days, and one that is broken off costs nothing of the others.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .measure import Latency, Results
from .recovery import Case
from .starts import Starts

# In the order in which they are measured and told.
PARTS = ("sync", "starts", "fast", "more", "paper", "conventional", "peers")
# The folder of the parts, which outlives the next run.
KEPT = "parts"


@dataclass
class Part:
    """What one part found, of which code, and when; kept as a file, so that parts can be measured one after the other."""

    source: str = ""
    ended: str = ""
    minutes: float = 0
    starts: Starts = field(default_factory=Starts)
    cases: list[Case] = field(default_factory=list)
    alone_ms: list[float] = field(default_factory=list)
    # How p2pdb itself explains the last run of a failure.
    stories: dict[str, str] = field(default_factory=dict)
    results: Results = field(default_factory=Results)

    @staticmethod
    def read(file: Path) -> "Part":
        held = json.loads(file.read_text(encoding="utf-8"))
        results = held.pop("results")
        part = Part(**held)
        part.starts = Starts(**held["starts"])
        part.cases = [Case(**case) for case in held["cases"]]
        part.results = Results(latencies=[Latency(**series) for series in results["latencies"]], notes=results["notes"])
        part.results.skipped = [(name, why) for name, why in results["skipped"]]
        return part


class Findings:
    """What was found so far: the parts, in their order."""

    def __init__(self, folder: Path, others: Path | None) -> None:
        """Those in the folder; of parts that it lacks, those in the other one."""
        self._folder = folder / KEPT
        self._folder.mkdir(exist_ok=True)
        for name in PARTS:
            file = Path(KEPT) / f"{name}.json"
            if others and (others / file).exists() and not (folder / file).exists():
                shutil.copy(others / file, folder / file)
        self.parts = {name: Part.read(file) for name in PARTS if (file := self._folder / f"{name}.json").exists()}

    def put(self, name: str, part: Part) -> None:
        (self._folder / f"{name}.json").write_text(json.dumps(asdict(part), indent=1), encoding="utf-8")
        self.parts = {known: part if known == name else self.parts[known] for known in PARTS if known in {*self.parts, name}}

    @property
    def results(self) -> Results:
        """Of the synchronisation, if that was measured."""
        return self.parts["sync"].results if "sync" in self.parts else Results()

    @property
    def starts(self) -> Starts:
        return self.parts["starts"].starts if "starts" in self.parts else Starts()

    @property
    def alone_ms(self) -> list[float]:
        return [value for part in self.parts.values() for value in part.alone_ms]

    @property
    def cases(self) -> list[Case]:
        return [case for part in self.parts.values() for case in part.cases if case.runs]

    def case(self, name: str) -> Case | None:
        return next((case for case in self.cases if case.name == name), None)

    def median(self, name: str, phase: str) -> float | None:
        case = self.case(name)
        return case.median(phase) if case else None
