"""A small study file, and the tasks that its plan has."""

from pathlib import Path

from evaluation.study.plan import Plan, Task
from evaluation.study.planner import make_plan
from evaluation.study.spec import read_study

BASE = """
out = "OUT"
seeds = [0, 1]
baseline = "single"
[scenes.toy]
source = "lr"
hr = "hr"
flags = {eval = true}
[variants.single]
order = {ordering = "file"}
upsample = {propagation = "none"}
[variants.low]
order = {ordering = "file"}
upsample = {propagation = "none"}
train = {lambda_tex = 0.2}
[variants.bound]
source = "hr"
"""


def study(tmp_path: Path, text: str, base: str = BASE):
    path = tmp_path / "s.toml"
    path.write_text(base.replace("OUT", str(tmp_path / "out")) + text)
    return read_study(path)


def plan(tmp_path: Path, text: str = "", base: str = BASE, **options: str) -> Plan:
    return make_plan(study(tmp_path, text, base), **options)


def task(plan: Plan, variant: str, kind: str, seed: int = 0) -> Task:
    run = next(r for r in plan.runs if (r.variant, r.seed) == (variant, seed))
    return plan.tasks[getattr(run, kind)]


def words(task: Task, name: str) -> list[str]:
    return list(next(c.words for c in task.commands if c.name == name))
