"""hr/alignment.json: from which views each frame got its features, along which flow, and how well their images agree.

It needs no truth: where the warped neighbours of a view disagree with it, their features were misplaced.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scene.sequences import Subsequence
from upsampling.aligner import Aligner
from upsampling.alignment import UNSEEN, Alignment, Graph, Visit, flows
from upsampling.geometry import FlowOf
from upsampling.planes import alpha_plane, colour_plane
from upsampling.sources import Views
from upsampling.spynet import warp
from utils.atomic import write_json

FILE_NAME = "alignment.json"
SOLID = 0.5  # alpha from which a pixel counts


def write_alignment(folder: Path, facts: dict[str, Any], views: dict[str, Any], stamp: str) -> Path:
    """Write FOLDER/alignment.json; `facts` say how frames were aligned, `stamp` is a remark ("" = none)."""
    write_json(folder / FILE_NAME, facts | {"views": views} | ({"stamp": stamp} if stamp else {}))
    return folder / FILE_NAME


def known_or_learned(net: Any, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | Graph) -> FlowOf | None:
    """The flow that a network uses between two frames: the alignment's, or its own; None where it shows none."""
    if alignment.flow_of is not None:
        return alignment.flow_of
    if not hasattr(net, "spynet"):
        return None
    return lambda i, s: next(flows(net.spynet, frames[[i, s]], [(0, 1)], None))


def view_entries(
    net: Any, views: Views, aligner: Aligner, call: Subsequence, device: torch.device, folder: Path, whole: bool
) -> dict[str, Any]:
    """What hr/alignment.json says of the saved views of a call; nothing where nothing propagates.

    whole : the network takes whole frames; where it does not, a learned flow of them would not fit either and is left
        out.
    """
    if aligner.propagation == "none":
        return {}
    if aligner.windowed:
        return {call.frames[i]: _window_entry(net.seen(i, len(call.frames)), i, aligner, call) for i in call.save}
    names, raw = call.frames, [views.raw(name) for name in call.frames]
    alignment, angles = aligner.alignment(names, device, folder), aligner.angles_deg(names)
    colours = torch.stack([colour_plane(image) for image in raw]).to(device)
    flow_of = known_or_learned(net, colours, alignment) if whole else alignment.flow_of
    last = [{visit.frame: visit for visit in alignment.visits(reverse)} for reverse in (True, False)]
    found = {}
    for i in call.save:
        visits = [visits[i] for visits in last]
        alpha = alpha_plane(raw[i])[None].to(device) if raw[i].shape[2] == 4 else None
        said, entry = view_entry(i, colours, alpha, visits, flow_of) if flow_of else unknown_entry(visits)
        neighbours = [{"name": names[s], "angle_deg": angles and angles[i][s], **said[s]} for s in said]
        found[names[i]] = {"neighbours": neighbours, **entry}
    return found


def _window_entry(seen: Sequence[int], i: int, aligner: Aligner, call: Subsequence) -> dict[str, Any]:
    """Of frame i of a call, whose network looks at the frames `seen`: which these are, as nothing is handed on."""
    angles, nothing = aligner.angles_deg(call.frames), {"visible": None, "flow_px": None, "weight": None}
    others = [s for s in dict.fromkeys(seen) if s != i]
    neighbours = [{"name": call.frames[s], "angle_deg": angles and angles[i][s], **nothing} for s in others]
    window = [call.frames[s] for s in seen]
    return {"neighbours": neighbours, "window": window, "flow_px": None, "disagreement": None}


@torch.inference_mode()
def view_entry(
    i: int,
    colours: Float[Tensor, "t 3 h w"],
    alpha: Float[Tensor, "1 h w"] | None,
    visits: Sequence[Visit],
    flow_of: FlowOf,
) -> tuple[dict[int, dict[str, float]], dict[str, Any]]:
    """What is said of frame i: of each source (by position), and of the frame.

    Parameters
    ----------
    colours : premultiplied LR views; alpha : of frame i, None = opaque. Only pixels with alpha of SOLID or more count.
    visits : those that made the frame's features, one of each direction.

    Returns
    -------
    {source: {"visible", "flow_px", "weight"}}, {"flow_px", "disagreement"}; see docs/formats.md.
    """
    frame = colours[i]
    solid = torch.ones_like(frame[:1]) if alpha is None else (alpha >= SOLID).float()  # [1, h, w]
    known = {s: flow_of(i, s) for visit in visits for s in visit.sources}
    if not known:
        return {}, {"flow_px": None, "disagreement": None}
    seen = {s: solid if f.visible is None else solid * f.visible[0] for s, f in known.items()}
    weights = _weights(visits, seen)
    total = sum(float((w * solid).sum()) for w in weights.values()) or 1.0
    sources = {
        s: {
            "visible": _mean(seen[s], solid),
            "flow_px": _mean(flow.px[0].norm(dim=0, keepdim=True), seen[s]),
            "weight": float((weights[s] * solid).sum()) / total,
        }
        for s, flow in known.items()
    }
    mean = sum(w * warp(colours[s : s + 1], known[s].px)[0] for s, w in weights.items()) / sum(weights.values())
    shown = torch.stack(list(seen.values())).amax(0)  # [1, h, w]: by one of the sources at least
    squared = ((mean - frame) ** 2).mean(0, keepdim=True)
    whole = {
        "flow_px": sum(said["flow_px"] * said["weight"] for said in sources.values()),
        "disagreement": _mean(squared, shown) ** 0.5 if bool(shown.any()) else None,
    }
    return sources, whole


def unknown_entry(visits: Sequence[Visit]) -> tuple[dict[int, dict[str, float | None]], dict[str, Any]]:
    """As `view_entry`, where the network shows no flow: only the weights of the sources are known."""
    weights: dict[int, float] = {}
    for visit in visits:
        factors = visit.factors or (1.0,) * len(visit.sources)
        for s, factor in zip(visit.sources, factors, strict=True):
            weights[s] = weights.get(s, 0.0) + factor / sum(factors)
    total = sum(weights.values())
    said = {s: {"visible": None, "flow_px": None, "weight": weight / total} for s, weight in weights.items()}
    return said, {"flow_px": None, "disagreement": None}


def _weights(visits: Sequence[Visit], seen: dict[int, Tensor]) -> dict[int, Tensor]:
    """Share of each source at each pixel, summed over both directions."""
    weights = {s: torch.zeros_like(mask) for s, mask in seen.items()}
    for visit in (visit for visit in visits if visit.sources):
        parts = [f * (seen[s] + UNSEEN) for s, f in zip(visit.sources, visit.factors or (1.0,), strict=True)]
        for s, part in zip(visit.sources, parts, strict=True):
            weights[s] = weights[s] + part / sum(parts)
    return weights


def _mean(values: Tensor, mask: Tensor) -> float:
    return float((values * mask).sum() / mask.sum().clamp(min=1))
