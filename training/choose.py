"""lambda_tex chosen without HR truth: cross-validation on held-out LR views (train.py --choose_lambda).

Every k-th training view is held out, its LR image and its pseudo-HR frame. Each candidate (a constant, or a schedule)
is trained on the others for n/2 and for n iterations, with the run's own schedules scaled to that length and the same
seed, so the same views in the same order. Letters: R a render of a held-out view, I its LR view, A the LR kernel.

    detail = mean over held-out views of -10 log10 mean((Laplacian of (A R - I))^2)                               [dB]
    at the length N of the run: detail(n) + (detail(n) - detail(n/2)) log2(N / n)

The plain error of A R is mostly that of coarse structure, which hardly tells candidates apart and favours those with
too small a weight of the frames; the Laplacian weighs it by the fourth power of the frequency. The best weight falls
as training goes on, so a short run alone would choose too large a one: hence two lengths, and a line in log n. The
first candidate is the configured weight, which is kept in doubt (`decide`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from arguments.training import OptimizationParams
from utils.errors import UserError
from utils.psnr import psnr

MAX_DB = 100.0  # equal images have no finite one
MIN_HELD_OUT = 2
DOUBT = 0.1  # share of searches that may leave the configured weight where nothing tells the candidates apart
MIN_INTERVAL = 20  # iterations between densifications: fewer views say too little about a gradient
SCALED = (
    *("position_lr_max_steps", "densify_from_iter", "densify_until_iter"),
    *("opacity_reset_interval", "sh_interval"),
)


@dataclass(frozen=True)
class Candidate:
    """A weight of the frames' term: `tex` throughout, or falling or rising from it to `final` (-1 = constant)."""

    tex: float
    final: float = -1.0

    @classmethod
    def parse(cls, text: str) -> "Candidate":
        """Read "0.6" or "0.9:0.1".

        Raises
        ------
        UserError : not one or two numbers from 0 to 1.
        """
        try:
            values = [float(word) for word in text.split(":")]
        except ValueError:
            values = []
        if len(values) not in (1, 2) or not all(0 <= value <= 1 for value in values):
            raise UserError(f"--lambda_candidates {text}: numbers from 0 to 1, or schedules like 0.9:0.1 are expected")
        return cls(*values)

    def __str__(self) -> str:
        values = (self.tex,) if self.final < 0 else (self.tex, self.final)
        return ":".join(repr(float(value)).removesuffix(".0") for value in values)  # all digits: also a key

    def of(self, settings: OptimizationParams) -> OptimizationParams:
        """The run's settings with this weight."""
        return replace(settings, lambda_tex=self.tex, lambda_tex_final=self.final)


def candidates_of(settings: OptimizationParams, texts: Iterable[str]) -> list[Candidate]:
    """List what is compared: the configured weight, then those of `texts` that differ from it, each once.

    Raises
    ------
    UserError : a text is malformed, or none differs.
    """
    found = [Candidate(settings.lambda_tex, settings.lambda_tex_final), *map(Candidate.parse, texts)]
    found = list(dict.fromkeys(found))
    if len(found) < 2:
        raise UserError(f"--lambda_candidates: nothing else than the configured weight, {found[0]}, to choose from")
    return found


@dataclass(frozen=True)
class Score:
    """What a candidate came to after `iterations`: [dB] of each held-out view, `detail` as above, `psnr` of A R."""

    iterations: int
    detail: dict[str, float]
    psnr: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean detail."""
        return sum(self.detail.values()) / len(self.detail)


def held_out(names: Sequence[str], every: int) -> list[str]:
    """Every `every`-th view, from the middle of the first such group on.

    Raises
    ------
    UserError : fewer than two would be held out, or none would be left.
    """
    chosen = list(names[every // 2 :: every])
    if len(chosen) < MIN_HELD_OUT or len(chosen) == len(names):
        raise UserError(
            f"--held_out_every {every}: of {len(names)} training views {len(chosen)} would be held out, at least "
            f"{MIN_HELD_OUT} are needed, and others to train on"
        )
    return chosen


def lengths(settings: OptimizationParams, candidates: int, budget: int) -> tuple[int, int]:
    """Iterations n/2 and n of each candidate, so that all together take about `budget`, and none more than the run."""
    long = min(2 * budget // (3 * candidates), settings.iterations)
    return max(long // 2, 1), max(long, 2)


def scaled(settings: OptimizationParams, iterations: int) -> OptimizationParams:
    """The same training in fewer iterations: its schedules end and begin at the same shares of the whole."""
    factor = iterations / settings.iterations
    values = {name: max(1, round(getattr(settings, name) * factor)) for name in SCALED}
    values["exposure_lr_delay_steps"] = round(settings.exposure_lr_delay_steps * factor)  # 0 = none
    interval = settings.densification_interval
    values["densification_interval"] = min(interval, max(MIN_INTERVAL, round(interval * factor)))
    return replace(settings, iterations=iterations, **values)


def detail_db(reduced: Float[Tensor, "3 h w"], lr: Float[Tensor, "3 h w"]) -> float:
    """Compare two LR images by their Laplacians (4, -1 at the four sides): -10 log10 of the mean squared difference.

    Returns
    -------
    dB, at most 100. Pixels at the border are left out; computed in float64.
    """
    d = (reduced - lr).double()
    sides = d[:, :-2, 1:-1] + d[:, 2:, 1:-1] + d[:, 1:-1, :-2] + d[:, 1:-1, 2:]  # [3, h - 2, w - 2]
    return min(float(-10 * (4 * d[:, 1:-1, 1:-1] - sides).square().mean().log10()), MAX_DB)


def score(iterations: int, pairs: Iterable[tuple[str, Tensor, Tensor]]) -> Score:
    """Measure held-out views, given as (name, A R, I)."""
    detail, plain = {}, {}
    for name, reduced, lr in pairs:
        detail[name] = detail_db(reduced, lr)
        plain[name] = min(float(psnr(reduced.double(), lr.double())), MAX_DB)
    return Score(iterations, detail, plain)


def predicted(short: Score, long: Score, iterations: int) -> dict[str, float]:
    """Detail of each held-out view after `iterations`, on the line in log iterations through two lengths [dB]."""
    doublings = math.log(iterations / long.iterations) / math.log(long.iterations / short.iterations)
    return {name: value + doublings * (value - short.detail[name]) for name, value in long.detail.items()}


@dataclass(frozen=True)
class Decision:
    """What a search came to.

    Attributes
    ----------
    chosen : the candidate to train with. predicted : mean detail of each candidate at the run's length [dB].
    gain_db, error_db : of the best candidate over the first, mean over held-out views and its standard error.
    bar_db : what the gain has to exceed.
    kept_because : why the first one was chosen although another one is best; "" where it was not.
    """

    chosen: Candidate
    predicted: dict[str, float]
    gain_db: float
    error_db: float
    bar_db: float
    kept_because: str = ""


def decide(scores: Sequence[tuple[Candidate, Score, Score]], iterations: int) -> Decision:
    """Choose the candidate of the highest predicted detail, if that can be told from the first one's.

    Parameters
    ----------
    scores : candidate and its scores after the short and the long training; the first is what is kept in doubt.

    Notes
    -----
    In doubt: the best one did not gain from the longer training by more than that gain's standard error, so both are
    too short to tell anything; or its gain over the first is no more than `bar` of its standard errors. All gains are
    paired by views.
    """
    views = {candidate: predicted(short, long, iterations) for candidate, short, long in scores}
    means = {candidate: sum(values.values()) / len(values) for candidate, values in views.items()}
    first, best = scores[0][0], max(means, key=means.__getitem__)  # of equals the one named first
    gain, error = _mean_and_error([value - views[first][name] for name, value in views[best].items()])
    needed = bar(len(scores), len(views[best])) * error
    growth, noise = next(
        _mean_and_error([value - short.detail[name] for name, value in long.detail.items()])
        for candidate, short, long in scores
        if candidate == best
    )
    because = ""
    if best != first and growth <= noise:
        because = (
            "longer short trainings were no better than shorter ones, so they tell nothing; see --choose_iterations"
        )
    elif best != first and gain <= needed:
        because = (
            f"{best} is predicted to gain {gain:.2f} dB with a standard error of {error:.2f}, and the best of"
            f" {len(scores)} on {len(views[best])} views has to gain more than {needed:.2f}"
        )
    details = {str(candidate): value for candidate, value in means.items()}
    return Decision(first if because else best, details, gain, error, needed, because)


def bar(count: int, views: int) -> float:
    """Standard errors that the best of `count` candidates has to be ahead of the first, on two or more held-out views.

    Notes
    -----
    Student's t with views - 1 degrees of freedom, at which a single rival would be ahead by chance in DOUBT / rivals
    of all cases (Bonferroni); hence the best of all in at most DOUBT, where views err independently and normally. With
    noise alone, six or seven candidates and 6 to 13 views it is 6 to 7 %; with a bar of one standard error it would be
    43 to 49 %, with two 12 to 18 % (tests/training/test_choose.py). A training's own noise, which all views share, is
    in no error.
    """
    return float(stdtrit(views - 1, 1 - DOUBT / max(count - 1, 1)))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of two or more values, and its standard error."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) * (len(values) - 1)))


def search(
    candidates: Sequence[Candidate],
    short_long: tuple[int, int],
    iterations: int,
    known: dict[str, list[Score]],
    train: Callable[[Candidate, int], Score | None],
    keep: Callable[[dict[str, list[Score]]], None],
) -> Decision:
    """Train what is not known yet, and decide.

    Parameters
    ----------
    candidates : in order of preference. short_long : two lengths. iterations : of the run itself.
    known : scores of an interrupted search by candidate, changed in place.
    train : gives the score of one training, None where it broke off with NaN. keep : called after each.

    Raises
    ------
    UserError : all of them broke off.
    """
    found = []
    for candidate in candidates:
        scores = known.setdefault(str(candidate), [])
        for length in short_long[len(scores) :]:
            made = train(candidate, length)
            if made is None:
                break
            scores.append(made)
            keep(known)
        if len(scores) == 2:
            found.append((candidate, scores[0], scores[1]))
    if not found:
        raise UserError("--choose_lambda: every candidate ended in NaN or Inf; train with a fixed --lambda_tex")
    return decide(found, iterations)


def to_json(known: dict[str, list[Score]]) -> dict[str, Any]:
    """Scores as JSON values."""
    return {name: [vars(one) for one in scores] for name, scores in known.items()}


def from_json(value: dict[str, Any]) -> dict[str, list[Score]]:
    """The inverse of `to_json`."""
    return {name: [Score(**one) for one in scores] for name, scores in value.items()}
