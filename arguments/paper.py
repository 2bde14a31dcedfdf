"""Settings of scripts/reproduce_tables.sh (python -m evaluation.paper)."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError


@dataclass(frozen=True)
class PaperParams:
    """Which part of the paper's tables, and where"""

    networks: tuple[str, ...] = opt(("psrt",), "networks: any --upsampler, MODULE:NAME too; psrt is the paper's")
    scenes: tuple[str, ...] = opt((), "only these scenes; their means are then not the paper's")
    seeds: tuple[int, ...] = opt((0,), "one training each; cells are means over them", type=int)
    out: str = opt("output/paper", "folder of all tasks, models and renders", result=False)
    corrected: bool = opt(
        False, "without the release's quirks (RGB, rounded LR views, alpha kept, test views left out)"
    )
    unchecked: bool = opt(
        False, "go on although the data set is not complete: other numbers of views or sizes than the paper's"
    )
    only_table: bool = opt(False, "run nothing, show what is finished")
    dry_run: bool = opt(False, "check data and weights, write the study file, say what would be run")
    format: str = opt("markdown", "markdown, latex, csv or tsv", choices=("markdown", "latex", "csv", "tsv"))
    output: str = opt("", "also write the tables to this file", "-o", result=False)
    quiet: bool = opt(False, "no progress, results and errors only", result=False)

    def __post_init__(self) -> None:
        for name in ("networks", "scenes", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"--{name} {' '.join(map(str, values))}: one is named twice")
        if not self.networks or not self.seeds or min(self.seeds) < 0:
            raise UserError("--networks and --seeds: one or more, seeds from 0, are expected")
