"""The table of docs/priors.md: what a networked machine runs to check each published model. All from the registry."""

from priors.checkpoints import CHECKPOINTS, Checkpoint, File

HEADER = ("command", "files", "size", "SHA-256", "licence", "stands on")
UNKNOWN = "unknown until downloaded"


def table() -> str:
    """A row a model of the registry."""
    rows = [HEADER, ("---",) * len(HEADER), *map(row, CHECKPOINTS.values())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def row(found: Checkpoint) -> tuple[str, ...]:
    """Cells of a model; what the registry does not know says so."""
    licence = found.licence if not found.notice else f"{found.licence}; {found.notice}"
    base = f"`{found.base}`" if found.base else "`--base`" if found.family == "diffbir" else "-"
    return (f"`{command(found)}`", _files(found), _sizes(found), _hashes(found), licence, base)


def command(found: Checkpoint) -> str:
    """The words that fetch what has an address, check and load."""
    words = ["python -m priors verify", found.name]
    if found.folder:
        words.append("--model DIR")
    if found.files and not found.base and found.family == "diffbir":
        words.append("--base DIR")
    if unpublished := [file for file in found.files if not file.sha256]:
        words.append("--trust_weights" + " SHA256" * len(unpublished))
    return " ".join([*words, *["--accept_licence"] * (not found.commercial), "--download"])


def _files(found: Checkpoint) -> str:
    if found.model:
        return f"[{found.model}]({found.source})"
    if found.folder:
        return f"{found.folder}, linked on [its page]({found.source})"
    return "<br>".join(f"[{file.name}]({file.url})" if file.url else file.name for file in found.files)


def _sizes(found: Checkpoint) -> str:
    return "<br>".join(file.size or UNKNOWN for file in found.files) or found.size or UNKNOWN


def _hashes(found: Checkpoint) -> str:
    if not found.files:
        return "none in the registry; `verify` prints those of the files"
    return "<br>".join(_hash(file) for file in found.files)


def _hash(file: File) -> str:
    return file.sha256 or "none published; `--trust_weights`"
