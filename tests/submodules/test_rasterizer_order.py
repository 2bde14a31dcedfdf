"""Nearest first, whatever the depths, the order of the input and the number of threads."""

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import RasterCamera
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

SPREADS = {
    "one octave": (1.0, 1.9),
    "from the near plane to beyond the last bucket": (0.21, 1e6),
    "one bucket": (3.0, 3.001),
    "far away": (2e4, 4e4),
}


def splats(near: float, far: float, n: int) -> list[Tensor]:
    """Small translucent splats at different depths, sorted by them."""
    r = np.random.default_rng(n)
    depth = np.unique(np.exp(r.uniform(np.log(near), np.log(far), n)).astype(np.float32))
    n = len(depth)
    ndc = r.uniform(-0.5, 0.5, (n, 2))
    values = [
        np.column_stack([ndc * depth[:, None], depth]),
        np.log(0.02 * depth)[:, None] + r.normal(0, 0.3, (n, 3)),
        r.normal(size=(n, 4)),
        r.normal(-1, 1, (n, 1)),
        r.normal(size=(n, 1, 3)),
        np.zeros((n, 15, 3)),
    ]
    return [torch.tensor(v, dtype=torch.float32) for v in values]


def draw(six: list[Tensor], threads: int) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return Workspace().forward(RasterCamera(48, 40, 40.0, 40.0, 24.0, 20.0, torch.eye(4)), *six)[0]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "threads"), [(300, 1), (3000, 2), (50_000, 1), (50_000, 3)])
@pytest.mark.parametrize("spread", SPREADS)
def test_the_order_of_the_input_does_not_matter(spread: str, n: int, threads: int) -> None:
    six = splats(*SPREADS[spread], n)
    shuffled = torch.randperm(len(six[0]), generator=torch.Generator().manual_seed(1))
    image = draw(six, threads)
    assert image.std() > 0.01
    assert torch.equal(image, draw([p[shuffled] for p in six], threads))


def test_behind_and_in_front() -> None:
    six = splats(0.21, 1e6, 500)
    reversed_colours = [p.flip(0) if k == 4 else p for k, p in enumerate(six)]
    assert not torch.equal(draw(six, 1), draw(reversed_colours, 1))


def test_equal_depths_keep_the_order_of_the_input() -> None:
    six = splats(1.0, 4.0, 2000)
    six[0][:, :2] *= 2.0 / six[0][:, 2:]
    six[0][:, 2] = 2.0
    one, other = draw(six, 1), draw([p.flip(0) for p in six], 1)
    assert not torch.equal(one, other)
    assert torch.equal(one, draw(six, 3))
