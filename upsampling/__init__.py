"""Upsampling: LR views in, pseudo-HR frames out, each written to disk as soon as it is ready.

Letters: a *call* is one pass of an upsampler over the frames of a subsequence; of its results those at `save` are kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arguments.lr_kernel import projecting, refuse_unknown
from arguments.priors import PriorParams
from arguments.upsampling import PRIORS, UpsamplingParams
from scene.images import read_image, write_png
from scene.lr_kernel import LRKernel
from scene.sequences import Subsequence
from upsampling import (  # noqa: F401 (each registers its networks)
    basicvsr,
    basicvsr_pp,
    iconvsr,
    interpolation,
    psrt,
    rlfn,
    span,
    spandrel,
)
from upsampling.aligner import Aligner
from upsampling.alignment import Alignment, Graph, Tick
from upsampling.alignment_report import FILE_NAME as ALIGNMENT_NAME
from upsampling.alignment_report import view_entries, write_alignment
from upsampling.consistency import FILE_NAME as REPORT_NAME
from upsampling.consistency import (
    Measured,
    consistency_db,
    consistency_errors,
    projected,
    summary,
    write_report,
)
from upsampling.ensemble import Flip, Frames, confidence, flips, mean_over_flips
from upsampling.fusion import fused, internal_files, internal_planes, mixed
from upsampling.gpu import memory_bound, session, to_host
from upsampling.interpolation import Interpolation
from upsampling.planes import alpha_plane, colour_plane, joined, stored
from upsampling.registry import RANDOM, Upsampler, load, resolve_weights
from upsampling.sources import Source
from upsampling.tiling import Plan, plan, upsample, work
from utils.errors import UserError
from utils.log import Progress, note, warn

__all__ = ["Job", "checked", "clear", "describe", "internal_inputs", "load", "resolve_weights", "run", "summary"]

SEQUENCE_MATTERS = "sequence_matters"
CONFIDENCE = "confidence"  # folders beside the frames: how far several estimates agree,
DISAGREEMENT = "disagreement"  # and where the internal frame was taken


def frame_path(folder: Path, name: str) -> Path:
    """File of a saved frame; folders in names are kept."""
    return folder / f"{name}.png"


def clear(folder: Path, source: Source) -> None:
    """Remove the frames that a run over `source` would write, so that none of other settings is kept."""
    folders = (folder, folder / CONFIDENCE, folder / DISAGREEMENT)
    reports = (folder / REPORT_NAME, folder / ALIGNMENT_NAME)
    for path in (*(frame_path(f, name) for f in folders for name in source.sequences.saved), *reports):
        path.unlink(missing_ok=True)


def internal_inputs(settings: UpsamplingParams, prior: PriorParams, source: Source) -> dict[str, list[Path]]:
    """Files of --internal as inputs of the step.

    Raises
    ------
    UserError : one is missing or of the wrong size, or a flag asks for projection and no operator made the LR views.
    """
    asked = projecting(settings.project, settings.upsampler, prior.project_lr)
    refuse_unknown(asked, source.kernel, source.degraded)
    if not settings.internal:
        return {}
    names = source.sequences.saved
    files = internal_files(Path(settings.internal), names, source.views, settings.scale)
    return {"internal": list(files.values())}


@dataclass(frozen=True)
class Job:
    """Everything that one run over a scene or a folder needs.

    Parameters
    ----------
    source : frames, calls and LR kernel; without a kernel LR consistency is not measured.
    folder : NAME.png of every saved frame goes there.
    """

    net: Upsampler
    settings: UpsamplingParams
    source: Source
    folder: Path
    compat: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def max_bytes(self) -> int:
        """Bound of the working memory; settled once, since what is free on a GPU changes as frames are made."""
        return memory_bound(self.settings.max_memory, self.device)

    def path(self, name: str) -> Path:
        """File of a saved frame; folders in names are kept."""
        return frame_path(self.folder, name)

    @cached_property
    def aligner(self) -> Aligner:
        """Who hands features to whom."""
        return Aligner.of(self.settings, self.source, self.net, self.compat)


def checked(job: Job) -> Job:
    """The job, of which all is known that can be before its first frame.

    Raises
    ------
    UserError : frames of a call differ in size or kind, memory bound too small, or see `Aligner.of`.
    """
    for call in job.aligner.calls():
        _check(job, call)
        _plan(job, call)
    return job


def run(job: Job, resume: bool = False) -> tuple[list[Path], dict[str, Any]]:
    """Upsample everything; frames appear on disk one by one.

    Parameters
    ----------
    resume : keep frames that are there already (an earlier attempt with the same key was cut short).

    Returns
    -------
    files written (frames and consistency.json), notes for the record.

    Raises
    ------
    UserError : as `checked`, or a file cannot be written.
    """
    with session(job.device, job.max_bytes) as notes:
        outputs, counted = _run(checked(job), resume)
    return outputs, counted | notes


def _run(job: Job, resume: bool) -> tuple[list[Path], dict[str, Any]]:
    calls = job.aligner.calls()
    names = [name for call in calls for name in call.saved]
    folders = (job.folder, *(job.folder / kind for kind in _kinds(job)))
    kept = {name for name in names if resume and all(frame_path(f, name).is_file() for f in folders)}
    values = {name: _measured(job, name, read_image(job.path(name))) for name in kept}
    note(job.aligner.describe())
    if loners := job.aligner.loners():
        warn(loners)
    aligned: dict[str, Any] = {}
    cuts = [_plan(job, call) for call in calls]
    wanted = [frozenset(i for i in call.save if call.frames[i] not in kept) for call in calls]
    steps = [_work(job, *each) for each in zip(calls, cuts, wanted, strict=True)]
    progress, done = Progress(f"upsample {job.settings.upsampler}", sum(steps), "step"), 0
    for number, (call, cut, save) in enumerate(zip(calls, cuts, wanted, strict=True), 1):
        fields = {"sequence": f"{number} of {len(calls)}"}
        if cut.tiles != (1, 1):
            fields["tiles"] = f"{cut.tiles[0]}x{cut.tiles[1]}"
        end = sum(steps[:number])

        def tick(end: int = end, fields: dict[str, str] = fields) -> None:
            nonlocal done
            done = min(done + 1, end - 1)
            progress.update(done, frame=f"{len(values)} of {len(names)}", **fields)

        for name, planes, deviation in _images(job, call, save, tick) if save else ():
            if deviation is not None:
                write_png(frame_path(job.folder / CONFIDENCE, name), confidence(deviation))
            image = _finished(job, name, planes)
            write_png(job.path(name), image)  # last: a frame that is there is complete
            values[name] = _measured(job, name, image)
        if save:
            done = end
            progress.update(done, frame=f"{len(values)} of {len(names)}", **fields)
        whole = cut.tiles == (1, 1)
        aligned |= view_entries(job.net, job.source.views, job.aligner, call, job.device, job.folder, whole)
    progress.close()
    stamp = RANDOM if job.settings.random_weights else ""
    found = {name: values[name] for name in names}
    reports = [write_report(job.folder, job.source.kernel, found, stamp, job.source.degraded)]
    if aligned:
        reports.append(write_alignment(job.folder, job.aligner.facts(), aligned, stamp))
    notes: dict[str, Any] = {"frames": len(names), "kept_from_before": len(kept)} | job.aligner.facts()
    beside = [frame_path(job.folder / kind, name) for kind in _kinds(job) for name in names]
    return [*map(job.path, names), *beside, *reports], notes | ({"stamp": stamp} if stamp else {})


def _kinds(job: Job) -> list[str]:
    """Folders of what is written beside each frame."""
    masked = job.settings.internal and not job.settings.internal_weight
    return [CONFIDENCE] * (job.settings.ensemble > 1) + [DISAGREEMENT] * bool(masked)


def describe(job: Job) -> str:
    """What `run` would do: frames, sizes, cuts and memory. Reads headers only."""
    calls = job.aligner.calls()
    lines = []
    for (w, h), group in _by_size(job, calls).items():
        frames = job.settings.ensemble * sum(len(c.frames) + 2 * c.padded for c in group)
        saved = sum(len(c.save) for c in group)
        longest = max(group, key=lambda c: len(c.frames))
        cut = _plan(job, longest)
        s, (rows, cols) = job.net.scale, cut.tiles
        lines.append(
            f"{saved} frames {w}x{h} -> {s * w}x{s * h} px in {len(group)} calls ({frames} frames in all); the longest "
            f"call in {len(cut.chunks)} chunks of {rows}x{cols} tiles, about {cut.bytes / 2**30:.1f} GB"
            + (" with features in a file" if cut.in_file else "")
        )
    return "\n".join([*lines, job.aligner.describe(), *filter(None, [job.aligner.loners()])])


def _by_size(job: Job, calls: Sequence[Subsequence]) -> Mapping[tuple[int, int], list[Subsequence]]:
    groups: dict[tuple[int, int], list[Subsequence]] = {}
    for call in calls:
        groups.setdefault(job.source.views.size(call.frames[0]), []).append(call)
    return groups


def _budget(job: Job, call: Subsequence) -> int:
    """Memory of one pass: colour and alpha run side by side."""
    return job.max_bytes // _passes(job, call)


def _plan(job: Job, call: Subsequence) -> Plan:
    w, h = job.source.views.size(call.frames[0])
    t, graph = len(call.frames) + 2 * call.padded, job.aligner.propagation == "graph"
    return plan(job.net, t, h, w, _budget(job, call), _passes(job, call), graph, job.aligner.flow == "learned")


def _work(job: Job, call: Subsequence, cut: Plan, save: frozenset[int]) -> int:
    """Steps of one call, of which `save` are wanted; what is made several times over counts as often."""
    graph = job.aligner.propagation == "graph"
    visits = 2 * job.settings.passes if graph else getattr(job.net, "visits", 0)
    t = len(call.frames) + 2 * call.padded
    made = (frozenset(flip.position(i + call.padded, t) for i in save) for flip in flips(job.settings.ensemble))
    return _passes(job, call) * sum(work(cut, positions, visits) for positions in made)


def _passes(job: Job, call: Subsequence) -> int:
    return 2 if job.settings.alpha == "network" and job.source.views.has_alpha(call.frames[0]) else 1


def _measured(job: Job, name: str, image: np.ndarray) -> Measured:
    if job.source.kernel is None:
        return Measured(None, None)
    of = _kernel(job, name, image.shape[:2]), image, job.source.views.raw(name)
    return Measured(consistency_db(*of), consistency_errors(*of))


def _kernel(job: Job, name: str, shape: tuple[int, ...]) -> LRKernel:
    """The operator from a frame of `shape` (rows, columns) to its LR view."""
    assert job.source.kernel is not None
    return LRKernel(*job.source.kernel, (shape[1], shape[0]), job.source.views.size(name))


def _finished(job: Job, name: str, planes: Float[Tensor, "c H W"]) -> UInt8[np.ndarray, "H W c"]:
    """A frame as it is stored: with --internal fused or mixed with that one, with --project moved onto its LR view."""
    lr = job.source.views.raw(name)
    if job.settings.internal:
        internal = internal_planes(read_image(frame_path(Path(job.settings.internal), name)), lr)
        if job.settings.internal_weight:
            planes = mixed(planes, internal, job.settings.internal_weight)
        else:
            planes, believed = fused(planes, internal, job.settings.internal_threshold)
            write_png(frame_path(job.folder / DISAGREEMENT, name), believed.numpy().astype(np.uint8) * np.uint8(255))
    if job.settings.project:
        planes = projected(_kernel(job, name, planes.shape[-2:]), planes, lr)
    return stored(planes)


def _check(job: Job, call: Subsequence) -> None:
    first = call.frames[0]
    for name in call.frames:
        if job.source.views.size(name) != job.source.views.size(first) or job.source.views.has_alpha(
            name
        ) != job.source.views.has_alpha(first):
            (w, h), (w0, h0) = job.source.views.size(name), job.source.views.size(first)
            raise UserError(f"frame {name} ({w}x{h} px) and {first} ({w0}x{h0} px) differ in size or alpha in one call")


def _images(
    job: Job, call: Subsequence, save: frozenset[int], tick: Tick
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Name, planes [c, H, W] and deviation of the estimates [H, W] of the frames `save` of one call, in its order."""
    names = (call.frames[0], *call.frames, call.frames[-1]) if call.padded else call.frames
    positions = frozenset(i + call.padded for i in save)
    raw = [job.source.views.raw(name) for name in names]
    # Quirk Q01: the released networks see BGR. The release has no priors; these see RGB, as in their training.
    bgr = job.compat == SEQUENCE_MATTERS and job.settings.upsampler not in PRIORS
    planes = torch.stack([colour_plane(image) for image in raw])
    colour = planes.flip(1) if bgr else planes
    has_alpha = job.source.views.has_alpha(names[0])
    alphas = [alpha_plane(image) for image in raw] if has_alpha else [None] * len(raw)
    budget = _budget(job, call)

    def aligned(flip: Flip) -> Alignment | Graph:
        order = names[::-1] if flip.backwards else names
        alignment = replace(job.aligner.alignment(order, job.device, job.folder), tick=tick)
        return alignment.mapped(flip.flow)

    def estimate(flip: Flip) -> Frames:
        net = _masked(job.net, alphas, flip)
        return to_host(_estimate(job, net, colour, flip, positions, budget, aligned(flip)))

    colours = mean_over_flips(estimate, job.settings.ensemble, job.folder)
    opacities = _alphas(job, alphas, positions, budget, aligned) if has_alpha else iter([None] * len(positions))
    for (position, hr, deviation), alpha in zip(colours, opacities, strict=True):
        hr = hr.flip(0) if bgr else hr
        yield names[position], joined(hr, alpha, alphas[position]), deviation


def _masked(net: Upsampler, alphas: Sequence[Any], flip: Flip) -> Upsampler:
    """A network that itself moves its frames onto LR views is told where these say nothing."""
    if alphas[0] is None or not hasattr(net, "masked"):
        return net
    masked: Upsampler = net.masked(list(flip.clip(torch.stack(list(alphas))[:, None])[:, 0]))
    return masked


def _estimate(
    job: Job,
    net: Upsampler,
    planes: Float[Tensor, "t 3 h w"],
    flip: Flip,
    positions: frozenset[int],
    budget: int,
    alignment: Alignment | Graph | None,
) -> Frames:
    """Frames at `positions` of a clip, made of its mirror image with that one's alignment; mirrored still."""
    t = len(planes)
    wanted = frozenset(flip.position(i, t) for i in positions)
    made = upsample(net, flip.clip(planes).to(job.device), wanted, budget, alignment)
    return ((flip.position(i, t), frame) for i, frame in made)


def _alphas(
    job: Job,
    alphas: Sequence[Any],
    positions: frozenset[int],
    budget: int,
    aligned: Callable[[Flip], Alignment | Graph],
) -> Iterator[Tensor]:
    """HR alphas [H, W] at `positions`; opaque calls cost nothing."""
    planes = torch.stack(list(alphas))[:, None].expand(-1, 3, -1, -1).contiguous()  # [T, 3, h, w]
    net: Any = job.net
    coloured = job.settings.alpha == "bicubic" or getattr(net, "colour_only", False)
    filtered = coloured or bool((planes == 1).all())
    if filtered:
        net = Interpolation("bicubic", job.net.scale, job.device)

    def estimate(flip: Flip) -> Frames:
        moved = None if filtered else aligned(flip)  # a filter looks at one frame
        made = _estimate(job, net, planes, flip, positions, budget, moved)
        return to_host((i, frame.mean(0, keepdim=True)) for i, frame in made)

    for _, frame, _ in mean_over_flips(estimate, 1 if filtered else job.settings.ensemble, job.folder):
        yield frame[0]
