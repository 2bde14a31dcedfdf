"""Carrying out --choose_lambda for a run: short trainings without the held-out views, and lambda.json.

lambda.json is written after each training, so a search that was cut short goes on from there, and a run that goes on
after it was cut short has the same choice. Its scores belong to its key: lengths, settings but the weights, inputs,
seed, code and machine. A candidate's score does not depend on the others, so another list takes those it shares.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaussian_renderer import render
from training import choose
from training.choose import Candidate, Score
from training.engines import render_options
from training.job import Job
from training.trainer import NonFinite, Trainer
from utils.atomic import read_json, write_json
from utils.errors import UserError
from utils.log import Progress, note, say, warn

FILE_NAME = "lambda.json"
SCHEMA = 1
SHORT_RUN = 6000  # optimisation steps of all candidates together, where --iterations are more
# Settings on which no score depends: those that each candidate replaces, what is in the key as lengths, what is kept.
UNSCORED = ("lambda_tex", "lambda_tex_final", "lambda_candidates", "choose_iterations", "save_iterations")


@dataclass(frozen=True)
class Choice:
    """What --choose_lambda came to: the settings with it, and what a record says of it."""

    job: Job
    path: Path
    facts: dict[str, Any]


def check(job: Job) -> None:
    """Refuse a run in which there is nothing to choose.

    Raises
    ------
    UserError : there are no frames or no LR views, too few views to hold some out, a candidate is malformed, or
    there is only one.
    """
    if job.views.hr is None or job.views.lr is None:
        raise UserError("--choose_lambda: needs pseudo-HR frames and LR views; without both there is nothing to weigh")
    choose.held_out(list(job.views.views), job.settings.training.held_out_every)
    candidates(job)


def plan(job: Job) -> str:
    """Say what a search will do."""
    short, long = _lengths(job)
    views = choose.held_out(list(job.views.views), job.settings.training.held_out_every)
    texts = ", ".join(map(str, candidates(job)))
    return f"choosing lambda_tex from {texts}: {short} and {long} iterations each, {len(views)} LR views held out"


def choose_lambda(job: Job) -> Choice:
    """Choose the weight of the frames' term for a run, or take the choice that was made for this very run.

    Raises
    ------
    UserError : as `check`, or every candidate ended in NaN.
    """
    check(job)
    path, key = job.out / FILE_NAME, _key(job)
    names = choose.held_out(list(job.views.views), job.settings.training.held_out_every)
    content: dict[str, Any] = {"schema": SCHEMA, "held_out": names, "key": key}
    earlier = _earlier(path, key)
    known = {str(candidate): earlier.get(str(candidate), []) for candidate in candidates(job)}
    note(plan(job))

    def keep(scores: dict[str, list[Score]]) -> None:
        write_json(path, content | {"candidates": choose.to_json(scores)})

    def train(candidate: Candidate, iterations: int) -> Score | None:
        trainer = trained(job, names, candidate, iterations)
        return None if trainer is None else choose.score(iterations, reduced_views(job, names, trainer))

    total = job.settings.optimisation.iterations
    decision = choose.search(candidates(job), _lengths(job), total, known, train, keep)
    best = decision.chosen
    facts = {"lambda_tex": best.tex, "lambda_tex_final": best.final, "predicted_detail_db": decision.predicted}
    facts |= {"gain_db": decision.gain_db, "error_db": decision.error_db, "bar_db": decision.bar_db}
    facts |= {"kept_because": decision.kept_because}
    write_json(path, content | {"candidates": choose.to_json(known), "choice": facts})
    if decision.kept_because:
        warn(f"--choose_lambda: keeps {best}: {decision.kept_because}")
    say(f"lambda_tex {best}: chosen on {len(names)} held-out LR views, see {path}")
    settings = replace(job.settings, optimisation=best.of(job.settings.optimisation))
    return Choice(replace(job, settings=settings), path, facts)


def candidates(job: Job) -> list[Candidate]:
    """What a search compares, the configured weight first."""
    return choose.candidates_of(job.settings.optimisation, job.settings.training.lambda_candidates)


def _lengths(job: Job) -> tuple[int, int]:
    settings = job.settings.optimisation
    budget = job.settings.training.choose_iterations or min(settings.iterations, SHORT_RUN)
    return choose.lengths(settings, len(candidates(job)), budget)


def _key(job: Job) -> dict[str, Any]:
    """What the scores are made from, as JSON values."""
    made = job.fingerprint()
    settings = {name: value for name, value in made["settings"].items() if name not in UNSCORED}
    return made | {"settings": settings, "lengths": list(_lengths(job))}


def _earlier(path: Path, key: dict[str, Any]) -> dict[str, list[Score]]:
    """Scores of an earlier search of the same key; none where there is none, or its file is not whole."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
        if content["schema"] == SCHEMA and content["key"] == key:
            return choose.from_json(content["candidates"])
    except (UserError, KeyError, TypeError, AttributeError) as error:
        warn(f"{path}: not a file of --choose_lambda ({error}); the search begins anew")
    return {}


def trained(job: Job, names: list[str], candidate: Candidate, iterations: int) -> Trainer | None:
    """Train one candidate without the views `names`, up to where a run writes its model; None when it ended in NaN.

    That is before the last iteration, which makes no update but may cut opacities back or split Gaussians.
    """
    settings = candidate.of(choose.scaled(job.settings.optimisation, iterations))
    left = {name: view for name, view in job.views.views.items() if name not in set(names)}
    short = replace(job, settings=replace(job.settings, optimisation=settings), views=replace(job.views, views=left))
    trainer = short.trainer()
    progress = Progress(f"lambda_tex {candidate}", iterations)
    try:
        while trainer.iteration < iterations - 1:
            trainer.advance()
            trainer.finished.clear()
            progress.update(trainer.iteration)
        trainer.settle()
    except NonFinite as error:
        warn(f"lambda_tex {candidate}: {error}; left out of the choice")
        return None
    finally:
        progress.close()
    return trainer


def reduced_views(job: Job, names: list[str], trainer: Trainer) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Views as (name, A R, I), R clamped to 0-1, on the run's own background."""
    model, degree = trainer.drawn, trainer.degree(trainer.settings.iterations)
    options = render_options(job.settings.pipeline)
    for name in names:
        view, lr = job.views.views[name], job.views.targets(name, job.background).lr
        assert view.kernel is not None, "check"
        assert lr is not None, "check"
        with torch.no_grad():
            output = render(view.camera, model, background=job.background, sh_degree=degree, **options)
            reduced = view.kernel.down(output.color.clamp(0, 1))
        yield name, reduced, lr
