"""Networks in pixels seen in tiles: the LR view is said over the whole frame, and away from borders nothing changes."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

pytest.importorskip("diffusers")

from arguments.priors import PriorParams
from priors.ddnm import Settings, ddnm
from priors.denoisers.tiles import Tiled
from priors.denoisers.tiny import ProcessSpec, TinyConfig, TinyNet, save_prior
from priors.interfaces import Cond
from priors.processes import VP
from priors.samplers import Loading, load_sampler
from priors.spaces import PixelSpace
from scene.lr_kernel import LRKernel
from utils.errors import UserError
from utils.rng import generator

KERNEL = ("bicubic", "renormalise")
SCALE = 2


class Blur:
    """A prior that knows the 3 x 3 px around a pixel, and what the LR view says there."""

    process, space = VP.linear(1000, 1e-4, 2e-2), PixelSpace()

    def __init__(self):
        self.sides = []

    def x0(self, x_t, t, cond):
        self.sides.append(tuple(x_t.shape[-2:]))
        assert cond.up.shape[-2:] == x_t.shape[-2:] == tuple(4 * n for n in cond.lr.shape[-2:])
        return 0.1 * avg_pool2d(pad(x_t, (1, 1, 1, 1)), 3, 1) + 0.2 * (2 * cond.up - 1)


def test_only_what_is_near_the_borders_of_tiles_changes():
    kernel, settings = LRKernel(*KERNEL, (176, 32), (44, 8)), Settings(steps=1)
    y = 0.4 + 0.2 * torch.rand(1, 3, 8, 44, dtype=torch.float64, generator=generator(0))
    cond, tiled = Cond(lr=y[:, None], up=kernel.pinv(y)), Blur()
    whole = ddnm(Blur(), cond, kernel, generator(1), settings)
    image = ddnm(Tiled(tiled, 96, 16, 4), cond, kernel, generator(1), settings)
    assert tiled.sides == [(32, 96)] * 2  # 0-96 and 80-176
    assert (kernel.down(image) - y).abs().max() < 1e-6
    far = [*range(40), *range(136, 176)]
    assert torch.allclose(image[..., far], whole[..., far], rtol=0, atol=1e-8)
    assert (image - whole).abs().amax() > 1e-6  # there is a border; the weights of what lies at it are small


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """An SR3 network of one frame with a random last layer."""
    net = TinyNet(TinyConfig(1, SCALE, widths=(8, 16), groups=4))
    torch.nn.init.normal_(net.unet.conv_out.weight, std=0.05, generator=generator(0, "net"))
    path = tmp_path_factory.mktemp("prior") / "sr3.safetensors"
    save_prior(path, net, ProcessSpec(steps=40), {})
    return str(path)


@pytest.mark.parametrize("name", ["small", "ddnm"])
@pytest.mark.parametrize("tile", [1, 9, 12])
def test_prior_tile_is_what_the_network_sees(model, name, tile):
    """Odd sides, and tiles that LR px do not divide."""
    lr = 0.3 + 0.4 * torch.rand(1, 3, 11, 17, generator=generator(0))
    made, sides = {}, set()
    for side in (0, tile):
        net = load_sampler(
            name, PriorParams(model=model, prior_steps=3, prior_tile=side), Loading(torch.device("cpu"), SCALE), KERNEL
        )
        unet = net.maker.prior.net.unet  # type: ignore[attr-defined]
        if side:
            unet.register_forward_pre_hook(lambda _, inputs: sides.add(tuple(inputs[0].shape[-2:])))
        made[side] = torch.stack(list(net.upsample(lr)))
    kernel = LRKernel(*KERNEL, (34, 22), (17, 11))
    assert (kernel.down(made[tile]) - lr).abs().max() < 1e-6
    assert not torch.equal(made[tile], made[0])
    lr_side = max(tile // SCALE, 1)
    assert sides == {(lr_side + lr_side % 2,) * 2}  # the network itself extends odd sides


def test_a_tile_that_holds_the_frame_changes_nothing(model):
    lr = 0.3 + 0.4 * torch.rand(1, 3, 11, 17, generator=generator(0))
    whole, tiled = (
        load_sampler("ddnm", PriorParams(model=model, prior_steps=2, prior_tile=side), Loading(lr.device, 2), KERNEL)
        for side in (0, 34)
    )
    assert torch.equal(*(next(iter(net.upsample(lr))) for net in (whole, tiled)))


@pytest.mark.parametrize(("tile", "overlap", "step"), [(10, 4, 4), (12, 3, 4)])
def test_tiles_between_lr_pixels_are_refused(tile, overlap, step):
    with pytest.raises(UserError, match="multiples of 4 are expected"):
        Tiled(Blur(), tile, overlap, step)
