"""Load a published model strictly, take one step, and print what lets two machines compare: hashes and the licence.

Nothing here says that a sample is right: only that the file fits the network name by name, and that the same seed gives
the same numbers. Whoever has the official code compares its sample of the same noise.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from priors import checkpoints
from priors.checkpoints import CHECKPOINTS, Checkpoint
from priors.denoisers.loading import model_folder
from priors.interfaces import Cond, ScorePrior
from priors.sampler import noised
from utils.compute import use_device
from utils.errors import UserError

SEED, SIDE = 0, 16  # of the sample: noise, and latents along a side
DIGITS = 4


@dataclass(frozen=True)
class Options:
    """Of a verification.

    Parameters
    ----------
    model : folder or hub id of a model; folder (or single file) of a system's files; "" = where they are looked for.
    base : folder or hub id of Stable Diffusion 2, "" = the table's. trust : SHA-256 that the user vouches for, of each
        file in the table's order. texts : file of embeddings. prompt, negative : "" = the system's own.
    dtype : of a published system's own networks.
    """

    model: str = ""
    base: str = ""
    trust: tuple[str, ...] = ()
    accept_licence: bool = False
    download: bool = False
    device: str = "cpu"
    texts: str = ""
    prompt: str = ""
    negative: str = ""
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Report:
    """What was found: SHA-256 of each file, of the sample, and its mean, deviation and first values, rounded."""

    name: str
    licence: str
    files: dict[str, str]
    sample: str
    numbers: tuple[float, ...]

    def lines(self) -> list[str]:
        """For a person and for `diff`."""
        rows = [f"model\t{self.name}", f"licence\t{self.licence}"]
        rows += [f"file\t{name}\t{digest}" for name, digest in self.files.items()]
        numbers = " ".join(f"{number:.{DIGITS}f}" for number in self.numbers)
        return [*rows, f"sample\t{self.sample}", f"mean, deviation, first values\t{numbers}"]


Loaded = tuple[ScorePrior, list[Path]]
Load = Callable[[Checkpoint, Options], Loaded]


def verify(name: str, options: Options = Options()) -> Report:
    """Load, step, report.

    Raises
    ------
    UserError : unknown, not there, not vouched for, its licence not accepted, or it does not fit.
    """
    found = checkpoints.checkpoint(name)
    found.accepted(options.accept_licence)
    use_device(torch.device(options.device))
    prior, files = LOADERS[found.family](found, options)
    sample = one_step(prior, options.device)
    numbers = (float(sample.mean()), float(sample.std()), *sample.flatten()[:4].tolist())
    digest = hashlib.sha256(sample.contiguous().numpy().tobytes()).hexdigest()
    hashes = {f"{path.parent.name}/{path.name}": checkpoints.sha256_of(path) for path in files}
    return Report(name, found.licence, hashes, digest, numbers)


def one_step(prior: ScorePrior, device: str = "cpu") -> Tensor:
    """The clean estimate of fixed noise at the middle of the walk, of a fixed LR view; float32 on the CPU."""
    generator = torch.Generator().manual_seed(SEED)
    factor = prior.space.factor
    lr = torch.rand((1, 3, SIDE, SIDE), generator=generator)
    up = torch.nn.functional.interpolate(lr, scale_factor=float(factor), mode="nearest")
    clean = torch.zeros(1, prior.space.channels, SIDE, SIDE)
    noise = torch.randn(clean.shape, generator=generator)
    tags = torch.randn((1, 4, 512), generator=generator)
    lr, up, clean, noise, tags = (part.to(device) for part in (lr, up, clean, noise, tags))
    t = prior.process.times(4)[1]
    cond = Cond(lr=lr[:, None], up=up, extra={"tags": tags})
    u = prior.space.encode(up) if prior.process.uses_up else None
    with torch.no_grad():
        return prior.x0(noised(prior.process, clean, t, noise, u), t, cond).float().cpu()


def _model(load: Callable[..., Any], texts: bool = True) -> Load:
    """Of a whole model of the hub."""

    def loaded(found: Checkpoint, options: Options) -> Loaded:
        more: dict[str, Any] = {"texts": options.texts or None} if texts else {}
        model = options.model or found.model
        prior = load(model, download=options.download, device=options.device, **more)
        return prior, _weights(model)

    return loaded


def _weights(model: str) -> list[Path]:
    """Files of weights of the parts of a model, in its folder or in the hub's cache."""
    root = model_folder(model)
    return sorted(path for kind in ("safetensors", "bin") for path in root.glob(f"*/*.{kind}"))


def _on_base(found: Checkpoint, options: Options) -> dict[str, Any]:
    base = options.base or found.base
    if not base:
        raise UserError(f"{found.name}: {found.notice}")
    given = {"texts": options.texts, "prompt": options.prompt, "negative": options.negative}
    told: dict[str, Any] = {name: value for name, value in given.items() if value}
    return {"base": base, "download": options.download, "device": options.device, "dtype": options.dtype} | told


def _files(found: Checkpoint, options: Options) -> list[Path]:
    more: dict[str, Any] = {"download": options.download, "accept_licence": options.accept_licence}
    return checkpoints.vouched(found, options.model, options.trust, **more)


def _ldm_sr(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.ldm_sr import load_ldm_sr

    return _model(load_ldm_sr, texts=False)(found, options)


def _sd_x4(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.sd_x4 import load_sd_x4

    return _model(load_sd_x4)(found, options)


def _sdxl(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.sdxl import load_sdxl

    return _model(load_sdxl)(found, options)


def _sd3(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.sd3 import load_sd3

    return _model(load_sd3)(found, options)


def _stablesr(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.stablesr import load_stablesr

    files = _files(found, options)
    return load_stablesr(*files, **_on_base(found, options)), files


def _diffbir(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.controlnet_sr import load_diffbir

    base = _on_base(found, options)
    files = _files(found, options)
    return load_diffbir(files[0], **base), files


def _seesr(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.seesr import load_seesr

    if not options.model:
        raise UserError(
            f"{found.name}: is published as a folder, {found.folder}, linked on {found.source}; give --model"
        )
    prior = load_seesr(options.model, **_on_base(found, options))
    return prior, sorted(Path(options.model).glob("*/diffusion_pytorch_model.*"))


def _resshift(found: Checkpoint, options: Options) -> Loaded:
    from priors.denoisers.resshift import load_resshift

    files, steps = _files(found, options), 15 if "_s15" in found.name else 4
    return load_resshift(files[0], files[1], steps, device=options.device, dtype=options.dtype), files


LOADERS: dict[str, Load] = {
    "ldm_sr": _ldm_sr,
    "sd_x4": _sd_x4,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "stablesr": _stablesr,
    "diffbir": _diffbir,
    "seesr": _seesr,
    "resshift": _resshift,
}


def listing() -> list[str]:
    """One line a published model: name, licence, where it is from, what is to be known."""
    rows = []
    for found in CHECKPOINTS.values():
        what = found.model or found.folder or ", ".join(file.name for file in found.files)
        use = (
            found.licence
            if found.commercial or "non-commercial" in found.licence
            else f"{found.licence} (non-commercial)"
        )
        notes = "; ".join(note for note in (found.size, found.base and f"on {found.base}", found.notice) if note)
        rows.append("\t".join((found.name, use, found.source, what, notes)))
    return rows
