"""Folders of rendered views in the layout of the original 3DGS code: reading them, measuring them, writing the results.

FOLDER/{test,train}/ours_N/{renders,gt}/NAME.png -> FOLDER/results.json, per_view.json (the original's keys and nothing
else) and metrics.json (every variant, frames, protocols).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from evaluation.extra_metrics import ExtraMetrics
from evaluation.lpips import Lpips
from evaluation.metrics import mean, measure
from evaluation.protocols import Protocol, from_json, view_set_hash
from scene.image_files import read_image
from scene.lr_kernel import BORDERS, KERNELS, LRKernel
from utils.atomic import read_json, write_json
from utils.errors import UserError
from utils.log import Progress, warn
from utils.record import read_record

SCHEMA = 1
ORIGINAL_KEYS = ("SSIM", "PSNR", "LPIPS")
SPLITS = ("test", "train")


@dataclass
class Rendered:
    """The views of one method (ours_N) of one split: files, the views' names, and what is measured of them.

    Parameters
    ----------
    folder : where render.py wrote to. split : "test" or "train". method : "ours_30000".
    files : PNG names, sorted, equal in renders/ and gt/.
    notes : what render.py recorded of this method; {} for folders that other programs wrote.
    views : {file: {metric: value}}, filled by `measure_all`.
    size : (width, height) of the images, (0, 0) = several sizes.
    truth : running hash of the truths' pixels.
    definitions : of extra metrics, fields of the protocol by name.
    """

    folder: Path
    split: str
    method: str
    files: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    views: dict[str, dict[str, float]] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    truth: Any = field(default_factory=hashlib.sha256)
    definitions: dict[str, Any] = field(default_factory=dict)

    def path(self, kind: str, file: str) -> Path:
        """Return the path of a view; kind = "renders" or "gt"."""
        return self.folder / self.split / self.method / kind / file

    def view_name(self, file: str) -> str:
        """Return the scene's name of a view, or the file's stem where render.py did not record it."""
        return str(self.notes.get("views", {}).get(file, Path(file).stem))

    def protocol(self) -> Protocol:
        """How these numbers were made, as far as it is known."""
        recorded = from_json(self.notes.get("protocol", {}), f"{self.folder}/run.json")
        names = [self.view_name(file) for file in self.files]
        size = "several" if self.size == (0, 0) else "{}x{}".format(*(self.size or (0, 0)))
        return replace(
            recorded,
            split=self.split,
            views=len(names),
            view_set=view_set_hash(names),
            resolution=size,
            truth=self.truth.hexdigest()[:12],
            **self.definitions,
        )

    def mean(self) -> dict[str, float]:
        """Return the mean of each metric over the views."""
        return mean(self.views[file] for file in self.files)


def find_rendered(folder: Path, splits: Sequence[str] = ("test",)) -> list[Rendered]:
    """List what was rendered into a folder.

    Raises
    ------
    UserError : nothing there, a method without gt/, or files that do not match.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that render.py wrote to")
    record = read_record(folder, "render") or {}
    recorded = record.get("notes", {}).get("methods", {})
    found = []
    for split in splits:
        parent = folder / split
        for method in sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []:
            files = _paired_files(parent / method)
            found.append(Rendered(folder, split, method, files, recorded.get(f"{split}/{method}", {})))
    if not found:
        raise UserError(f"{folder}: no {' or '.join(splits)}/ours_N/renders in it; run render.py -m {folder} first")
    return found


def _paired_files(method: Path) -> tuple[str, ...]:
    for kind in ("renders", "gt"):
        if not (method / kind).is_dir():
            raise UserError(f"{method / kind}: no such folder; render the views again with render.py")
    renders, truths = (
        {p.name for p in (method / kind).iterdir() if p.suffix == ".png" and not p.name.startswith(".")}
        for kind in ("renders", "gt")
    )
    if not renders:
        raise UserError(f"{method / 'renders'}: no PNG in it; render the views again with render.py")
    if renders != truths:
        odd = sorted(renders ^ truths)[0]
        there, lacking = ("renders", "gt") if odd in renders else ("gt", "renders")
        raise UserError(f"{method}: {odd} is in {there} but not in {lacking}; render the views again with render.py")
    return tuple(sorted(renders))


def measure_all(
    rendered: Sequence[Rendered],
    lpips: Lpips | None,
    device: torch.device | str = "cpu",
    extra: ExtraMetrics | None = None,
) -> None:
    """Fill `views`, `size` and `definitions`.

    Views go round before folders, so that a truth shared by folders is analysed once. One view at a time:
    reading the files takes longer than measuring on a GPU, and memory does not grow with views.

    Raises
    ------
    UserError : an unreadable image, or sizes of render and truth that differ.
    """
    total, done = sum(len(r.files) for r in rendered), 0
    for r in rendered:
        r.definitions = dict(extra.definitions) if extra else {}
    progress = Progress("metrics", total, "view")
    for i in range(max(len(r.files) for r in rendered)):
        for r in rendered:
            if i >= len(r.files):
                continue
            file = r.files[i]
            image, truth = read_image(r.path("renders", file)), read_image(r.path("gt", file))
            size = (truth.shape[1], truth.shape[0])
            kernel = lr_kernel(r.protocol(), *size)
            r.views[file] = measure(image, truth, lpips, str(r.path("renders", file)), device, kernel, extra)
            r.truth.update(truth.tobytes())
            r.size = size if r.size in (None, size) else (0, 0)
            done += 1
            progress.update(done, PSNR=f"{r.views[file]['PSNR']:.2f}")
    progress.close()
    for r in rendered:
        _tell_lacking(r)


def _tell_lacking(r: Rendered) -> None:
    """Say of how many views there is no NIQE_fit."""
    lacking = [file for file in r.files if "NIQE_fit" not in r.views[file]] if "niqe" in r.definitions else []
    if lacking:
        rest = "the mean is that of the others" if len(lacking) < len(r.files) else "so there is no mean"
        warn(
            f"{r.path('renders', lacking[0])}: no block of it has texture, so it has no NIQE_fit; "
            f"{len(lacking)} of {len(r.files)} views have none, {rest}"
        )


def lr_kernel(protocol: Protocol, width: int, height: int) -> LRKernel | None:
    """What reduces an image of this size to the LR views' size; None where the protocol does not say, or scale is 1."""
    kernel, _, border = protocol.lr_kernel.partition(", ")
    if protocol.scale <= 1 or kernel not in KERNELS or border not in ("", *BORDERS):
        return None
    size = round(width / protocol.scale), round(height / protocol.scale)
    return LRKernel(kernel, border or BORDERS[0], (width, height), size)


def write_results(
    folder: Path,
    rendered: Sequence[Rendered],
    of_frames: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> list[Path]:
    """Write results.json, per_view.json (test views, the original's keys) and metrics.json.

    Parameters
    ----------
    of_frames : "frames" and "information", what the modules of these names measured, each or None.
    weights : records of the weights that metrics used.

    Returns
    -------
    The paths written. Without test views the first two are not written.
    """
    test = [r for r in rendered if r.split == "test"]
    paths = []
    if test:
        means = {r.method: {k: v for k, v in r.mean().items() if k in ORIGINAL_KEYS} for r in test}
        per_view = {r.method: _original_views(r) for r in test}
        ordered = {method: {k: value[k] for k in ORIGINAL_KEYS if k in value} for method, value in means.items()}
        for name, content in (("results.json", ordered), ("per_view.json", per_view)):
            write_json(folder / name, content)
            paths.append(folder / name)
    everything = {
        "schema": SCHEMA,
        "methods": {f"{r.split}/{r.method}": _everything(r) for r in rendered},
        **of_frames,
        "weights": dict(weights),
    }
    write_json(folder / "metrics.json", everything)
    return [*paths, folder / "metrics.json"]


def _original_views(r: Rendered) -> dict[str, dict[str, float]]:
    keys = [key for key in ORIGINAL_KEYS if key in r.views[r.files[0]]]
    return {key: {file: r.views[file][key] for file in r.files} for key in keys}


def _everything(r: Rendered) -> dict[str, Any]:
    return {
        "protocol": r.protocol().to_json(),
        "mean": r.mean(),
        "views": {file: {"name": r.view_name(file), **r.views[file]} for file in r.files},
    }


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read FOLDER/metrics.json.

    Raises
    ------
    UserError : missing, malformed, or of another schema.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run metrics.py -m {folder} first")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("methods"), dict):
        raise UserError(f"{path}: not a metrics file of schema {SCHEMA}; measure again with metrics.py")
    return content
