"""What is missing of a full data set, said before a long run: python -m scene.check DATA_ROOT [SCENE ...]

Looks for DATA_ROOT/{nerf_synthetic,mipnerf360}/SCENE, or scenes directly in DATA_ROOT, or DATA_ROOT as one scene. If
one of DATA_ROOT's scenes bears a name of a data set's, all of that set are expected. Reads headers, never pixels.
Exit code 2 when anything is missing.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from arguments.flags import Parser, underscored
from scene import load_scene, scene_roots
from scene.blender import TEST_FILE, TRAIN_FILE
from scene.colmap import MODEL_FOLDERS, model_folder
from scene.image_files import read_header
from scene.json_fields import as_object, list_field, text_field
from scene.lr_kernel import FILE_NAME as LR_KERNEL_FILE
from scene.paths import IMAGE_SUFFIXES
from scene.transforms import FILE_NAME as TRANSFORMS_FILE
from utils import errors, log
from utils.atomic import read_json
from utils.errors import UserError

NERF_SYNTHETIC = ("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship")
NERF_SYNTHETIC_VIEWS = {TRAIN_FILE: 100, TEST_FILE: 200}
# {scene: (photographs, width, height)}. Numbers, and sizes of images_2 and images_4: the tables of the benchmarks of
# splatstream (bench/README.md) and DirectXSplat (benches/README.md); full sizes as other public projects print them,
# that of treehill is the one that fits a quarter of 1267x832.
MIPNERF360_PHOTOGRAPHS = {
    "bicycle": (194, 4946, 3286),
    "bonsai": (292, 3118, 2078),
    "counter": (240, 3115, 2076),
    "flowers": (173, 5025, 3312),
    "garden": (185, 5187, 3361),
    "kitchen": (279, 3115, 2078),
    "room": (311, 3114, 2075),
    "stump": (125, 4978, 3300),
    "treehill": (141, 5068, 3326),
}
MIPNERF360 = tuple(MIPNERF360_PHOTOGRAPHS)
SETS = {"nerf_synthetic": NERF_SYNTHETIC, "mipnerf360": MIPNERF360}
SMALLER_FOLDERS = {"images_2": 2, "images_4": 4, "images_8": 8}
_MODEL_FILES = ("cameras", "images", "points3D")


@dataclass
class Finding:
    """What was found of one scene: facts, and problems that a run would stumble over."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_scene(folder: Path, data_set: str = "", hr_root: Path | None = None) -> Finding:
    """Check one scene folder.

    Parameters
    ----------
    folder : the scene.
    data_set : "nerf_synthetic" or "mipnerf360" where the layout says so: then the official counts are expected too, and
        of photographs the official size, unless they are LR views (lr_kernel.json).
    hr_root : as for `load_scene`.
    """
    finding = Finding()
    if not folder.is_dir():
        finding.problems.append("the folder is not there")
    elif data_set == "nerf_synthetic" or any((folder / name).is_file() for name in (TRAIN_FILE, TEST_FILE)):
        _check_blender(folder, finding, data_set == "nerf_synthetic", hr_root)
    elif data_set == "mipnerf360" or model_folder(folder) or not (folder / TRANSFORMS_FILE).is_file():
        photographs = data_set == "mipnerf360" and not (folder / LR_KERNEL_FILE).is_file()
        _check_colmap(folder, finding, MIPNERF360_PHOTOGRAPHS.get(folder.name) if photographs else None)
    if not finding.problems:
        try:
            scene = load_scene(folder, resolution=1, hr_root=hr_root)
            finding.facts.append(f"{len(scene.train)} train, {len(scene.test)} test views")
        except UserError as error:
            finding.problems.append(str(error))
    return finding


def _check_blender(folder: Path, finding: Finding, official: bool, hr_root: Path | None) -> None:
    roots, _ = scene_roots(folder, hr_root)
    for name in (TRAIN_FILE, TEST_FILE):
        if not (folder / name).is_file():
            finding.problems.append(f"{name} is missing")
            continue
        try:
            document = as_object(read_json(folder / name, constants=True), str(folder / name))
            frames = [as_object(frame, name) for frame in list_field(document, "frames", name)]
            images = [roots.find(text_field(frame, "file_path", name), name) for frame in frames]
        except UserError as error:
            finding.problems.append(str(error))
            continue
        if official and len(frames) != NERF_SYNTHETIC_VIEWS[name]:
            finding.problems.append(f"{name} lists {len(frames)} views, the data set has {NERF_SYNTHETIC_VIEWS[name]}")
        _report_missing(finding, name, [view for view, path in images if path is None], len(images))
        _report_sizes(finding, name, [path for _, path in images if path is not None])


def _check_colmap(folder: Path, finding: Finding, official: tuple[int, int, int] | None) -> None:
    model = model_folder(folder)
    if model is None:
        finding.problems.append(f"{MODEL_FOLDERS[0]}/images.bin (or .txt) is missing")
    else:
        suffix = "bin" if (model / "images.bin").is_file() else "txt"
        absent = [f"{name}.{suffix}" for name in _MODEL_FILES if not (model / f"{name}.{suffix}").is_file()]
        finding.problems += [f"{model.relative_to(folder)}/{name} is missing" for name in absent]
    full = _images_in(folder / "images")
    if not full:
        finding.problems.append("images/ is missing or holds no PNG or JPEG")
    _report_sizes(finding, "images", full)
    if full and official:
        _report_official(finding, full, *official)
    for name, factor in SMALLER_FOLDERS.items():
        if (folder / name).is_dir():
            smaller = {path.stem for path in _images_in(folder / name)}
            _report_missing(finding, name, sorted({path.stem for path in full} - smaller), len(full))
            _report_factor(finding, folder / name, full, factor)


def _report_official(finding: Finding, full: list[Path], number: int, width: int, height: int) -> None:
    """As many photographs as the data set has, of its size; a file that cannot be read was reported already."""
    if len(full) != number:
        finding.problems.append(f"images/ holds {len(full)} photographs, the data set has {number}")
    try:
        header = read_header(full[0])
    except UserError:
        return
    if (header.width, header.height) != (width, height):
        found = f"{header.width}x{header.height}"
        finding.problems.append(f"images/ holds photographs of {found} px, the data set's have {width}x{height}")


def _report_factor(finding: Finding, folder: Path, full: list[Path], factor: int) -> None:
    """The first image of a reduced folder must be 1/factor of the full one, to the rounding of either side."""
    paths = {path.stem: path for path in _images_in(folder)}
    first = next((path for path in full if path.stem in paths), None)
    if first is None:
        return
    large, small = read_header(first), read_header(paths[first.stem])
    if abs(small.width - large.width / factor) > 1 or abs(small.height - large.height / factor) > 1:
        finding.problems.append(
            f"{folder.name}: {first.stem} is {small.width}x{small.height} px, not 1/{factor} of "
            f"{large.width}x{large.height}"
        )


def _report_missing(finding: Finding, what: str, names: list[str], listed: int) -> None:
    if names:
        finding.problems.append(f"{what}: {len(names)} of {listed} images are missing, the first is {names[0]}")


def _report_sizes(finding: Finding, what: str, paths: Iterable[Path]) -> None:
    sizes: Counter[str] = Counter()
    for path in paths:
        try:
            header = read_header(path)
            sizes[f"{header.width}x{header.height} {'RGBA' if header.channels == 4 else 'RGB'}"] += 1
        except UserError as error:
            finding.problems.append(str(error))
    if len(sizes) > 1:
        finding.problems.append(f"{what}: images of mixed sizes: " + ", ".join(f"{n} of {s}" for s, n in sizes.items()))
    elif sizes:
        finding.facts.append(f"{what} {next(iter(sizes))}")


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in IMAGE_SUFFIXES and path.is_file())


def scenes_under(root: Path, wanted: list[str]) -> list[tuple[str, Path, str]]:
    """(label, folder, data set) of every scene to check; `wanted` names a few, else all that belong or are there.

    Raises
    ------
    UserError : nothing that looks like a scene.
    """
    found: list[tuple[str, Path, str]] = []
    for data_set in SETS:
        if (root / data_set).is_dir():
            there = sorted(path.name for path in (root / data_set).iterdir() if path.is_dir())
            found += [(f"{data_set}/{name}", root / data_set / name, data_set) for name in _expected(data_set, there)]
    if not found and _looks_like_scene(root):
        found = [(root.resolve().name, root, "")]
    if not found and root.is_dir():
        there = [path.name for path in sorted(root.iterdir()) if _looks_like_scene(path)]
        sets = [data_set for data_set, official in SETS.items() if set(official) & set(there)]
        expected = [(name, data_set) for data_set in sets for name in _expected(data_set, [])]
        others = [(name, "") for name in there if name not in dict(expected)]
        found = [(name, root / name, data_set) for name, data_set in [*expected, *others]]
    chosen = [entry for entry in found if not wanted or entry[1].name in wanted]
    if not chosen:
        looked = " or ".join(f"{name}/" for name in SETS)
        raise UserError(f"{root}: no scenes found; looked for {looked}, and for scene folders in it")
    return chosen


def _expected(data_set: str, there: list[str]) -> list[str]:
    """The scenes of a data set, then what else is there."""
    return list(dict.fromkeys([*SETS[data_set], *there]))


def _looks_like_scene(folder: Path) -> bool:
    signs = (TRAIN_FILE, TEST_FILE, TRANSFORMS_FILE, "images", "sparse")
    return folder.is_dir() and any((folder / sign).exists() for sign in signs)


def main() -> None:
    description = "Say what is missing of a data set."
    parser = Parser(prog="python -m scene.check", description=description, allow_abbrev=False)
    parser.add_argument("data_root", type=Path, help="folder that holds nerf_synthetic/ and mipnerf360/, or scenes")
    parser.add_argument("scenes", nargs="*", default=[], help="check only these scenes")
    parser.add_argument("--hr_root", type=Path, help="folder of the HR images that LR scenes refer to")
    args = parser.parse_args(underscored(sys.argv[1:]))
    if not args.data_root.is_dir():
        raise UserError(f"{args.data_root}: no such folder")
    incomplete = 0
    entries = scenes_under(args.data_root, args.scenes)
    for label, folder, data_set in entries:
        finding = check_scene(folder, data_set, args.hr_root)
        incomplete += bool(finding.problems)
        log.say(f"{label}: {'INCOMPLETE' if finding.problems else 'complete: ' + '; '.join(finding.facts)}")
        for problem in finding.problems:
            log.say(f"    {problem}")
    if incomplete:
        raise UserError(f"{incomplete} of {len(entries)} scenes are incomplete or missing, see above")


if __name__ == "__main__":
    errors.run(main)
