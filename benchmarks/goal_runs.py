"""The runs behind `goals`: which runners take turns on which scene."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diff_gaussian_rasterization
from diff_gaussian_rasterization import isa_supported

from benchmarks import losses
from benchmarks.cases import Case, Measured, Runner, measure
from benchmarks.goals import MAIN, SCENES, Finding, compared, unmeasured, whole_iterations
from benchmarks.modules import Rasterization
from benchmarks.ours import Fused, Worker
from benchmarks.prototype import Prototype

THREADS = 2
SCALING_REPEATS = 15  # scaling is what load on the machine disturbs most
ISAS = ("avx512", "avx2")
Say = Callable[[str], None]


class GoalRuns:
    """Measures every goal; `measured` keeps all times by scene and comparison, `loads` the load average at each.

    Parameters
    ----------
    library : the compiled prototype, or None.
    main, scenes : `goals.MAIN` and `goals.SCENES`, or small ones in tests.
    """

    def __init__(
        self,
        library: Path | None,
        repeats: int,
        say: Say,
        main: Case = MAIN,
        scenes: tuple[Case, ...] = SCENES,
    ) -> None:
        self.library, self.repeats, self.say, self.main, self.scenes = library, repeats, say, main, scenes
        self.measured: dict[str, Measured] = {}
        self.loads: dict[str, list[float]] = {}

    def findings(self) -> list[Finding]:
        """All goals, in the order of the table."""
        return [*self._prototype(), self._two_term(), self._threads(), self._isa(), self._loss()]

    def _run(self, name: str, runners: dict[str, Runner], repeats: int = 0) -> Measured:
        self.loads[name] = [round(load, 2) for load in os.getloadavg()]
        self.say(f"{name}: load average {self.loads[name]}")
        self.measured[name] = measure(runners, max(self.repeats, repeats))
        return self.measured[name]

    def _prototype(self) -> list[Finding]:
        if self.library is None:
            return unmeasured(["whole", "mean", "worst", "autograd"], "needs --against DIR, the prototype")
        main, *scenes = (
            self._run(
                f"{case} against the prototype",
                {"ours": Fused(case, THREADS), "prototype": Prototype(self.library, case, THREADS)},
            )
            for case in (self.main, *self.scenes)
        )
        found = whole_iterations(main, dict(zip(map(str, self.scenes), scenes, strict=True)))
        runners: dict[str, Runner] = {
            "ours autograd": Rasterization(diff_gaussian_rasterization, self.main, THREADS),
            "prototype": Prototype(self.library, self.main, THREADS, adam=False),
        }
        results = self._run("autograd against the prototype's render stages, gradients written", runners)
        return [*found, compared("autograd", results, "ours autograd", "prototype", "raster")]

    def _two_term(self) -> Finding:
        runners: dict[str, Runner] = {
            "two terms": Fused(self.main, THREADS, two_term=True),
            "HR term": Fused(self.main, THREADS),
        }
        return compared("two_term", self._run("two terms against one", runners), "two terms", "HR term")

    def _threads(self) -> Finding:
        runners: dict[str, Runner] = {"1 thread": Fused(self.main, 1), "2 threads": Fused(self.main, 2)}
        results = self._run("threads", runners, SCALING_REPEATS)
        finding = compared("threads", results, "1 thread", "2 threads")
        return Finding(finding.goal, finding.ratio, f"{finding.detail}; load average {self.loads['threads']}")

    def _isa(self) -> Finding:
        missing = [isa for isa in ISAS if not isa_supported(isa)]
        if missing:
            return unmeasured(["avx2"], f"this processor or build has no {' and no '.join(missing)}")[0]
        workers = {isa: Worker(self.main, THREADS, isa) for isa in ISAS}
        runners: dict[str, Any] = dict(workers)
        try:
            return compared("avx2", self._run("instruction sets", runners), "avx2", "avx512")
        finally:
            for worker in workers.values():
                worker.close()

    def _loss(self) -> Finding:
        size = (self.main.size, self.main.size)
        runners: dict[str, Runner] = {what: losses.Loss(what, size, THREADS) for what in (losses.TORCH, losses.HR)}
        return compared("loss", self._run("loss", runners), losses.TORCH, losses.HR, "loss")
