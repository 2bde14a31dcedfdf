"""What the geometry pass differentiates beyond the plain step: 3D filter, camera pose, several views."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gaussian_renderer.reference import rasterize
from gaussian_renderer.sh import colors_from_sh
from gaussian_renderer.splats import RenderOutput, RenderSettings, Splats, covariances, full_covariances
from scene.cameras import Camera
from tests.submodules.rasterizer_scenes import FIELDS, Case, make_case, relative
from tests.submodules.rasterizer_view import View, filter_of, map_gradients
from tests.submodules.test_rasterizer_robustness import SPECIAL, poisoned

GRADIENT_TOLERANCE = 1e-5


def differentiate(output: RenderOutput, maps: Sequence[Tensor]) -> None:
    color, transmittance, inverse_depth = (m.double() for m in maps)
    loss = (output.color * color).sum() - (output.alpha * transmittance).sum()
    (loss + (output.inverse_depth * inverse_depth).sum()).backward()


def settings_of(case: Case) -> RenderSettings:
    background = torch.tensor(case.background, dtype=torch.float64)
    return RenderSettings(background, case.sh_degree, case.scale_modifier, case.antialiasing)


def filtered_splats(leaves: dict[str, Tensor], filter_3d: Tensor, *, activated: bool) -> Splats:
    """Mip-Splatting's 3D filter, section 5.1: scales sqrt(s^2 + f^2), opacity times sqrt(det / det')."""
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
    before = int(View(case, case.six, filter_of(case)).native.facts(1)["invalid"])
    view = View(case, six, filter_3d)
    assert view.native.facts(1)["invalid"] >= before + 5
    grads, pose = view.backward(map_gradients(case))
    assert all(torch.isfinite(x).all() for x in (view.color, view.transmittance, pose, *grads))
    assert all(torch.count_nonzero(g[:5]) == 0 for g in grads)


def hostile_step(case: Case, seed: int) -> list[Tensor]:
    """Backward and sparse Adam on special values in every parameter and in the filter: what must be finite."""
    g = torch.Generator().manual_seed(seed)
    six, filter_3d, maps = poisoned(case, seed), filter_of(case), map_gradients(case)
    n = len(filter_3d)
    special = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), (n,), generator=g)]
    filter_3d = torch.where(torch.rand(n, generator=g) < 0.3, special, filter_3d)
    mean, square = ([torch.zeros_like(p) for p in six] for _ in range(2))
    view = View(case, six, filter_3d)
    grads, pose = view.backward(maps)
    view.adam(maps, mean, square, added=grads, visible=(view.radii > 0).to(torch.uint8))
    return [view.color, view.transmittance, view.inverse_depth, pose, *grads, *mean, *square]


@pytest.mark.parametrize("seed", range(3))
def test_special_values_give_finite_results(seed):
    case = make_case(seed, n=1500, antialiasing=seed == 1)
    assert all(torch.isfinite(x).all() for x in hostile_step(case, seed))


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e-17, 1e10])
def test_extreme_scales_and_filters_have_finite_gradients(scale):
    """Activated: the gradient of the opacity's factor divides by the scale."""
    case = make_case(43, n=60)
    six = case.six
    six[1], six[3] = six[1].exp(), six[3].sigmoid()
    six[1][::2] = scale
    for filter_3d in (0.0, 1e-42, 1e-38, 1e-19, 2e-18, 1e-5):
        view = View(case, six, torch.full((60,), filter_3d), activated=True)
        grads, pose = view.backward(map_gradients(case))
        assert all(torch.isfinite(x).all() for x in (view.color, pose, *grads))


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
