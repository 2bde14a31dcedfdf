"""What the geometry pass can do beyond the plain step: 3D filter, pose gradients, several views, sparse Adam."""

import math
from collections.abc import Sequence

import pytest
import torch
from diff_gaussian_rasterization import _native
from diff_gaussian_rasterization.checks import address
from torch import Tensor

from gaussian_renderer.reference import rasterize
from gaussian_renderer.sh import colors_from_sh
from gaussian_renderer.splats import RenderOutput, RenderSettings, Splats, covariances, full_covariances
from scene.cameras import Camera
from tests.submodules.rasterizer_scenes import FIELDS, Case, make_case, relative

GRADIENT_TOLERANCE = 1e-5
RATES = (1.6e-4, 5e-3, 1e-3, 0.05, 2.5e-3, 1.25e-4)
BETAS = (0.9, 0.999)
NOTHING = (None,) * 6
Six = Sequence[Tensor | None]


def addresses(tensors: Six, length: int = 6) -> list[int]:
    return [*map(address, tensors)] + [0] * (length - len(tensors))


class View:
    """One rendered view: the native calls with tensors instead of addresses."""

    def __init__(self, case: Case, six: Sequence[Tensor], filter_3d: Tensor | None = None, *, activated: bool = False):
        self.six, self.filter, self.native = six, filter_3d, _native.Rasterization()
        camera, n, row = case.camera, len(six[0]), case.raster_camera.row
        self.color, self.transmittance = (
            torch.empty(3, camera.height, camera.width),
            torch.empty(camera.height, camera.width),
        )
        self.inverse_depth = torch.empty(camera.height, camera.width)
        self.radii = torch.empty(n, dtype=torch.int32)
        self.native.forward(
            address(row),
            camera.width,
            camera.height,
            case.sh_degree,
            case.antialiasing,
            addresses(six, 8),
            address(filter_3d),
            n,
            3,
            45,
            15,
            activated,
            addresses((self.color, self.transmittance, self.inverse_depth), 5),
            address(self.radii),
            torch.get_num_threads(),
        )

    def backward(
        self, maps: Sequence[Tensor], *, added: Six = NOTHING, out: Six | None = None, statistics: Six = (None,) * 3
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of the six and of (rotation, translation, centre) from those of colour, T and inverse depth."""
        grads = [torch.full_like(p, math.nan) for p in self.six] if out is None else [*out]
        pose = torch.full((15,), math.nan, dtype=torch.float64)
        self.native.backward(
            addresses(self.six, 8),
            address(self.filter),
            address(self.transmittance),
            addresses(maps, 5),
            addresses(grads, 8),
            addresses(added, 8),
            0,
            0,
            address(pose),
            addresses(statistics, 4),
            torch.get_num_threads(),
        )
        return grads, pose

    def adam(
        self,
        maps: Sequence[Tensor],
        mean: Six,
        square: Six,
        *,
        step: int = 1,
        eps: float = 1e-15,
        added: Six = NOTHING,
        visible: Tensor | None = None,
        statistics: Six = (None,) * 3,
    ) -> None:
        self.native.backward_adam(
            addresses(self.six),
            address(self.filter),
            address(self.transmittance),
            addresses(maps, 5),
            addresses(added),
            addresses(mean),
            addresses(square),
            RATES,
            step,
            BETAS,
            eps,
            address(visible),
            0,
            addresses(statistics, 4),
            torch.get_num_threads(),
        )


def map_gradients(case: Case, seed: int = 0) -> list[Tensor]:
    """Random dL/dcolor, dL/dtransmittance, dL/dinverse_depth."""
    g = torch.Generator().manual_seed(seed)
    size = (case.camera.height, case.camera.width)
    return [torch.randn(*shape, generator=g) for shape in ((3, *size), size, size)]


def differentiate(output: RenderOutput, maps: Sequence[Tensor]) -> None:
    color, transmittance, inverse_depth = (m.double() for m in maps)
    loss = (output.color * color).sum() - (output.alpha * transmittance).sum()
    (loss + (output.inverse_depth * inverse_depth).sum()).backward()


def settings_of(case: Case) -> RenderSettings:
    background = torch.tensor(case.background, dtype=torch.float64)
    return RenderSettings(background, case.sh_degree, case.scale_modifier, case.antialiasing)


def filter_of(case: Case, seed: int = 0) -> Tensor:
    """Standard deviations from much smaller to larger than the scales, some 0."""
    g = torch.Generator().manual_seed(seed)
    typical = case.gaussians["log_scales"].exp().mean()
    value = typical * torch.randn(len(case.gaussians["means"]), generator=g).exp() * 0.5
    value[::7] = 0
    return value


def filtered_splats(leaves: dict[str, Tensor], filter_3d: Tensor, *, activated: bool) -> Splats:
    """Mip-Splatting's 3D filter, eq. 9: scales sqrt(s^2 + f^2), opacity times sqrt(det / det')."""
    scales = leaves["log_scales"] if activated else leaves["log_scales"].exp()
    opacities = leaves["logit_opacities"] if activated else leaves["logit_opacities"].sigmoid()
    wide = (scales.square() + filter_3d.double()[:, None].square()).sqrt()
    opacities = opacities * (scales.square().prod(dim=1) / wide.square().prod(dim=1)).sqrt()[:, None]
    sh = torch.cat([leaves["sh0"], leaves["shN"]], dim=1)
    return Splats(leaves["means"], opacities, wide, leaves["quats"], sh=sh)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("antialiasing", [False, True])
def test_filtered_image_and_gradients_are_those_of_the_definition(antialiasing, activated):
    case = make_case(31, antialiasing=antialiasing, scale_modifier=1.2, sh_degree=2)
    filter_3d, maps, values = filter_of(case), map_gradients(case), dict(case.gaussians)
    if activated:
        values["log_scales"] = values["log_scales"].exp()
        values["logit_opacities"] = values["logit_opacities"].sigmoid()
    leaves = {k: v.double().requires_grad_() for k, v in values.items()}
    expected = rasterize(case.camera, filtered_splats(leaves, filter_3d, activated=activated), settings_of(case))
    differentiate(expected, maps)

    view = View(case, [values[name].clone() for name in FIELDS], filter_3d, activated=activated)
    assert relative(view.color, expected.color) < 2e-6
    assert torch.equal(view.radii, expected.radii)
    grads, _ = view.backward(maps)
    for name, gradient in zip(FIELDS, grads, strict=True):
        assert relative(gradient, leaves[name].grad) < GRADIENT_TOLERANCE, name


def test_a_filter_of_zero_changes_no_bit():
    case = make_case(32, antialiasing=True)
    maps, none = map_gradients(case), torch.zeros(len(case.six[0]))
    plain, filtered = View(case, case.six), View(case, case.six, none)
    assert torch.equal(plain.color, filtered.color)
    for a, b in zip(plain.backward(maps)[0], filtered.backward(maps)[0], strict=True):
        assert torch.equal(a, b)


def test_hostile_filters_and_scales_are_culled_and_counted():
    case = make_case(33)
    filter_3d, six = filter_of(case), case.six
    filter_3d[:5] = torch.tensor([math.nan, math.inf, -math.inf, 1e38, -1e20])
    six[1][5:9] = torch.tensor([-1e4, 1e4, -88.0, math.nan])[:, None]
    filter_3d[5:8] = 0
    before = int(View(case, case.six, filter_of(case)).native.facts()["invalid"])
    view = View(case, six, filter_3d)
    assert view.native.facts()["invalid"] >= before + 5
    grads, pose = view.backward(map_gradients(case))
    assert all(torch.isfinite(x).all() for x in (view.color, view.transmittance, pose, *grads))
    assert all(torch.count_nonzero(g[:5]) == 0 for g in grads)


def pose_reference(case: Case, maps: Sequence[Tensor]) -> Tensor:
    """Float64 dL/d(rotation, translation, centre): the world is moved in front of a camera at the origin."""
    g = {k: v.double() for k, v in case.gaussians.items()}
    to_camera = torch.as_tensor(case.camera.world_to_camera)
    rotation = to_camera[:3, :3].clone().requires_grad_()
    translation = to_camera[:3, 3].clone().requires_grad_()
    centre = torch.as_tensor(case.camera.centre).clone().requires_grad_()
    sigma = full_covariances(covariances(g["log_scales"].exp(), g["quats"], case.scale_modifier))
    sigma = rotation @ sigma @ rotation.T
    rays = g["means"] - centre
    colors = colors_from_sh(
        torch.cat([g["sh0"], g["shN"]], dim=1), rays / rays.norm(dim=-1, keepdim=True), case.sh_degree
    )
    splats = Splats(
        g["means"] @ rotation.T + translation,
        g["logit_opacities"].sigmoid(),
        covariances=sigma[:, (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)],
        colors=colors,
    )
    camera = Camera("moved", case.camera.width, case.camera.height, case.camera.K, torch.eye(4).double().numpy())
    differentiate(rasterize(camera, splats, settings_of(case)), maps)
    assert rotation.grad is not None
    assert translation.grad is not None
    assert centre.grad is not None
    return torch.cat([rotation.grad.reshape(-1), translation.grad, centre.grad])


@pytest.mark.parametrize(
    "settings", [{"sh_degree": 3}, {"sh_degree": 1, "antialiasing": True, "scale_modifier": 1.3, "width": 40}]
)
def test_pose_gradients_are_those_of_the_reference(settings):
    case = make_case(34, **settings)
    maps = map_gradients(case)
    expected = pose_reference(case, maps)
    _, pose = View(case, case.six).backward(maps)
    for part in (slice(0, 9), slice(9, 12), slice(12, 15)):
        assert relative(pose[part], expected[part]) < GRADIENT_TOLERANCE


def test_the_pose_gradient_is_written_and_zero_where_nothing_is_seen():
    case = make_case(35, sh_degree=0)
    maps = map_gradients(case)
    assert torch.count_nonzero(View(case, case.six).backward(maps)[1][12:]) == 0  # degree 0: no viewing direction
    empty = View(case, [p[:0] for p in case.six])
    assert torch.count_nonzero(empty.backward(maps)[1]) == 0


def test_added_gradients_give_the_sum_over_views():
    """The very bits of the sum of two, in place as well."""
    first, second = make_case(36), make_case(36, width=80, height=30)
    six = first.six
    alone = [View(case, six).backward(map_gradients(case, k))[0] for k, case in enumerate((first, second))]
    together, _ = View(second, six).backward(map_gradients(second, 1), added=alone[0])
    copies = [g.clone() for g in alone[0]]
    in_place, _ = View(second, six).backward(map_gradients(second, 1), added=copies, out=copies)
    for a, b, both, aliased in zip(*alone, together, in_place, strict=True):
        assert torch.equal(a + b, both)
        assert torch.equal(both, aliased)


def adam_by_torch(
    six: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]], rows: Sequence[Tensor] | None, eps: float
):
    """Parameters and moments in float64 after one step per entry of `gradients`; with `rows`, by SparseAdam."""
    leaves = [p.double().flatten(1).requires_grad_() for p in six]
    groups = [{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves, RATES, strict=True)]
    kind = torch.optim.Adam if rows is None else torch.optim.SparseAdam
    optimizer = kind(groups, betas=BETAS, eps=eps)
    for step, grads in enumerate(gradients):
        for leaf, gradient in zip(leaves, grads, strict=True):
            dense = gradient.double().flatten(1)
            if rows is None:
                leaf.grad = dense
            else:
                index = rows[step].nonzero()[:, 0]
                leaf.grad = torch.sparse_coo_tensor(index[None], dense[index], dense.shape, check_invariants=True)
        optimizer.step()
    states = [optimizer.state[leaf] for leaf in leaves]
    return leaves, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]


def assert_adam(got: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]], start: Sequence[Tensor]) -> None:
    """Moments to float32's accuracy; parameters to that of the update, beyond their own rounding."""
    for ours, theirs, old in zip(got[0], wanted[0], start, strict=True):
        error = (ours.double().flatten(1) - theirs.detach()).norm()
        update = (theirs.detach() - old.double().flatten(1)).norm()
        assert error <= 1e-5 * update + 2.0**-23 * theirs.detach().norm()
    for ours, theirs in zip((*got[1], *got[2]), (*wanted[1], *wanted[2]), strict=True):
        assert relative(ours.flatten(1), theirs) < 1e-6


@pytest.mark.parametrize("n", [300, 16 * 7 + 5])
def test_sparse_adam_is_that_of_torch_and_leaves_the_rest_alone(n):
    """Three steps with changing visibility (runs, single Gaussians, whole groups of 16), eps as torch places it."""
    case, g = make_case(37, n=n), torch.Generator().manual_seed(1)
    six = case.six
    start, mean, square = [p.clone() for p in six], *([torch.zeros_like(p) for p in six] for _ in range(2))
    gradients, rows = [], []
    for step in range(1, 4):
        maps = map_gradients(case, step)
        visible = torch.rand(n, generator=g) < 0.5
        visible[:16], visible[16:40] = step == 1, True
        view = View(case, six)
        gradients.append(view.backward(maps)[0])
        rows.append(visible)
        before = [x.clone() for x in (*six, *mean, *square)]
        view.adam(maps, mean, square, step=step, eps=1e-8, visible=visible.to(torch.uint8))
        for now, old in zip((*six, *mean, *square), before, strict=True):
            assert torch.equal(now[~visible], old[~visible])
    assert_adam((six, mean, square), adam_by_torch(start, gradients, rows, 1e-8), start)


def test_invisible_gaussians_keep_bits_that_no_arithmetic_would():
    case = make_case(38, n=50)
    six, maps = case.six, map_gradients(case)
    mean, square = ([torch.full_like(p, math.nan) for p in six] for _ in range(2))
    visible = torch.zeros(50, dtype=torch.uint8)
    visible[3:50:4] = 1
    before = [x.clone().view(torch.int32) for x in (*six, *mean, *square)]
    View(case, six).adam(maps, mean, square, visible=visible)
    for now, old in zip((*six, *mean, *square), before, strict=True):
        assert torch.equal(now.view(torch.int32)[visible == 0], old[visible == 0])
    assert all(p[visible == 1].isnan().all() for p in six)


def test_adam_with_added_gradients_is_that_of_the_sum():
    case, other = make_case(39), make_case(39, width=90)
    six, maps = case.six, map_gradients(case)
    added = View(other, six).backward(map_gradients(other, 1))[0]
    view = View(case, six)
    total = [a + b for a, b in zip(view.backward(maps)[0], added, strict=True)]
    start, mean, square = [p.clone() for p in six], *([torch.zeros_like(p) for p in six] for _ in range(2))
    view.adam(maps, mean, square, added=added)
    assert_adam((six, mean, square), adam_by_torch(start, [total], None, 1e-15), start)


@pytest.mark.parametrize("resting", range(6))
def test_a_field_without_moments_rests_and_the_others_do_not_notice(resting):
    case = make_case(40, n=100)
    maps, results = map_gradients(case), []
    for rests in (False, True):
        six = case.six
        mean, square = ([torch.full_like(p, 0.1) for p in six] for _ in range(2))
        chosen = [[None if rests and k == resting else x for k, x in enumerate(xs)] for xs in (mean, square)]
        View(case, six).adam(maps, *chosen, step=2)
        results.append([six, mean, square])
    for k, name in enumerate(FIELDS):
        if k == resting:
            assert torch.equal(results[1][0][k], case.gaussians[name])
        else:
            assert all(torch.equal(a[k], b[k]) for a, b in zip(*results, strict=True)), name


def test_statistics_need_neither_gradients_nor_moments():
    case = make_case(41)
    maps, six = map_gradients(case), case.six
    results = [[torch.zeros(len(six[0])) for _ in range(3)] for _ in range(3)]
    View(case, six).adam(maps, NOTHING, NOTHING, statistics=results[0])
    View(case, six).backward(maps, out=NOTHING, statistics=results[1])
    assert all(torch.equal(p, case.gaussians[name]) for name, p in zip(FIELDS, six, strict=True))
    View(case, six).adam(maps, *([torch.zeros_like(p) for p in six] for _ in range(2)), statistics=results[2])
    for alone, without_adam, with_adam in zip(*results, strict=True):
        assert torch.equal(alone, with_adam)
        assert torch.equal(without_adam, with_adam)
        assert torch.count_nonzero(alone) > 0


def everything(threads: int) -> list[Tensor]:
    """A step through all of it, on Gaussians enough for several tasks."""
    torch.set_num_threads(threads)
    case, other = make_case(42, n=5000), make_case(42, n=5000, width=70)
    six, maps, filter_3d = case.six, map_gradients(case), filter_of(case)
    mean, square = ([torch.zeros_like(p) for p in six] for _ in range(2))
    added, other_pose = View(other, six, filter_3d).backward(map_gradients(other, 1))
    view = View(case, six, filter_3d)
    grads, pose = view.backward(maps, added=added)
    visible = (view.radii > 0).to(torch.uint8)
    view.adam(maps, mean, square, added=added, visible=visible)
    return [*six, *mean, *square, *grads, pose, other_pose]


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        runs = [everything(threads) for threads in (1, 2, 3, 7)]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
