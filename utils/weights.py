"""Find a pretrained file, and hand it out only when its bytes are the published ones.

Search order, first hit wins: the path the user gives, $SEQSPLAT_WEIGHTS, the cache ($SEQSPLAT_CACHE, else
~/.cache/seqsplat, there `weights/`), the installed package that carries the file (its files are located, it is never
imported), and a download if that was asked for. The checksum is compared before anything parses the file.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from utils.command_line import Parser
from utils.downloads import MAX_BYTES, fetch
from utils.errors import UserError, run
from utils.log import note, say
from utils.weight_table import WEIGHTS, Spec


@dataclass(frozen=True)
class ResolvedWeights:
    """A verified file. `source` says where it was found; `record()` goes into results so that a row can be traced."""

    path: Path
    id: str
    sha256: str
    source: str
    licence: str

    def record(self) -> dict[str, str]:
        """JSON-ready; the file's name, not where it lies on this machine."""
        return {**asdict(self), "path": self.path.name}

    def read(self) -> bytes:
        """The bytes that were verified; compared again, since the file may have changed in between."""
        data = _read(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{self.path}: changed since it was verified; run again")
        return data


def resolve(id: str, path: str | Path | None = None, *, download: bool = False, trust: str = "") -> ResolvedWeights:
    """Find and verify one file of the table.

    Parameters
    ----------
    id : key of WEIGHTS. With `path` it names the architecture: the file may be any published one of that architecture.
    path : file given by the user (--weights), or None to search.
    download : fetch a missing file (--download).
    trust : SHA-256 that the user vouches for (--trust_weights), for files whose source publishes none.

    Raises
    ------
    UserError : unknown id, nothing found, or the bytes are not the published ones.
    """
    spec = WEIGHTS.get(id)
    if spec is None:
        raise UserError(f"no weights named {id!r}; known: {', '.join(WEIGHTS)}")
    if path:
        return _verified(spec, Path(path), "--weights", trust, siblings=True)
    places = _places(spec)
    for place, source in places:
        if place.is_file():
            return _verified(spec, place, source, trust)
    if download:
        return _downloaded(spec, trust)
    raise UserError(_not_found(spec, [f"{place} ({source})" for place, source in places]))


def cache_folder() -> Path:
    """Folder of downloaded and converted weights."""
    return Path(os.environ.get("SEQSPLAT_CACHE") or Path.home() / ".cache" / "seqsplat") / "weights"


def _places(spec: Spec) -> list[tuple[Path, str]]:
    folder = os.environ.get("SEQSPLAT_WEIGHTS")
    places = [(Path(folder) / name, "SEQSPLAT_WEIGHTS") for name in (spec.filename, *spec.aliases)] if folder else []
    places.append((_cached(spec), "cache"))
    if spec.package:
        name, _, version = spec.package.partition("==")
        try:
            found = metadata.distribution(name).locate_file(spec.package_path)
            places.append((Path(str(found)), f"package {name} {version}"))
        except metadata.PackageNotFoundError:
            pass
    return places


def _cached(spec: Spec) -> Path:
    return cache_folder() / f"{spec.sha256[:8] or 'unpublished'}-{spec.filename}"


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than any weight file that is known ({MAX_BYTES} bytes)")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from error


def _verified(spec: Spec, path: Path, source: str, trust: str, siblings: bool = False) -> ResolvedWeights:
    found = hashlib.sha256(_read(path)).hexdigest()
    for s in [s for s in WEIGHTS.values() if s.arch == spec.arch] if siblings else [spec]:
        if s.sha256 and found.startswith(s.sha256):
            return ResolvedWeights(path, s.id, found, source, s.licence)
    if trust.lower() == found:
        return ResolvedWeights(path, f"{spec.arch} trusted by the user", found, source, "unknown")
    if spec.sha256 and not siblings:
        raise UserError(f"{path}: SHA-256 is {found}, {spec.id} has {spec.sha256}; remove it (found by {source})")
    raise UserError(f"{path}: no published checksum fits SHA-256 {found}; if you trust it: --trust_weights {found}")


def _downloaded(spec: Spec, trust: str) -> ResolvedWeights:
    expected = spec.sha256 or trust
    if not spec.urls:
        raise UserError(_not_found(spec, ["no direct address to download it from is published"]))
    if not expected:
        raise UserError(f"{spec.id}: no checksum is published; give --trust_weights SHA256 with --download")
    note(f"downloading {spec.urls[0]} (licence {spec.licence}{'; ' + spec.notice if spec.notice else ''})")
    path = _cached(spec)
    found = fetch(spec.urls[0], path, expected, max_bytes=spec.size or MAX_BYTES)
    return ResolvedWeights(path, spec.id, found, f"downloaded from {spec.urls[0]}", spec.licence)


def _not_found(spec: Spec, searched: list[str]) -> str:
    return f"weights {spec.id} not found; searched: {', '.join(searched)}. To get them: {spec.to_get_it()}"


def main() -> None:
    """List the table and where each file is."""
    parser = Parser(prog="python -m utils.weights", description="List known weights and where each file is.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these; an error where one is not found")
    parser.add_argument("--download", action="store_true", help="fetch what is missing from its official address")
    args = parser.parse_args()
    for id in args.ids or WEIGHTS:
        if not args.ids and not any(place.is_file() for place, _ in _places(WEIGHTS[id])):
            say(f"{id}\t-\tnot here\t{WEIGHTS[id].licence}\t{WEIGHTS[id].package or WEIGHTS[id].source}")
            continue
        found = resolve(id, download=args.download)
        say(f"{id}\t{found.sha256[:8]}\t{found.source}\t{found.licence}\t{found.path}")


if __name__ == "__main__":
    run(main)
