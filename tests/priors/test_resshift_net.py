"""ResShift's network: windowed attention against its definition, published size, and the loader of its files."""

import pytest
import torch

from priors.denoisers.swin_unet import SwinBlock, SwinUNet, shifted_mask
from tests.priors import tiny_models as tiny
from utils.errors import UserError

SMALL = tiny.SMALL_SWIN


def _noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_published_size():
    """118.59 million parameters (Yue et al. 2023, table 2), and the names of the official file."""
    with torch.device("meta"):
        network = SwinUNet()
    assert tiny.parameters(network) == 118_593_583
    shapes = tiny.shapes(network)
    assert shapes["input_blocks.1.1.blocks.1.attn_mask"] == (64, 64, 64)
    assert shapes["input_blocks.1.1.blocks.0.attn.relative_position_bias_table"] == (225, 6)
    assert "middle_block.1.blocks.1.attn_mask" not in shapes  # a window is the whole there
    assert tiny.manifest(shapes) == (564, "a2f8e0856f952a30")


@pytest.mark.parametrize("shifted", [False, True])
def test_windowed_attention_is_its_definition(shifted):
    """Each position attends to those of its window, and where windows were shifted around a border only to its side."""
    block = tiny.shaken(tiny.seeded(lambda: SwinBlock(32, 8, SMALL, shifted)))
    x, shift, side = _noise(1, 32, 8, 8), 2 if shifted else 0, 4
    with torch.no_grad():
        h = block.norm1(x)[0].permute(1, 2, 0)  # [8, 8, C]
        q, k, v = block.attn.qkv(h).reshape(8, 8, 3, 2, 16).unbind(2)
        table = block.attn.relative_position_bias_table
        out = torch.zeros(8, 8, 32)

        def place(at):  # window of a row or column after the shift, and which side of the border it was on
            moved = (at - shift) % 8
            return moved // side, at < shift

        for y in range(8):
            for col in range(8):
                near = [(b, a) for b in range(8) for a in range(8) if place(b) == place(y) and place(a) == place(col)]
                for head in range(2):
                    score = []
                    for b, a in near:
                        dy, dx = ((y - shift) % 8 - (b - shift) % 8), ((col - shift) % 8 - (a - shift) % 8)
                        bias = table[(dy + side - 1) * (2 * side - 1) + dx + side - 1, head]
                        score.append((q[y, col, head] @ k[b, a, head]) / 4 + bias)
                    weights = torch.stack(score).softmax(0)
                    values = torch.stack([v[b, a, head] for b, a in near])
                    out[y, col, 16 * head : 16 * head + 16] = weights @ values
        y1 = x + block.attn.proj(out).permute(2, 0, 1)[None]
        wanted = y1 + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.norm2(y1))))
        assert torch.allclose(block(x), wanted, atol=1e-5)


def test_mask_of_one_window_more_than_the_shift():
    mask = shifted_mask(8, 8, 4, 2)
    assert mask.shape == (4, 16, 16)
    assert not mask[0].any()  # the first window holds no border
    assert set(mask.unique().tolist()) == {-100.0, 0.0}
    assert torch.equal(mask, mask.transpose(1, 2))


def test_any_size_that_is_a_multiple():
    network = tiny.seeded(lambda: SwinUNet(SMALL))
    with torch.no_grad():
        assert network(_noise(2, 3, 8, 16), torch.tensor([1.0, 2.0]), _noise(2, 3, 8, 16)).shape == (2, 3, 8, 16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    pytest.importorskip("diffusers")
    return tiny.save_resshift(tmp_path_factory.mktemp("resshift"))


def _load(files, steps=4):
    from priors.denoisers.resshift import VQ_F4, load_resshift

    return load_resshift(files[0], files[1], steps, shape=SMALL, vq=VQ_F4 | tiny.SMALL_VQ)


def test_the_loaded_prior_is_the_saved_network(files):
    from priors.interfaces import Cond

    prior, x, lr = _load(files), _noise(2, 3, 8, 8), torch.rand(2, 1, 3, 8, 8)
    scale = prior.process.network_scale(3.0)
    with torch.no_grad():
        wanted = files[2](x * scale, torch.tensor([2.0, 2.0]), 2 * lr[:, 0] - 1)
        assert torch.equal(prior.x0(x, 3.0, Cond(lr=lr)), wanted)
        image = torch.rand(1, 3, 32, 32)
        assert torch.allclose(prior.space.encode(image), files[3].encode(2 * image - 1).latents, atol=1e-6)


def test_a_walk_from_the_lr_view(files):
    from priors.enlarge import enlarged
    from priors.interfaces import Cond
    from priors.sampler import sample

    prior, lr = _load(files), torch.rand((1, 3, 10, 13), generator=torch.Generator().manual_seed(1))
    cond = Cond(lr=lr[:, None], up=enlarged(lr, 52, 40))
    z = sample(prior, cond, prior.process.times(4), torch.Generator().manual_seed(0), eta=1.0)
    assert prior.space.decode(z).shape == (1, 3, 40, 52)


def test_steps_that_are_not_published_are_refused(files):
    with pytest.raises(UserError, match="15 and 4"):
        _load(files, steps=8)


def test_an_lr_view_of_another_size_is_refused(files):
    from priors.interfaces import Cond

    with pytest.raises(UserError, match="enlarges by 4"):
        _load(files).x0(_noise(1, 3, 8, 8), 1.0, Cond(lr=torch.rand(1, 1, 3, 4, 4)))
