"""Files of the public SR3 code: the names and sizes of its network, its function written out, and what is refused."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as f

pytest.importorskip("diffusers")

from arguments.priors import PriorParams
from priors.ddnm import Settings, ddnm
from priors.denoisers.sr3_unet import BUFFERS, RELEASE, SR3UNet, load_sr3
from priors.denoisers.tiny import TinyConfig
from priors.interfaces import Cond
from priors.processes import VP
from priors.samplers import Loading, load_sampler
from scene.lr_kernel import LRKernel
from utils.errors import UserError
from utils.rng import generator

SMALL = TinyConfig(1, 2, "full", "eps", widths=(8, 16), blocks=2, attention=(False, True), groups=4, dropout=0.2)
BETAS = torch.linspace(1e-4, 0.05, 20, dtype=torch.float64)


def network(config: TinyConfig = SMALL) -> SR3UNet:
    """With random weights of every tensor."""
    unet, draws = SR3UNet(config), generator(0, "sr3")
    for name, value in unet.state_dict().items():
        value.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=draws)
    return unet.eval()


def file_of(unet: SR3UNet, path, **more) -> str:
    """Written as the public code does: `more` stands beside the network. Returns its SHA-256."""
    state = {f"denoise_fn.{name}": value for name, value in unet.state_dict().items()}
    torch.save({**state, **dict.fromkeys(BUFFERS, BETAS), **more}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("frames", "count"), [(1, 97_807_491), (3, 97_810_947)])
def test_the_release_has_the_public_codes_names_and_sizes(frames, count):
    with torch.device("meta"):
        state = SR3UNet(replace(RELEASE, frames=frames)).state_dict()
    assert sum(value.numel() for value in state.values()) == count
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert {name.split(".")[1] for name in shapes if name.startswith("downs.")} == {str(i) for i in range(15)}
    assert {name.split(".")[1] for name in shapes if name.startswith("ups.")} == {str(i) for i in range(19)}
    attending = {".".join(name.split(".")[:2]) for name in shapes if ".attn." in name}
    assert attending == {"downs.10", "downs.11", "mid.0", "ups.4", "ups.5", "ups.6"}
    expected = {
        "downs.0.weight": (64, 3 * frames + 3, 3, 3),
        "noise_level_mlp.1.weight": (256, 64),
        "noise_level_mlp.3.weight": (64, 256),
        "downs.1.res_block.noise_func.noise_func.0.weight": (64, 64),
        "downs.3.conv.weight": (64, 64, 3, 3),
        "downs.4.res_block.res_conv.weight": (128, 64, 1, 1),
        "downs.10.attn.qkv.weight": (1536, 512, 1, 1),
        "mid.1.res_block.block2.block.3.weight": (512, 512, 3, 3),
        "ups.0.res_block.block1.block.0.weight": (1024,),
        "ups.3.conv.bias": (512,),
        "final_conv.block.0.weight": (64,),
        "final_conv.block.3.weight": (3, 64, 3, 3),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert "downs.10.attn.qkv.bias" not in shapes


def by_definition(w: dict[str, torch.Tensor], x: torch.Tensor, level: torch.Tensor, groups: int) -> torch.Tensor:
    """The network from its tensors' names alone, one pixel of attention at a time."""

    def swish(v):
        return v * torch.sigmoid(v)

    def block(name, v):
        v = swish(f.group_norm(v, groups, w[f"{name}.block.0.weight"], w[f"{name}.block.0.bias"]))
        return f.conv2d(v, w[f"{name}.block.3.weight"], w[f"{name}.block.3.bias"], padding=1)

    def attended(name, v):
        b, c, rows, cols = v.shape
        normed = f.group_norm(v, groups, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])
        q, k, z = torch.einsum("oc,bcyx->boyx", w[f"{name}.qkv.weight"][..., 0, 0], normed).split(c, 1)
        seen = torch.zeros_like(v)
        for n in range(b):
            for i in range(rows):
                for j in range(cols):
                    alike = torch.softmax((q[n, :, i, j] @ k[n].flatten(1)) / math.sqrt(c), 0)
                    seen[n, :, i, j] = z[n].flatten(1) @ alike
        return v + f.conv2d(seen, w[f"{name}.out.weight"], w[f"{name}.out.bias"])

    def stage(name, v):
        h, at = block(f"{name}.res_block.block1", v), f"{name}.res_block.noise_func.noise_func.0"
        h = block(f"{name}.res_block.block2", h + (told @ w[f"{at}.weight"].T + w[f"{at}.bias"])[:, :, None, None])
        bend = f"{name}.res_block.res_conv"
        v = h + (f.conv2d(v, w[f"{bend}.weight"], w[f"{bend}.bias"]) if f"{bend}.weight" in w else v)
        return attended(f"{name}.attn", v) if f"{name}.attn.qkv.weight" in w else v

    inner = len(w["downs.0.bias"])
    waves = [level / 1e4 ** (i / (inner // 2)) for i in range(inner // 2)]
    told = torch.stack([*map(torch.sin, waves), *map(torch.cos, waves)], 1)
    told = swish(told @ w["noise_level_mlp.1.weight"].T + w["noise_level_mlp.1.bias"])
    told = told @ w["noise_level_mlp.3.weight"].T + w["noise_level_mlp.3.bias"]
    x, way = f.conv2d(x, w["downs.0.weight"], w["downs.0.bias"], padding=1), []
    way.append(x)
    for i in range(1, 1 + max(int(name.split(".")[1]) for name in w if name.startswith("downs."))):
        conv = f"downs.{i}.conv"
        halved = f"{conv}.weight" in w
        x = f.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], 2, 1) if halved else stage(f"downs.{i}", x)
        way.append(x)
    x = stage("mid.1", stage("mid.0", x))
    for i in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("ups."))):
        if f"ups.{i}.conv.weight" in w:
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = f.conv2d(x, w[f"ups.{i}.conv.weight"], w[f"ups.{i}.conv.bias"], padding=1)
        else:
            x = stage(f"ups.{i}", torch.cat([x, way.pop()], 1))
    return block("final_conv", x)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, frames=3, widths=(8, 8, 16), attention=(True, False, False))])
def test_it_computes_what_its_names_say(config):
    unet = network(config).double()
    x = torch.randn(2, config.in_channels, 8, 12, dtype=torch.float64, generator=generator(1))
    level = torch.tensor([0.9, 0.2], dtype=torch.float64)
    with torch.no_grad():
        found = unet(x, 1000 * level).sample
    torch.testing.assert_close(found, by_definition(unet.state_dict(), x, level, 4), rtol=1e-9, atol=1e-9)


def test_a_file_becomes_a_prior(tmp_path):
    path, unet = tmp_path / "I640000_E37_gen.pth", network()
    sha = file_of(unet, path)
    with pytest.raises(UserError, match=f"--trust_weights {sha}"):
        load_sr3(path, shape=SMALL)
    prior = load_sr3(path, sha, shape=SMALL)
    assert prior.process == VP(tuple(BETAS.tolist()))
    assert prior.net.config == SMALL
    lr, x = torch.rand(1, 1, 3, 3, 5, generator=generator(2)), torch.randn(1, 3, 6, 10, generator=generator(3))
    up = torch.rand(1, 3, 6, 10, generator=generator(4))
    c = prior.process.coefficients(7)
    with torch.no_grad():
        eps = unet(torch.cat([2 * up - 1, x], 1), torch.tensor([1000 * c.a])).sample
        found = prior.x0(x, 7, Cond(lr=lr, up=up))
    torch.testing.assert_close(found, (x - c.s * eps) / c.a)
    assert not any(value.requires_grad for value in prior.net.parameters())


def test_without_betas_the_process_is_the_releases(tmp_path):
    unet = network()
    torch.save({f"denoise_fn.{name}": value for name, value in unet.state_dict().items()}, tmp_path / "x.pth")
    sha = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
    assert load_sr3(tmp_path / "x.pth", sha, shape=SMALL).process == VP.linear(2000, 1e-6, 1e-2)


def test_other_files_are_refused(tmp_path):
    path, unet = tmp_path / "x.pth", network()
    with pytest.raises(UserError, match="no such file"):
        load_sr3(path)
    for channels in (3, 9, 7):
        other = {"denoise_fn.downs.0.weight": torch.zeros(8, channels, 3, 3)}
        with pytest.raises(UserError, match=f"sees {channels} channels"):
            load_sr3(path, file_of(unet, path, **other), shape=SMALL)
    with pytest.raises(UserError, match=r"1 left over, e\.g\. denoise_fn\.more"):
        load_sr3(path, file_of(unet, path, **{"denoise_fn.more": torch.zeros(1)}), shape=SMALL)
    with pytest.raises(UserError, match="missing"):
        load_sr3(path, file_of(unet, path), shape=RELEASE)
    with pytest.raises(UserError, match="missing"):
        load_sr3(path, file_of(SR3UNet(replace(SMALL, attention=(False, False))), path), shape=SMALL)


def test_the_flag_model_takes_such_a_file(tmp_path):
    """The release's own network is too large for a test: that one is looked for, and not found, says its error."""
    sha, device = file_of(network(), tmp_path / "x.pth"), torch.device("cpu")
    loading = Loading(device, 8, trust=(sha,))
    for name in ("small", "ddnm"):
        with pytest.raises(UserError, match=r"x\.pth: does not hold the network"):
            load_sampler(name, PriorParams(model=str(tmp_path / "x.pth")), loading, ("bicubic", "renormalise"))


def test_its_walk_says_what_the_lr_view_says(tmp_path):
    sha = file_of(network(), tmp_path / "x.pth")
    prior = load_sr3(tmp_path / "x.pth", sha, shape=SMALL)
    kernel = LRKernel("bicubic", "renormalise", (22, 14), (11, 7))
    lr = 0.3 + 0.4 * torch.rand(1, 1, 3, 7, 11, generator=generator(0))

    class Bounded:
        process, space = prior.process, prior.space

        def x0(self, x_t, t, cond):
            return 0.1 * prior.x0(x_t, t, cond).clamp(-1, 1)

    image = ddnm(Bounded(), Cond(lr=lr), kernel, generator(1), Settings(steps=3))
    assert (kernel.down(image) - lr[:, 0]).abs().max() < 1e-6
