"""What --flow, --propagation and their like mean for one run: which calls are made, and who hands features to whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from arguments.upsampling import UNALIGNED, UpsamplingParams, refuse_both_orders
from scene import SEQUENCE_MATTERS
from scene.sequences import Subsequence
from upsampling.alignment import Alignment, Graph, along_path
from upsampling.geometry import FlowOf, Geometry
from upsampling.neighbours import angles, cost_of_neighbours, graph_visits
from upsampling.registry import Upsampler
from upsampling.sources import Source
from utils.errors import UserError

FALL_OFF_DEG = 8.0  # a support this much farther in angle counts 1 / e as much
MAX_ANGLE_DEG = {"geometry": 30.0, "learned": 20.0}  # beyond, what arrives does harm
ANY_ANGLE = 180.0


@dataclass(frozen=True)
class Aligner:
    """Decided for one network and one source. `flow`: learned, geometry; `propagation`: path, graph, none."""

    settings: UpsamplingParams
    source: Source
    flow: str
    propagation: str
    max_angle_deg: float

    @classmethod
    def of(cls, settings: UpsamplingParams, source: Source, net: Upsampler, compat: str) -> "Aligner":
        """Decide every "auto".

        Raises
        ------
        UserError : --propagation graph with a network that has none, or without cameras; an --ensemble of both orders
            where every frame is made alone.
        """
        flow = source.flow
        if settings.propagation == "graph" and not net.num_neighbours:
            raise UserError(f"--propagation graph: {settings.upsampler} makes every frame alone; leave it out")
        propagation = settings.propagation if net.num_neighbours else "none"
        if propagation == "none":
            refuse_both_orders(settings.ensemble)
        capable = hasattr(net, "graph_bytes")
        if propagation == "auto":
            propagation = "graph" if flow == "geometry" and capable else "path"
        if propagation == "graph" and not capable:
            raise UserError(f"--propagation graph: {settings.upsampler} propagates along a path only; leave it out")
        gated = source.scene is not None and compat != SEQUENCE_MATTERS
        automatic = MAX_ANGLE_DEG[flow] if gated else ANY_ANGLE
        return cls(settings, source, flow, propagation, settings.max_angle or automatic)

    @property
    def windowed(self) -> bool:
        """Whether neighbouring frames are looked at, and nothing is handed on from one to the next."""
        return self.propagation != "none" and self.settings.upsampler in UNALIGNED

    def facts(self) -> dict[str, Any]:
        """What was decided, for the record."""
        if self.propagation == "none" or self.windowed:
            return {"propagation": "window" if self.windowed else "none"}
        return {"flow": self.flow, "propagation": self.propagation, "max_angle_deg": self.max_angle_deg}

    def describe(self) -> str:
        """What was decided, for people."""
        if self.propagation == "none":
            return "every frame alone"
        if self.windowed:
            return "every frame is seen together with its neighbours in the sequence"
        flow = {"learned": "learned flow", "geometry": "flow from geometry"}[self.flow]
        way = "a path" if self.propagation == "path" else "a graph"
        if self.propagation == "graph":
            way += f" of {self.settings.neighbours} neighbours in {self.settings.passes} rounds"
        limit = f", up to {self.max_angle_deg:g} degrees apart" if self.max_angle_deg < ANY_ANGLE else ""
        found = f"; {fmean(self.neighbours):.1f} neighbours a view" if self.neighbours else ""
        return f"features run along {flow} on {way}{limit}{found}"

    def loners(self) -> str:
        """What people should know of views that get nothing from any other, "" where there are none."""
        alone = self.neighbours.count(0)
        limit = (
            f": none is within {self.max_angle_deg:g} degrees (--max_angle)" if self.max_angle_deg < ANY_ANGLE else ""
        )
        return f"{alone} of {len(self.neighbours)} views get nothing from another view{limit}" if alone else ""

    @cached_property
    def neighbours(self) -> list[int]:
        """From how many others each saved view gets features; empty without cameras and where every frame is made
        alone."""
        found: list[int] = []
        handed_on = self.source.scene is not None and self.propagation != "none" and not self.windowed
        for call in self.calls() if handed_on else ():
            alignment = self.alignment(call.frames, torch.device("cpu"), Path())
            last = [{visit.frame: visit.sources for visit in alignment.visits(reverse)} for reverse in (True, False)]
            found += [len({*last[0][i], *last[1][i]}) for i in call.save]
        return found

    def calls(self) -> list[Subsequence]:
        """The calls as they are made, with nothing computed for nobody: those of the schedule along a path, one of all
        saved views of a size and kind in a graph, one a view where nothing propagates."""
        sequences, views = self.source.sequences, self.source.views
        if self.propagation == "path":
            return [s for s in sequences.subsequences if s.save]
        if self.propagation == "none":
            return [Subsequence((name,), (0,)) for name in sequences.saved]
        groups: dict[tuple[tuple[int, int], bool], list[str]] = {}
        for name in sequences.saved:
            groups.setdefault((views.size(name), views.has_alpha(name)), []).append(name)
        return [Subsequence(tuple(names), tuple(range(len(names)))) for names in groups.values()]

    def alignment(self, names: Sequence[str], device: torch.device, folder: Path) -> Alignment | Graph:
        """Of the frames of one call; a name may occur twice.

        folder : where features may wait in a file.
        """
        path = along_path(len(names))
        if self.source.scene is None or self.propagation == "none":
            return path
        angle = self._angles_of(names)
        usable = angle <= self.max_angle_deg
        flow_of = self._flow_of(names, device)
        if self.propagation == "path":

            def gated(sources: Sequence[int | None]) -> tuple[int | None, ...]:
                return tuple(s if s is not None and usable[i, s] else None for i, s in enumerate(sources))

            def near(i: int, s: int) -> bool:
                return bool(usable[i, s])

            return Alignment(gated(path.backward), gated(path.forward), flow_of, near)
        cost = cost_of_neighbours(self.settings.neighbour_cost, self.source.scene, names)
        factors, order = np.exp(-angle / FALL_OFF_DEG), range(len(names))
        count, passes = self.settings.neighbours, self.settings.passes
        backward, forward = (
            graph_visits(cost, usable, factors, direction, count, passes) for direction in (order[::-1], order)
        )
        return Graph(backward, forward, flow_of, folder)

    def angles_deg(self, names: Sequence[str]) -> list[list[float]] | None:
        """Angles between the views of a scene about its centre, degrees; None without cameras."""
        return None if self.source.scene is None else self._angles_of(names).tolist()

    def _angles_of(self, names: Sequence[str]) -> Float[np.ndarray, "n n"]:
        index, angle = self._angles
        here = [index[name] for name in names]
        return angle[np.ix_(here, here)]

    @cached_property
    def _angles(self) -> tuple[dict[str, int], Float[np.ndarray, "N N"]]:
        assert self.source.scene is not None
        names = list(self.source.scene.cameras)
        return {name: i for i, name in enumerate(names)}, angles(self.source.scene, names)

    @cached_property
    def _geometry(self) -> Geometry | None:
        folder, scene = self.source.geometry, self.source.scene
        if folder is None or scene is None:
            return None
        return Geometry(folder, scene.cameras, self.settings.occlusion_tolerance)

    def _flow_of(self, names: Sequence[str], device: torch.device) -> FlowOf | None:
        geometry = self._geometry
        return None if geometry is None else lambda i, s: geometry.flow(names[i], names[s], device)
