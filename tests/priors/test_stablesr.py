"""StableSR: time-aware features, what they modulate, the wrapped decoder, and the loader of its files."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import UNet2DConditionModel

from priors import key_maps
from priors.denoisers.cfw import CFW
from priors.denoisers.sd2 import walk_from_lr
from priors.denoisers.stablesr import LATENT, load_stablesr
from priors.denoisers.tiles import Tiled
from priors.denoisers.time_aware import SFT, TimeAwareEncoder, modulate
from priors.interfaces import Cond
from tests.priors import tiny_models as tiny
from utils.errors import UserError

ENCODER = {"width": 32, "out": 32, "multipliers": (1, 2), "blocks": 1, "heads": 2, "attention": (0,)}


def _noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def networks():
    """A modulated UNet and its encoder, every parameter away from zero."""
    unet = tiny.unet()
    features = tiny.seeded(lambda: modulate(unet, 32))
    return tiny.shaken(unet), features, tiny.shaken(tiny.seeded(lambda: TimeAwareEncoder(**ENCODER)))


@pytest.fixture(scope="module")
def files(networks, tmp_path_factory):
    """base folder, checkpoint and decoder file in the official layout."""
    folder = tmp_path_factory.mktemp("stablesr")
    unet, _, encoder = networks
    base = tiny.save_sd2(folder / "base")
    names = key_maps.ldm_unet(unet.state_dict(), 1)
    state = {f"model.diffusion_model.{names[key]}": value for key, value in unet.state_dict().items()}
    state |= {f"structcond_stage_model.{key}": value for key, value in encoder.state_dict().items()}
    state |= {"betas": torch.zeros(3), "first_stage_model.encoder.conv_in.bias": torch.zeros(2)}
    cfw = tiny.shaken(tiny.seeded(lambda: CFW((8, 16, 16, 16), 4)))
    wrapped = {f"decoder.{key}": value for key, value in cfw.state_dict().items()}
    wrapped |= {"decoder.conv_in.bias": torch.zeros(1), "loss.logvar": torch.zeros(())}
    return base, tiny.saved(state, folder / "x.ckpt"), tiny.saved(wrapped, folder / "cfw.ckpt"), cfw


@pytest.fixture(scope="module")
def prior(files):
    return load_stablesr(files[1], files[2], base=files[0], encoder=ENCODER)


def _cond(size=64, count=1):
    return Cond(up=torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(5)))


def test_sft_is_its_equation():
    sft, x, y = tiny.shaken(SFT(32, 8)), _noise(2, 32, 4, 5), _noise(2, 8, 4, 5, seed=1)
    hidden = torch.relu(sft.mlp_shared[0](y))
    groups = x.reshape(2, 32, -1)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    normal = (
        sft.param_free_norm.weight[:, None, None] * normal.reshape(x.shape) + sft.param_free_norm.bias[:, None, None]
    )
    wanted = (1 + sft.mlp_gamma(hidden)) * normal + sft.mlp_beta(hidden)
    assert torch.allclose(sft(x, y), wanted, atol=1e-5)


def test_sft_that_begins_at_zero_leaves_the_network_as_it_is():
    """The paper's form; the files' form normalises first and cannot be the identity."""
    plain, changed = tiny.unet(), tiny.unet()
    features = modulate(changed, 32, normalise=False)
    x, text = _noise(2, 4, 8, 8), _noise(2, 5, 8, seed=1)
    with torch.no_grad():
        features.maps = tiny.seeded(lambda: TimeAwareEncoder(**ENCODER))(x, torch.tensor([7.0, 7.0]))
        assert torch.equal(changed(x, 7, text).sample, plain(x, 7, text).sample)
    before = tiny.unet()
    modulate(before, 32)
    assert all(
        hasattr(m.conv2, "spade") for m in before.modules() if hasattr(m, "conv2") and hasattr(m, "time_emb_proj")
    )


def test_features_have_the_sizes_of_the_network_and_know_the_time():
    """64 channels: where a group of the norms is one channel, an added time is taken out again."""
    encoder = tiny.shaken(tiny.seeded(lambda: TimeAwareEncoder(**ENCODER | {"width": 64})))
    x = _noise(1, 4, 8, 12)
    with torch.no_grad():
        early, late = (encoder(x, torch.tensor([t])) for t in (900.0, 100.0))
    assert {size: tuple(found.shape) for size, found in early.items()} == {
        (8, 12): (1, 32, 8, 12),
        (4, 6): (1, 32, 4, 6),
    }
    assert all(float((early[size] - late[size]).abs().max()) > 1e-3 for size in early)


def test_the_loaded_prior_is_the_saved_network(prior, networks):
    unet, features, encoder = networks
    x, cond, t = _noise(1, 4, 8, 8), _cond(), 321.0
    with torch.no_grad():
        latent = prior.space.encode(cond.up)
        features.maps = encoder(latent, torch.tensor([t]))
        eps = unet(x, t, prior.texts.prompt).sample
        a, _, s = prior.process.coefficients(t)
        assert torch.equal(prior.x0(x, t, cond), (x - s * eps) / a)


def test_the_lr_view_matters_and_is_encoded_once(prior):
    x, cond = _noise(2, 4, 8, 8), _cond(count=2)
    with torch.no_grad():
        ready = prior.prepared(cond)
        assert torch.equal(prior.x0(x, 500.0, ready), prior.x0(x, 500.0, cond))
        other = Cond(up=1 - cond.up)
        assert float((prior.x0(x, 500.0, other) - prior.x0(x, 500.0, cond)).abs().max()) > 1e-3
    assert prior.prepared(ready) is ready
    with pytest.raises(UserError, match=r"Cond\.up"):
        prior.x0(x, 500.0, Cond())


def test_odd_latents_and_tiles(prior):
    cond = prior.prepared(Cond(up=torch.rand(1, 3, 72, 104, generator=torch.Generator().manual_seed(6))))
    x = _noise(1, 4, 9, 13)
    with torch.no_grad():
        whole = prior.x0(x, 500.0, cond)
        assert torch.equal(Tiled(prior, 16, 8).x0(x, 500.0, cond), whole)
        assert Tiled(prior, 8, 4).x0(x, 500.0, cond).shape == x.shape
    assert cond.extra[LATENT].shape == x.shape


def test_a_walk_begins_with_the_lr_latent(prior):
    """One step from a time without noise would give it back; here only that the walk runs and is seeded."""
    times = [*prior.process.times(3)]
    assert times == [999.0, 500.0, 0.0, -1.0]  # "linspace", as the release respaces
    ends = [walk_from_lr(prior, _cond(), times, torch.Generator().manual_seed(1), tile=8, overlap=4)[0] for _ in "ab"]
    assert ends[0].shape == (1, 4, 8, 8)
    assert torch.equal(*ends)


def test_wrapping_of_weight_zero_is_the_plain_decoder(prior):
    z, up = _noise(1, 4, 8, 8), _cond().up
    vae = prior.space.vae
    with torch.no_grad():
        features = prior.cfw.encoded(vae, 2 * up - 1)
        plain = vae.decode(z).sample
        assert torch.equal(prior.cfw.decode(vae, z, features, 0.0), plain)
        assert not torch.allclose(prior.cfw.decode(vae, z, features, 0.5), plain, atol=1e-3)
        assert torch.equal(prior.image(z, up, 0.0), prior.space.decode(z))


def test_wrapping_sees_the_encoders_features(prior, files):
    """Features are those before each level halves them, and the image is that of one whole pass."""
    z, up, vae = _noise(1, 4, 8, 8), _cond().up, prior.space.vae
    with torch.no_grad():
        features = prior.cfw.encoded(vae, 2 * up - 1)
        assert [tuple(f.shape[1:]) for f in features] == [(8, 64, 64), (16, 32, 32), (16, 16, 16), (16, 8, 8)]
        units = z / prior.space.scale
        wanted = (files[3].decode(vae, units, features, 0.5) + 1) / 2
        assert torch.allclose(prior.image(z, up), wanted, atol=1e-5)


def test_fusion_is_its_equation():
    cfw = tiny.shaken(CFW((4, 8, 8), 4))
    encoded, decoded = _noise(1, 8, 4, 4), _noise(1, 8, 4, 4, seed=1)
    fusion = cfw.fusion_layer_1
    with torch.no_grad():
        wanted = fusion.encode_enc_3(fusion.encode_enc_2(fusion.encode_enc_1(torch.cat([encoded, decoded], 1))))
        assert torch.equal(fusion(encoded, decoded), wanted)
        block = fusion.encode_enc_2[0].rdb1
        x, seen = decoded, [decoded]
        for k in (1, 2, 3, 4):
            seen.append(torch.nn.functional.leaky_relu(getattr(block, f"conv{k}")(torch.cat(seen, 1)), 0.2))
        assert torch.allclose(block(x), x + 0.2 * block.conv5(torch.cat(seen, 1)), atol=1e-6)


def test_full_size_shapes():
    """149.91 million new parameters, as published: encoder and SFT 105.51, wrapping 44.39."""
    with torch.device("meta"):
        sizes = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
        unet = UNet2DConditionModel(**sizes)
        before = tiny.parameters(unet)
        modulate(unet)
        encoder, cfw = TimeAwareEncoder(), CFW()
    new = tiny.parameters(unet) - before + tiny.parameters(encoder) + tiny.parameters(cfw)
    assert new == 149_907_968
    assert tiny.manifest(tiny.shapes(encoder)) == (200, "408998a8cd4b54ac")
    assert tiny.manifest(tiny.shapes(cfw)) == (156, "6e9a8e6174144104")
    names = key_maps.ldm_unet(unet.state_dict())
    assert tiny.manifest({names[key]: shape for key, shape in tiny.shapes(unet).items()}) == (862, "96f9e7e8ea31f226")


@pytest.mark.parametrize("broken", ["missing", "foreign"])
def test_files_that_do_not_fit_are_refused(files, tmp_path, broken):
    state = torch.load(files[1], weights_only=True)["state_dict"]
    if broken == "missing":
        state.pop("structcond_stage_model.input_blocks.0.0.bias")
    else:
        state["generator.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match="missing" if broken == "missing" else "no checkpoint of StableSR"):
        load_stablesr(tiny.saved(state, tmp_path / "x.ckpt"), base=files[0], encoder=ENCODER)
