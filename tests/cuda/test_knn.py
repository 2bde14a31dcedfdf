"""simple_knn on a GPU: the CPU's results bit for bit, on the sets that break trees, and on ten million points."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from simple_knn import _native
from simple_knn._C import distCUDA2
from torch import Tensor

from tests.submodules.test_simple_knn import definition, point_sets

pytestmark = pytest.mark.gpu

FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, 1e-20, 1e15, 3e38])
SMALL_SETS = st.integers(0, 100).flatmap(lambda n: hnp.arrays(np.float32, (n, 3), elements=FEW_VALUES))


@pytest.fixture(autouse=True)
def with_kernels() -> None:
    """Without them distCUDA2 computes on the CPU, and these tests would compare it with itself."""
    if _native.cuda_build.startswith("no: "):
        pytest.skip(f"simple_knn was built without its CUDA kernels ({_native.cuda_build})")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sets() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    outliers, surface = rng.random((5000, 3)), rng.random((5000, 3)) * [1, 1, 1e-4]
    outliers[:5] = 1e30 * rng.normal(size=(5, 3))
    line = np.concatenate([rng.random((3000, 1)), 1e-6 * rng.normal(size=(3000, 2))], axis=1)
    return point_sets() | {"outliers": outliers, "surface": surface, "noisy line": line, "equal": np.ones((5000, 3))}


@pytest.mark.parametrize("name", sets())
def test_the_cpu_gives_the_same_bits(cuda: Any, name: str) -> None:
    points = torch.from_numpy(sets()[name].astype(np.float32))
    found = distCUDA2(points.to(cuda))
    assert found.device == torch.device(cuda)
    assert torch.equal(found.cpu(), distCUDA2(points))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(points=SMALL_SETS)
def test_is_the_definition_bit_for_bit(cuda: Any, points: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        expected = definition(points)
    np.testing.assert_array_equal(distCUDA2(torch.from_numpy(points).to(cuda)).cpu().numpy(), expected)


# Around every number of points at which a leaf, a level of the tree or the sort begins anew.
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 32767, 32768, 32769])
def test_every_number_of_points(cuda: Any, n: int) -> None:
    points = torch.randn(n, 3, generator=generator(n))
    assert torch.equal(distCUDA2(points.to(cuda)).cpu(), distCUDA2(points))


@pytest.mark.parametrize("n", [1_048_577, 2_097_153])
def test_a_tree_of_more_levels_and_ranks_of_more_than_21_bits(cuda: Any, n: int) -> None:
    points = torch.rand(n, 3, generator=generator(0)) ** 2
    assert torch.equal(distCUDA2(points.to(cuda)).cpu(), distCUDA2(points))


def test_order_strides_and_views_do_not_matter(cuda: Any) -> None:
    wide = torch.rand(5000, 6, generator=generator(1)).to(cuda)
    order = torch.randperm(5000, generator=generator(2)).to(cuda)
    expected = distCUDA2(wide[:, ::2].contiguous())
    assert torch.equal(distCUDA2(wide[:, ::2]), expected)
    assert torch.equal(distCUDA2(wide[order, ::2]), expected[order])
    assert torch.equal(distCUDA2(wide[7:, ::2].requires_grad_()), distCUDA2(wide[7:, ::2].clone()))


def test_works_on_the_current_stream(cuda: Any) -> None:
    """Points written on another stream, and a result read on it, without waiting for the device."""
    points = torch.rand(200_000, 3, generator=generator(3))
    expected, stream = distCUDA2(points), torch.cuda.Stream(cuda)
    stream.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(stream):
        on_gpu = points.to(cuda)
        found = [distCUDA2(on_gpu) for _ in range(3)]
        back = [f.cpu() for f in found]
    assert all(torch.equal(b, expected) for b in back)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_points_that_are_not_finite(cuda: Any, value: float) -> None:
    points = torch.zeros(20, 3, device=cuda)
    points[13, 2] = points[15, 0] = value
    with pytest.raises(ValueError, match="point 13 is not finite"):
        distCUDA2(points)


def test_too_small_a_workspace_is_refused(cuda: Any) -> None:
    points, out = torch.zeros(100, 3, device=cuda), torch.zeros(100, device=cuda)
    few = _native.cuda_workspace_bytes(100, 0) - 1
    memory = torch.empty(few, dtype=torch.uint8, device=cuda)
    addresses = (points.data_ptr(), 100, out.data_ptr(), memory.data_ptr(), few)
    with pytest.raises(RuntimeError, match="workspace is too small"):
        _native.cuda_mean_squared_distance_3(*addresses, 0, torch.cuda.current_stream().cuda_stream)


def brute_force(points: Tensor, chosen: Tensor) -> Tensor:
    """Mean squared distance of the chosen points to the three nearest others, in float64."""
    gaps = points.double()[None] - points[chosen].double()[:, None]
    nearest = gaps.square().sum(-1).topk(4, dim=1, largest=False).values
    return nearest[:, 1:].mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("far", [0, 20])
def test_ten_million_points(cuda: Any, far: int) -> None:
    """Also with a few that lie a million times further out, in memory that the README names."""
    points = torch.rand(10_000_000, 3, generator=generator(4)).to(cuda)
    points[:far] *= 1e6
    torch.cuda.reset_peak_memory_stats(cuda)
    before = torch.cuda.memory_allocated(cuda)
    found = distCUDA2(points)
    assert torch.cuda.max_memory_allocated(cuda) - before < (30 + 4) * len(points)
    chosen = torch.cat([torch.arange(20), torch.randint(0, 10_000_000, (44,), generator=generator(5))]).to(cuda)
    for part in chosen.split(4):
        # four roundings of float32 (2^-24 each) on the way; the gaps themselves are exact to 2^-24 of a coordinate
        assert torch.allclose(found[part].double(), brute_force(points, part), rtol=1e-6, atol=0)
