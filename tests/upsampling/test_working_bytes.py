"""What a network says it needs is what its tensors take, on any device: the bound of --max_memory rests on it."""

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.upsampling.test_networks import moving_texture
from upsampling.alignment import Graph
from upsampling.basicvsr import BasicVSR
from upsampling.basicvsr_pp import BasicVSRpp
from upsampling.geometry import Flow
from upsampling.iconvsr import IconVSR
from upsampling.neighbours import graph_visits
from upsampling.psrt import PSRT


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that operators returned and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                self.known[key] = tensor.untyped_storage().nbytes()
                self.now += self.known[key]
                weakref.finalize(tensor.untyped_storage(), self._gone, key)
                self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self.known.pop(key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "t", "h", "w"),
    [
        *((BasicVSR, 3, 64, 72), (BasicVSRpp, 3, 64, 72), (BasicVSRpp, 6, 40, 48), (PSRT, 1, 64, 48)),
        *((partial(IconVSR, 3), 1, 64, 71), (partial(IconVSR, 2), 6, 29, 31)),
    ],
)
def test_what_is_said_is_enough_and_not_far_more(make, t, h, w, dtype):
    net = make().eval().requires_grad_(False).in_precision(dtype)
    frames = moving_texture(t, h, w)
    with Alive() as alive:
        for _ in net.upsample(frames):
            pass
    assert 0.4 * net.working_bytes(t, h, w) < alive.peak < net.working_bytes(t, h, w)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(("dtype", "learned"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
def test_what_a_graph_is_said_to_need_is_enough_and_not_far_more(dtype, in_file, learned, tmp_path, monkeypatch):
    monkeypatch.setattr("upsampling.basicvsr.BLOCKS", 2)
    net = BasicVSR().eval().requires_grad_(False).in_precision(dtype)
    t, h, w = 9, 48, 56
    frames, still = moving_texture(t, h, w), Flow(torch.zeros(1, 2, h, w), torch.ones(1, 1, h, w))
    far = np.abs(np.arange(t)[:, None] - np.arange(t)[None]).astype(float)
    visits = (graph_visits(far, far < 9, np.exp(-far), order, 3, 2) for order in (range(t)[::-1], range(t)))
    graph = Graph(*visits, None if learned else (lambda i, s: still), tmp_path if in_file else None)
    with Alive() as alive:
        for _ in net.upsample(frames, graph):
            pass
    assert 0.4 * (said := net.graph_bytes(t, h, w, in_file, learned)) < alive.peak < said


def test_a_known_flow_holds_no_pyramid():
    net = BasicVSR()
    kept = {
        learned: net.graph_bytes(1001, 100, 80, True, learned) - net.graph_bytes(1, 100, 80, True, learned)
        for learned in (False, True)
    }
    assert kept[False] == 1000 * 100 * 80 * 12  # the frames alone
    assert kept[True] > 2 * kept[False]
