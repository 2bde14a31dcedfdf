"""CLIP-IQA: its formula on a tiny random CLIP, its two definitions, RN50 against torch's modules, and metrics.py."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from arguments.evaluation import EXTRA_METRICS, MetricsParams
from arguments.loading import CommonParams
from evaluation import clip_resnet
from evaluation.no_reference import PROMPTS, Clip, ClipIqa, load_clip, probabilities
from evaluation.protocols import Protocol, first_difference, from_json
from evaluation.run_metrics import measure_models
from evaluation.tables import COLUMNS
from tests.evaluation.test_niqe import leaves
from tests.evaluation.test_results import write_foreign
from utils.errors import UserError

transformers = pytest.importorskip("transformers")
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402


def vocabulary():
    """CLIP's byte-level vocabulary without any merge: each byte alone, at a word's end or not, and two marks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(b) for b in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return {word: k for k, word in enumerate(words)}


TEXT = {
    "vocab_size": 514,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 24,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """(folder, model) of a tiny random CLIPModel."""
    folder = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    model = seeded(lambda: transformers.CLIPModel(config))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=vocabulary(), merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, model


def image(height=40, width=56, seed=0):
    levels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


# --- the formula ---


def test_the_formula_on_a_tiny_random_clip(transformer):
    """softmax over 100 x cosines, first entry, mean over pairs: from the model's own logits, whose scale is undone."""
    folder, model = transformer
    found = ClipIqa(load_clip(str(folder)))(image())
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    pixels = torch.from_numpy((image() * 255).permute(1, 2, 0).round().byte().numpy())
    prepared = CLIPImageProcessorPil.from_pretrained(folder)(images=[pixels.numpy()], return_tensors="pt")
    for name, pairs in PROMPTS.items():
        expected = []
        for pair in pairs:
            tokens = tokenizer(list(pair), padding=True, return_tensors="pt")
            with torch.no_grad():
                logits = model(pixel_values=prepared["pixel_values"], **tokens).logits_per_image[0]
            good, bad = (100 * logits / model.logit_scale.detach().exp()).double()
            expected.append(float(torch.exp(good) / (torch.exp(good) + torch.exp(bad))))
        assert found[name] == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_definitions_have_their_texts():
    assert PROMPTS["CLIPIQA_tm"] == (("Good photo.", "Bad photo."),)
    assert len(PROMPTS["CLIPIQA_pyiqa"]) == 5


def test_swapping_the_texts_gives_the_rest_to_one():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(4, 8, generator=generator), torch.randn(6, 8, generator=generator)
    swapped = texts[[1, 0, 3, 2, 5, 4]]
    scale = 3.0  # away from 0 and 1
    torch.testing.assert_close(probabilities(images, swapped, scale), 1 - probabilities(images, texts, scale))


def test_order_and_length_of_embeddings_have_no_influence():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(4, 8, generator=generator), torch.randn(6, 8, generator=generator)
    found = probabilities(images, texts)
    torch.testing.assert_close(probabilities(images[[2, 0, 3, 1]], texts)[[1, 3, 0, 2]], found)
    torch.testing.assert_close(probabilities(images, texts[[4, 5, 0, 1, 2, 3]])[:, [1, 2, 0]], found)
    torch.testing.assert_close(probabilities(3 * images, texts / 7), found)


def test_too_small_an_image_and_an_unknown_variant_are_refused(transformer):
    clip = load_clip(str(transformer[0]))
    with pytest.raises(UserError, match="32x32"):
        ClipIqa(clip)(image(31, 40))
    with pytest.raises(UserError, match="CLIPIQA_x"):
        ClipIqa(clip, ("CLIPIQA_x",))


# --- loading ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "--clip DIR is needed"),
        ("nobody/nothing", "no such folder, and not to be had as a repository"),
        ("/nowhere/at/all", "no such folder"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_name(source, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        load_clip(source)
    assert "RN50" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_clip(str(tmp_path))


# --- RN50 ---


class Bottleneck(nn.Module):
    """The block of the release, with torch's modules."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride > 1 or inputs != 4 * planes:
            self.downsample = nn.Sequential()
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", nn.Conv2d(inputs, 4 * planes, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.pool(self.bn2(self.conv2(y)).relu())
        return (self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))).relu()


class Visual(nn.Module):
    """The image tower with 4 channels instead of 64, two blocks in the first layer."""

    def __init__(self, width=4):
        super().__init__()
        sizes = (3, width // 2, width // 2, width)
        for k in (1, 2, 3):
            stride = 2 if k == 1 else 1
            setattr(self, f"conv{k}", nn.Conv2d(sizes[k - 1], sizes[k], 3, stride, 1, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(sizes[k]))
        self.layer1 = nn.Sequential(Bottleneck(width, width, 1), Bottleneck(4 * width, width, 1))
        for k in (2, 3, 4):
            setattr(self, f"layer{k}", nn.Sequential(Bottleneck(2**k * width, 2 ** (k - 1) * width, 2)))
        self.attnpool = nn.Module()
        for name, out in (("q_proj", 32), ("k_proj", 32), ("v_proj", 32), ("c_proj", 6)):
            self.attnpool.add_module(name, nn.Linear(32 * width, 32 * width if out == 32 else 6 * width))

    def forward(self, x):
        for k in (1, 2, 3):
            x = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(x)).relu()
        x = nn.functional.avg_pool2d(x, 2)
        for k in (1, 2, 3, 4):
            x = getattr(self, f"layer{k}")(x)
        tokens = x.flatten(2).permute(2, 0, 1)
        tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
        pool, width = self.attnpool, tokens.shape[2]
        attention = nn.MultiheadAttention(width, width // 64)
        parts = [pool.q_proj, pool.k_proj, pool.v_proj]
        attention.in_proj_weight = nn.Parameter(torch.cat([p.weight for p in parts]))
        attention.in_proj_bias = nn.Parameter(torch.cat([p.bias for p in parts]))
        attention.out_proj = nn.Linear(width, width)
        attention.out_proj.weight, attention.out_proj.bias = (
            nn.Parameter(torch.eye(width)),
            nn.Parameter(torch.zeros(width)),
        )
        return pool.c_proj(attention(tokens[:1], tokens, tokens, need_weights=False)[0][0])


def random_visual():
    visual = Visual()
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: every one does something
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 2.0)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, std=0.3)
    return visual


def text_state(model):
    """The text tower of a transformers model under the release's names."""
    text = model.text_model
    state = {
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "ln_final.weight": text.final_layer_norm.weight,
        "ln_final.bias": text.final_layer_norm.bias,
        "text_projection": model.text_projection.weight.T,
    }
    for k, layer in enumerate(text.encoder.layers):
        name, attention = f"transformer.resblocks.{k}", layer.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        for kind in ("weight", "bias"):
            state[f"{name}.attn.in_proj_{kind}"] = torch.cat([getattr(p, kind) for p in parts])
            state[f"{name}.attn.out_proj.{kind}"] = getattr(attention.out_proj, kind)
            state[f"{name}.ln_1.{kind}"] = getattr(layer.layer_norm1, kind)
            state[f"{name}.ln_2.{kind}"] = getattr(layer.layer_norm2, kind)
            state[f"{name}.mlp.c_fc.{kind}"] = getattr(layer.mlp.fc1, kind)
            state[f"{name}.mlp.c_proj.{kind}"] = getattr(layer.mlp.fc2, kind)
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


@pytest.fixture(scope="module")
def resnet(transformer):
    """(state, image tower, text tower) of a tiny random CLIP with a ResNet."""
    visual, model = seeded(random_visual), transformer[1]
    state = text_state(model) | {f"visual.{k}": v.detach().clone() for k, v in visual.state_dict().items()}
    return state, visual, model


@pytest.mark.parametrize("size", [(64, 64), (96, 70)])
def test_the_image_tower_is_that_of_torchs_modules_at_any_size(resnet, size):
    state, visual, _ = resnet
    x = torch.stack([image(*size, seed=k) for k in range(2)])
    with torch.no_grad():
        torch.testing.assert_close(clip_resnet.encode_image(state, x), visual(x), rtol=1e-4, atol=1e-5)


def test_the_text_tower_is_that_of_transformers(resnet):
    state, _, model = resnet
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary(), merges=[])
    tokens = tokenizer(["Good photo.", "Noise-free image"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(clip_resnet.encode_text(state, tokens["input_ids"]), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_open_clip_is_rn50(resnet, transformer, tmp_path):
    state, visual, _ = resnet
    save_file(state, tmp_path / "open_clip_model.safetensors")
    transformers.CLIPTokenizer(vocab=vocabulary(), merges=[]).save_pretrained(tmp_path)
    clip = load_clip(str(tmp_path))
    mean, std = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    with torch.no_grad():
        x = (image() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(clip.image(image()), visual(x[None]), rtol=1e-4, atol=1e-5)
    assert clip.name.startswith("RN50 without positional embedding, native size")
    assert "not the published RN50" in load_clip(str(transformer[0])).name


def test_another_network_in_such_a_file_is_refused(tmp_path):
    save_file({"visual.proj": torch.zeros(3)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="no CLIP with a ResNet"):
        load_clip(str(tmp_path))


# --- metrics.py ---


def measured(folder, **options):
    options = {"no_lpips": True, "no_report": True, "no_frames": True} | options
    measure_models(CommonParams(quiet=True, device="cpu"), MetricsParams((str(folder),), **options))
    return json.loads((folder / "metrics.json").read_text())


def write_views(folder, size=96):
    write_foreign(folder, size=size)
    for path in (folder / "test/ours_30000/renders").iterdir():
        Image.fromarray(leaves(int(path.stem), size)).save(path)
    return folder


def test_extra_metrics_are_measured_per_view_and_named_in_the_protocol(transformer, tmp_path):
    out = write_views(tmp_path / "out")
    for seed in range(12):
        (tmp_path / "pristine").mkdir(exist_ok=True)
        Image.fromarray(leaves(seed)).save(tmp_path / "pristine" / f"{seed}.png")
    flags = {"clip": str(transformer[0]), "niqe_fit": str(tmp_path / "pristine")}
    names = ("CLIPIQA_tm", "CLIPIQA_pyiqa", "NIQE_fit")
    plain = measured(out)["methods"]["test/ours_30000"]
    content = measured(out, extra_metrics=names, **flags)
    result = content["methods"]["test/ours_30000"]
    for view in result["views"].values():
        assert set(names) <= set(view)
    for name in names:
        assert result["mean"][name] == pytest.approx(np.mean([v[name] for v in result["views"].values()]))
    assert "not the published RN50" in result["protocol"]["clipiqa"]
    assert "12 images" in result["protocol"]["niqe"]
    assert set(content["weights"]) == {"clip"}
    assert result["protocol"] == plain["protocol"] | {k: result["protocol"][k] for k in ("clipiqa", "niqe")}
    first = json.loads((out / "per_view.json").read_text())["ours_30000"]
    assert set(first) == {"SSIM", "PSNR"}  # the original's keys and nothing else


def test_without_the_flag_nothing_is_new(tmp_path):
    result = measured(write_views(tmp_path / "out"))["methods"]["test/ours_30000"]
    assert set(result["mean"]) == {"PSNR", "SSIM"}
    assert not {"clipiqa", "dists", "niqe"} & set(result["protocol"])


def test_protocols_of_extra_metrics_are_compared_where_both_have_them():
    plain, one, other = Protocol(), Protocol(niqe="fitted to a"), Protocol(niqe="fitted to b")
    assert first_difference(plain, one) is None
    assert first_difference(one, other) == "niqe"
    assert from_json(one.to_json(), "x") == one
    assert {*EXTRA_METRICS, "clipiqa"} <= set(COLUMNS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_metrics": ("DISTS",)}, "--dists FILE is needed; `pip download"),
        ({"extra_metrics": ("NIQE_fit",)}, "--niqe_fit DIR, a folder of pristine images, is needed"),
        ({"extra_metrics": ("CLIPIQA_tm",)}, "--clip DIR is needed"),
        ({"clip": "x"}, "has a meaning with --extra_metrics CLIPIQA_tm or CLIPIQA_pyiqa only"),
    ],
)
def test_what_a_metric_needs_is_asked_for(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        measured(write_foreign(tmp_path / "out"), **options)


def test_a_score_asks_the_model_once_a_picture():
    calls = []

    def embed(x):
        calls.append(x.shape)
        return torch.ones(1, 4)

    clip = Clip(embed, lambda texts: torch.ones(len(texts), 4), "stub", {}, [])
    assert ClipIqa(clip)(image()) == {"CLIPIQA_tm": 0.5, "CLIPIQA_pyiqa": 0.5}
    assert len(calls) == 1
