"""Hooks: what each makes of the clean estimate, and DDNM for flow matching as sampler and hooks together."""

import math
from dataclasses import replace

import pytest
import torch

from priors import post, wavelets
from priors.crops import Box, Croppable, cropped_cond, random_box
from priors.hooks import (
    DIFFBIR_UNIT,
    Clamp,
    ProjectLR,
    ProjectLRLatent,
    RefineCondition,
    RenderConsistency,
    RestorationGuidance,
    SwapLowBand,
    flatness,
)
from priors.interfaces import Cond
from priors.processes import VP, Flow
from priors.sampler import sample
from priors.spaces import PixelSpace
from scene.lr_kernel import LRKernel
from tests.priors.exact_priors import Perfect, context, images, normal, sd3_space
from utils.errors import UserError
from utils.rng import generator

KERNEL = LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
LR = 0.2 + 0.6 * images(2, 3, 6, 8)
LINEAR, FLOW = VP.linear(1000, 1e-4, 2e-2), Flow(3.0)
IMAGE = images(2, 3, 24, 32, seed=1)
PIXELS = Perfect(LINEAR, 2 * IMAGE - 1)


def lr_error(image, lr=LR):
    return (KERNEL.down(image) - lr).abs().max()


# --- LR projection ---


def test_projection_in_pixels_meets_the_lr_view_and_changes_nothing_twice():
    hook, decode = ProjectLR(KERNEL, LR), PIXELS.space.decode
    x0 = hook(PIXELS.truth, context(PIXELS))
    assert lr_error(decode(x0)) < 1e-12
    assert torch.allclose(hook(x0, context(PIXELS)), x0, atol=1e-12)
    assert torch.allclose(decode(x0), KERNEL.project(IMAGE, LR), atol=1e-12)


def test_projection_takes_the_middle_frame_of_what_the_prior_is_told():
    frames = torch.stack([images(2, 3, 6, 8, seed=k) for k in (5, 6, 7)], 1)
    own = ProjectLR(KERNEL)(PIXELS.truth, context(PIXELS, Cond(lr=frames)))
    assert torch.equal(own, ProjectLR(KERNEL, frames[:, 1])(PIXELS.truth, context(PIXELS)))
    with pytest.raises(ValueError, match=r"cond\.lr"):
        ProjectLR(KERNEL)(PIXELS.truth, context(PIXELS))


def test_rounds_of_projection_are_the_final_projection():
    hook = ProjectLR(KERNEL, LR, tolerance=0.01, rounds=3)
    expected = post.project(IMAGE, KERNEL, LR, 0.01, 3)
    assert torch.allclose(PIXELS.space.decode(hook(PIXELS.truth, context(PIXELS))), expected, atol=1e-12)


@pytest.mark.parametrize("border", ["renormalise", "mirror"])
@pytest.mark.parametrize("corner", [(0, 0), (2, 1), (3, 2)])
def test_projection_of_a_part_is_right_where_the_part_says_all(corner, border):
    """Pasted into the view, the part's inner LR pixels are met by A of the whole view, the others as they were."""
    kernel = replace(KERNEL, border=border, hr_size=(40, 32), lr_size=(10, 8))
    view, lr = images(1, 3, 32, 40, seed=2), images(1, 3, 8, 10, seed=3)
    box = Box(*corner, 7, 6, (10, 8))
    hook = ProjectLR(kernel, lr).cropped(box)
    assert isinstance(hook, Croppable)
    part = PIXELS.space.decode(hook(PIXELS.space.encode(box.of(view)), context(PIXELS)))
    pasted = view.clone()
    box.of(pasted).copy_(part)
    met = (box.of(kernel.down(pasted)) - box.of(lr)).abs().amax((0, 1)) < 1e-10
    assert torch.equal(met, hook.mask)
    rows = 6 - 2 * (corner[1] > 0) - 2 * (corner[1] + 6 < 8)  # the support reaches 2 LR px beyond its own
    columns = 7 - 2 * (corner[0] > 0) - 2 * (corner[0] + 7 < 10)
    assert met.sum() == rows * columns


@pytest.mark.parametrize("channels", [12, 5], ids=["invertible", "lossy"])
def test_latent_projection_without_strength_is_the_smallest_image_of_the_lr_view(channels):
    space = sd3_space(channels)
    hook = ProjectLRLatent(KERNEL, LR, strength=0.0)
    x0 = hook(space.encode(IMAGE), context(Perfect(FLOW, None, space)))
    assert torch.equal(x0, space.encode(KERNEL.pinv(LR)))
    known = replace(hook, lr_latent=x0, lr=None)
    assert torch.equal(known(space.encode(IMAGE), context(Perfect(FLOW, None, space))), x0)


def ddnm_flow(space, hooks):
    """Four steps from noise with a prior that knows another image."""
    prior = Perfect(FLOW, space.encode(0.3 + 0.4 * IMAGE), space)
    shape = tuple(prior.truth.shape)
    x = sample(prior, Cond(lr=LR[:, None]), FLOW.times(4), generator(0), hooks=hooks, begin=torch.zeros(shape).double())
    return space.decode(x)


def test_ddnm_flow_in_pixels():
    assert lr_error(ddnm_flow(PixelSpace(), [ProjectLR(KERNEL)])) < 1e-6


def test_ddnm_flow_in_invertible_latents():
    assert lr_error(ddnm_flow(sd3_space(12), [ProjectLRLatent(KERNEL, strength=1.0)])) < 1e-6


def test_ddnm_flow_in_lossy_latents_needs_the_final_projection():
    image = ddnm_flow(sd3_space(5), [ProjectLRLatent(KERNEL, strength=1.0)])
    assert lr_error(image) > 1e-3
    assert lr_error(KERNEL.project_soft(image, LR)) < 1e-6


def test_ddnm_flow_without_strength_is_the_lr_view_there_and_back():
    space = sd3_space(5)
    expected = space.decode(space.encode(KERNEL.pinv(LR)))
    assert torch.allclose(ddnm_flow(space, [ProjectLRLatent(KERNEL, strength=0.0)]), expected, atol=1e-12)


# --- the low band ---


def test_low_band_is_the_targets_in_the_first_steps_alone():
    target = images(2, 3, 24, 32, seed=4)
    hook = SwapLowBand(target, "haar", 1, "periodization", steps=3)
    swapped = PIXELS.space.decode(hook(PIXELS.truth, context(PIXELS, index=2)))
    bands = [wavelets.analyse(x, "haar", "periodization") for x in (swapped, target, IMAGE)]
    assert torch.allclose(bands[0].low, bands[1].low, atol=1e-12)
    assert all(torch.allclose(*pair, atol=1e-12) for pair in zip(bands[0].details, bands[2].details, strict=True))
    assert hook(PIXELS.truth, context(PIXELS, index=3)) is PIXELS.truth


def test_no_steps_with_the_low_band_are_plain_image_to_image():
    space, times = sd3_space(5), FLOW.times(6, 0.6)
    prior, begin = Perfect(FLOW, space.encode(IMAGE), space), space.encode(images(2, 3, 24, 32, seed=4))
    plain = sample(prior, Cond(), times, generator(0), eta=0.5, begin=begin)
    hooked = sample(prior, Cond(), times, generator(0), eta=0.5, begin=begin, hooks=[SwapLowBand(IMAGE, steps=0)])
    assert torch.equal(plain, hooked)


# --- restoration guidance ---


@pytest.mark.parametrize("where", ["pixel", "latent"])
@pytest.mark.parametrize("space", [PixelSpace(), sd3_space(5)], ids=["pixels", "latents"])
def test_guidance_lowers_its_loss(space, where):
    now = context(Perfect(FLOW, None, space))
    hook = RestorationGuidance(images(2, 3, 24, 32, seed=4), 0.01, where)
    x0 = space.encode(IMAGE)
    guided = hook(x0, now)
    assert (hook.loss(guided, now) < hook.loss(x0, now)).all()
    assert not guided.requires_grad
    assert replace(hook, strength=0.0)(x0, now) is x0


def test_guidance_in_pixels_is_its_gradient_in_closed_form():
    reference = images(2, 3, 24, 32, seed=4)
    with torch.no_grad():  # as while sampling
        guided = RestorationGuidance(reference, 0.02)(PIXELS.truth, context(PIXELS))
    slope = 2 * flatness(reference) * (PIXELS.truth - (2 * reference - 1)) / (3 * 24 * 32)
    assert torch.allclose(guided, PIXELS.truth - DIFFBIR_UNIT * 0.02 * slope, atol=1e-12)


def test_guidance_elsewhere_is_refused():
    with pytest.raises(ValueError, match="'rgb'; pixel or latent"):
        RestorationGuidance(IMAGE, 1.0, "rgb")


def test_flatness_is_one_on_flat_areas_and_small_at_edges():
    image = torch.full((1, 3, 17, 21), 0.4)
    image[..., 10:] = 0.9
    weight = flatness(image)
    assert weight.shape == (1, 1, 17, 21)
    assert (weight[..., :8] > 1 - 1e-6).all()
    assert (weight[..., 12:] > 1 - 1e-6).all()
    assert (weight[..., 10] < 0.01).all()
    assert flatness(images(1, 3, 9, 9)).min() > 0
    ramp = torch.arange(16.0).expand(1, 3, 8, 16) / 100
    expected = 1 - math.tanh(4 * 8 * 0.01)  # Sobel of a slope of 0.01 / px is 0.08, four pixels a block
    assert torch.allclose(flatness(ramp)[..., 2:-2], torch.tensor(expected), atol=1e-5)


# --- the others ---


def test_renders_replace_images_every_few_steps():
    def render(image, now):
        return image.flip(-1) if now.names == ("left", "right") else image

    space = sd3_space(12)
    prior = Perfect(FLOW, space.encode(IMAGE), space)
    hook = RenderConsistency(render, every=2)
    for index in range(4):
        now = replace(context(prior, index=index), names=("left", "right"))
        expected = IMAGE if index % 2 else IMAGE.flip(-1)
        assert torch.allclose(space.decode(hook(prior.truth, now)), expected, atol=1e-12)


class Recording(Perfect):
    """Notes what it is told."""

    def x0(self, x_t, t, cond):
        self.told = [*getattr(self, "told", []), cond.extra.get("control")]
        return super().x0(x_t, t, cond)


def test_the_next_step_sees_the_refined_condition_and_shares_do_not_compound():
    prior, up = Recording(LINEAR, 2 * IMAGE - 1), images(2, 3, 24, 32, seed=4)
    cond = Cond(up=up, extra={"control": up, "tags": torch.ones(1)})
    sample(prior, cond, LINEAR.times(3), generator(0), hooks=[RefineCondition(0.4, "control")], begin=prior.truth)
    mixed = 0.4 * IMAGE + 0.6 * up
    for told, expected in zip(prior.told, (up, mixed, mixed), strict=True):
        assert torch.allclose(told, expected, atol=1e-12)
    assert cond.extra["control"] is up


def test_nothing_is_decoded_for_a_step_that_does_not_come():
    class Undecodable(PixelSpace):
        def decode(self, z):
            raise AssertionError

    prior = Perfect(LINEAR, PIXELS.truth, Undecodable())
    cond = Cond(up=IMAGE)
    last = context(prior, cond, 9, 10)
    assert RefineCondition(0.4, "control")(PIXELS.truth, last) is PIXELS.truth
    assert last.cond is cond


def test_the_refined_condition_needs_the_enlarged_view():
    with pytest.raises(ValueError, match=r"cond\.up"):
        RefineCondition(0.4, "control")(PIXELS.truth, context(PIXELS))


def test_clamp():
    assert torch.equal(Clamp()(3 * PIXELS.truth, context(PIXELS)), (3 * PIXELS.truth).clamp(-1, 1))


# --- parts of views ---


def test_boxes_lie_on_the_grid_and_reach_every_place():
    rng, seen = generator(0), set()
    for _ in range(300):
        box = random_box((13, 8), 5, 2, rng)
        assert (box.width, box.height) == (4, 4)
        assert box.left % 2 == box.top % 2 == 0
        assert box.left + 4 <= 13
        assert box.top + 4 <= 8
        seen.add((box.left, box.top))
    assert len(seen) == 5 * 3
    assert random_box((13, 8), 20, 2, rng) == Box(0, 0, 12, 8, (13, 8))


def test_what_the_prior_is_told_is_cut_alike():
    box = Box(2, 1, 3, 4, (8, 6))
    cond = Cond(
        lr=images(1, 3, 3, 6, 8),
        up=images(1, 3, 24, 32),
        prompt=normal(1, 7, 8),
        guidance=2.0,
        extra={"control": images(1, 3, 24, 32), "lr": images(1, 3, 6, 8), "tags": normal(1, 5)},
    )
    cut = cropped_cond(cond, box, (32, 24))
    assert torch.equal(cut.lr, cond.lr[..., 1:5, 2:5])
    assert torch.equal(cut.up, cond.up[..., 4:20, 8:20])
    assert torch.equal(cut.extra["control"], cond.extra["control"][..., 4:20, 8:20])
    assert torch.equal(cut.extra["lr"], cond.extra["lr"][..., 1:5, 2:5])
    assert cut.extra["tags"] is cond.extra["tags"]
    assert (cut.prompt is cond.prompt, cut.guidance) == (True, 2.0)


def test_parts_of_images_that_are_no_multiple_are_refused():
    with pytest.raises(UserError, match="33x24 px: a whole multiple of the LR view, 8x6 px"):
        Box(0, 0, 2, 2, (8, 6)).of(torch.zeros(3, 24, 33))
