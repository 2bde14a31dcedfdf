"""CLIP RN50 (Radford et al. 2021), which transformers lacks: image and text towers as plain functions of tensors.

Names of tensors are those of the release, as open_clip's safetensors files keep them (`visual.conv1.weight`,
`visual.layer1.0.conv1.weight`, `visual.attnpool.q_proj.weight`, `transformer.resblocks.0.ln_1.weight`, ...). The image
tower runs without its positional embedding, so at any size, as CLIP-IQA defines it (Wang et al., AAAI 2023).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, layer_norm, linear, scaled_dot_product_attention

from utils.errors import UserError

HEAD_WIDTH = 64  # of the attention, in both towers
State = Mapping[str, Tensor]


def check_state(state: State, where: str) -> None:
    """Raise UserError where this is no ResNet CLIP."""
    wanted = ("visual.layer4.0.conv1.weight", "visual.attnpool.c_proj.weight", "transformer.resblocks.0.ln_1.weight")
    lacking = [name for name in (*wanted, "token_embedding.weight", "text_projection") if name not in state]
    if lacking:
        raise UserError(f"{where}: holds no {lacking[0]}, so it is no CLIP with a ResNet; RN50 is expected")


def encode_image(state: State, x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n d"]:
    """Embeddings of normalised images (CLIP's mean and deviation), not scaled to length 1; 32 px a side or more."""
    x = _stem(state, x)
    for layer in range(1, 5):
        index = 0
        while f"visual.layer{layer}.{index}.conv1.weight" in state:
            x = _bottleneck(state, f"visual.layer{layer}.{index}", x, 2 if layer > 1 and index == 0 else 1)
            index += 1
    return _pooled(state, x)


def _bn(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return batch_norm(x, mean, var, weight, bias)


def _stem(state: State, x: Tensor) -> Tensor:
    for k, stride in ((1, 2), (2, 1), (3, 1)):
        x = _bn(state, f"visual.bn{k}", conv2d(x, state[f"visual.conv{k}.weight"], None, stride, 1)).relu()
    return avg_pool2d(x, 2)


def _bottleneck(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    """A residual block; it shrinks by averaging, never by stride."""
    y = _bn(state, f"{name}.bn1", conv2d(x, state[f"{name}.conv1.weight"])).relu()
    y = _bn(state, f"{name}.bn2", conv2d(y, state[f"{name}.conv2.weight"], None, 1, 1)).relu()
    y = avg_pool2d(y, stride) if stride > 1 else y
    y = _bn(state, f"{name}.bn3", conv2d(y, state[f"{name}.conv3.weight"]))
    if f"{name}.downsample.0.weight" in state:
        x = avg_pool2d(x, stride) if stride > 1 else x
        x = _bn(state, f"{name}.downsample.1", conv2d(x, state[f"{name}.downsample.0.weight"]))
    return (y + x).relu()


def _pooled(state: State, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """What the mean of all positions attends to among itself and them, without positional embedding."""
    tokens = x.flatten(2).transpose(1, 2)  # [n, h w, c]
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
    q, k, v = (
        _heads(linear(t, state[f"visual.attnpool.{p}.weight"], state[f"visual.attnpool.{p}.bias"]))
        for p, t in (("q_proj", tokens[:, :1]), ("k_proj", tokens), ("v_proj", tokens))
    )
    found = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0]
    return linear(found, state["visual.attnpool.c_proj.weight"], state["visual.attnpool.c_proj.bias"])


def _heads(x: Float[Tensor, "n t c"]) -> Float[Tensor, "n heads t width"]:
    return x.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2)


def encode_text(state: State, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    """Embeddings of token lists, each ended by the token of the largest number, then anything."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][: tokens.shape[1]]
    index = 0
    while f"transformer.resblocks.{index}.ln_1.weight" in state:
        x = _text_block(state, f"transformer.resblocks.{index}", x)
        index += 1
    x = _ln(state, "ln_final", x)
    return x[torch.arange(len(x), device=x.device), tokens.argmax(1)] @ state["text_projection"]


def _ln(state: State, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _text_block(state: State, name: str, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
    y = linear(_ln(state, f"{name}.ln_1", x), state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"])
    q, k, v = map(_heads, y.chunk(3, dim=2))
    y = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + linear(y, state[f"{name}.attn.out_proj.weight"], state[f"{name}.attn.out_proj.bias"])
    y = linear(_ln(state, f"{name}.ln_2", x), state[f"{name}.mlp.c_fc.weight"], state[f"{name}.mlp.c_fc.bias"])
    y = y * torch.sigmoid(1.702 * y)  # the release's approximation of GELU
    return x + linear(y, state[f"{name}.mlp.c_proj.weight"], state[f"{name}.mlp.c_proj.bias"])
