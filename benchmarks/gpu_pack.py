"""Gather what scripts/gpu_check.sh needs on a machine without a network, beside the checkout, within 60 MiB.

    python -m benchmarks.gpu_pack FOLDER [--gsplat WHEEL]      reads SEQSPLAT_DATA and the weights that this machine has

`data/`: lego's views; `weights/`: BasicVSR and LPIPS's AlexNet; `site.tar.gz`: packages that such a machine may lack,
none of which has code for one Python version only, and gsplat, which compiles itself there. They are used only where
the machine has none of its own.
"""

import os
import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from utils import errors
from utils.command_line import Parser
from utils.errors import UserError
from utils.weights import resolve

LIMIT_BYTES = 60 << 20  # 64 MiB together with the checkout
DATA = ("nerf_synthetic_lego/lr_200", "nerf_synthetic_lego/hr_800", "colmap_fixture", "lpips_example")
WEIGHTS = ("basicvsr_vimeo_bi", "lpips_alex")
GLM_UNUSED = ("doc", "test", "util")
PACKAGES = ("jaxtyping", "wadler_lindig", "tqdm", "safetensors")


def copy_data(source: Path, to: Path) -> None:
    """Raises UserError where a folder is missing."""
    for name in DATA:
        if not (source / name).is_dir():
            raise UserError(f"{source / name}: not there; SEQSPLAT_DATA must name the development data")
        shutil.copytree(source / name, to / name, copy_function=shutil.copyfile)


def copy_weights(to: Path) -> None:
    """Raises UserError where weights are missing."""
    to.mkdir()
    for name in WEIGHTS:
        found = resolve(name)
        shutil.copyfile(found.path, to / found.path.name)


def copy_packages(to: Path) -> None:
    """All files of each package but compiled Python. Raises UserError where one is not installed."""
    for name in PACKAGES:
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise UserError(f"{name} is not installed: make setup dev") from None
        for file in package.files or ():
            if ".." in file.parts or file.suffix == ".pyc":
                continue  # commands in bin/, and what another Python cannot read
            place = to / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), place)


def copy_gsplat(wheel: Path, to: Path) -> None:
    """Its sources, without the manuals and tests of a library that they carry along."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not any(f"third_party/glm/{unused}/" in name for unused in GLM_UNUSED):
                archive.extract(name, to)


def bytes_of(folder: Path) -> int:
    """Of all files below, or of the file itself."""
    return sum(path.stat().st_size for path in [folder, *folder.rglob("*")] if path.is_file())


def pack(folder: Path, data: Path, gsplat: Path | None = None) -> dict[str, int]:
    """Fill `folder`, which must not be there yet; bytes of its parts.

    Raises
    ------
    UserError : something is missing, the folder is there, or it is more than 60 MiB.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; name a new folder")
    folder.mkdir(parents=True)
    copy_data(data, folder / "data")
    copy_weights(folder / "weights")
    site = folder / "site"
    copy_packages(site)
    if gsplat:
        copy_gsplat(gsplat, site)
    shutil.make_archive(str(site), "gztar", site)
    shutil.rmtree(site)
    found = {part.name: bytes_of(part) for part in sorted(folder.iterdir())}
    if sum(found.values()) > LIMIT_BYTES:
        raise UserError(f"{folder}: {sum(found.values())} bytes, more than {LIMIT_BYTES}")
    return found


def main() -> None:
    parser = Parser(prog="python -m benchmarks.gpu_pack", description="Gather data, weights and packages, <= 60 MiB.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gsplat", type=Path, metavar="WHEEL", help="carry this along, to be compared with")
    args = parser.parse_args(sys.argv[1:])
    found = pack(args.folder, Path(os.environ.get("SEQSPLAT_DATA", "SEQSPLAT_DATA")), args.gsplat)
    for name, count in found.items():
        print(f"{count:>10} {name}")
    print(f"{sum(found.values()):>10} bytes of {LIMIT_BYTES}")


if __name__ == "__main__":
    errors.run(main)
