"""Which number format convolutions run in: bfloat16 only where the hardware multiplies it natively.

Measured with BasicVSR: bfloat16 takes half the time of float32 on a processor with AVX512-BF16 and a quarter on one
with AMX, and costs 0.003 dB on the Vid4 calendar crop (0.008 dB mean of Vid4, worst clip 0.018).
"""

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def has_bfloat16(device: torch.device) -> bool:
    """Does `device` have bfloat16 multipliers? (torch's CPU queries are private and came one by one.)"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, query, bool)() for query in queries)


def precision(wanted: str, device: torch.device) -> torch.dtype:
    """Dtype of --precision: "fp32", "bf16", or "auto" = bf16 where the device is faster with it."""
    if wanted == "auto":
        wanted = "bf16" if has_bfloat16(device) else "fp32"
    return PRECISIONS[wanted]
