"""Results and sources are kept apart: no step writes into the folders that it reads."""

from pathlib import Path

from utils.errors import UserError


def refuse_inside(out: str | Path, *sources: str | Path | None) -> None:
    """Refuse an output folder that is a source folder or lies inside one; a source inside the output is fine.

    Parameters
    ----------
    out : folder to be written to. sources : folders that are read; None and "" = none.

    Raises
    ------
    UserError : names both.
    """
    for source in (folder for folder in sources if folder):
        if Path(out).resolve().is_relative_to(Path(source).resolve()):
            raise UserError(f"{out}: results are not written into {source}, which is a source; name another folder")
