"""The table of published models is the registry: every model, every file, and nothing that it does not know."""

import shlex

import pytest

from benchmarks import models, pages
from priors.__main__ import main
from priors.checkpoints import CHECKPOINTS, Checkpoint, File
from utils.errors import UserError


def test_every_model_has_its_row_in_the_page():
    page = (pages.PROJECT / "docs/priors.md").read_text()
    assert models.table() in page, "run python -m benchmarks.pages"
    rows = models.table().splitlines()[2:]
    assert len(rows) == len(CHECKPOINTS)
    for line, found in zip(rows, CHECKPOINTS.values(), strict=True):
        assert f"verify {found.name} " in line
        assert found.licence in line
        assert all(file.name in line and file.url in line for file in found.files)
        assert ("--accept_licence" in line) == (not found.commercial)
        assert line.count("none published") == sum(not file.sha256 for file in found.files)
        assert line.count("|") == len(models.HEADER) + 1


def test_sizes_and_hashes_are_those_of_the_registry_or_said_to_be_unknown():
    files = (File("a.pth", "https://x/a.pth", "1.5 GB", "ab" * 32), File("b.pth", "https://x/b.pth"))
    command, _, size, digest, _, _ = models.row(Checkpoint("x", "resshift", "https://x", "MIT", files=files))
    assert size == "1.5 GB<br>unknown until downloaded"
    assert digest == f"{'ab' * 32}<br>none published; `--trust_weights`"
    assert command == "`python -m priors verify x --trust_weights SHA256 --download`"
    assert models.row(Checkpoint("y", "sdxl", "https://x", "MIT", "a/y"))[2] == "unknown until downloaded"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_commands_are_taken_by_the_program(name, monkeypatch):
    seen = []

    def stops(*args):
        seen.append(args)
        raise UserError("nothing is fetched here")

    monkeypatch.setattr("priors.__main__.verify", stops)
    with pytest.raises(UserError, match="nothing is fetched here"):
        main(shlex.split(models.command(CHECKPOINTS[name]))[3:])
    ((given, options),) = seen
    assert given == name
    assert options.download
    assert len(options.trust) == len(CHECKPOINTS[name].files)
    CHECKPOINTS[name].accepted(options.accept_licence)
