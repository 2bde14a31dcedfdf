"""Which number format networks compute in, and in which order they lay out memory.

Only convolutions and matrix products run in half precision. Flows, positions and sampling stay in float32 (bfloat16 has
8 bits: a position near pixel 500 would be off by 2), and so do the sums with the bilinear image, and LayerNorm.
RLFN and SPAN always run in float32: they have no bilinear image to add to, their own output is the picture; and so do
the networks of spandrel.

Measured on a processor, BasicVSR, published weights, Vid4 calendar crop: bfloat16 agrees with float32 to 52 dB and
costs 0.003 dB against the truth (0.008 dB mean of all Vid4, worst clip 0.018); float16 (5 frames) agrees to 68 dB and
costs 0.001 dB, and its largest value anywhere is 320 of the 65504 that float16 can hold. bfloat16 takes half the time
of float32 on a processor with AVX512-BF16 and a quarter on one with AMX. IconVSR, BasicVSR++ and PSRT were not
measured, their weights being in no package registry: their range is unknown, so `auto` is bfloat16, which does not
overflow. Nothing of this has run on a GPU yet.
"""

import torch
from torch import Tensor

from utils.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def has_bfloat16(device: torch.device) -> bool:
    """Does `device` have bfloat16 multipliers? (torch's CPU queries are private and came one by one.)"""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, query, bool)() for query in queries)


def precision(wanted: str, device: torch.device) -> torch.dtype:
    """Dtype of --precision: "fp32", "bf16", "fp16", or "auto" = bf16 where the device is faster with it.

    Raises
    ------
    UserError : fp16 on a processor, which would be slower than fp32.
    """
    if wanted == "auto":
        wanted = "bf16" if has_bfloat16(device) else "fp32"
    if wanted == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16: runs on a GPU only; on a processor use bf16 or fp32")
    return PRECISIONS[wanted]


def layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Memory order of images that `device` convolves fastest in `dtype`.

    Channels innermost on processors (a quarter faster with BasicVSR), and for the half-precision matrix units of GPUs,
    which want their inputs so; plain for float32 on a GPU, whose kernels are made for it.
    """
    plain = device.type == "cuda" and dtype == torch.float32
    return torch.contiguous_format if plain else torch.channels_last


def laid_out(x: Tensor) -> Tensor:
    """`x` [n, c, h, w] in the order that its device convolves fastest."""
    return x.contiguous(memory_format=layout(x.device, x.dtype))
