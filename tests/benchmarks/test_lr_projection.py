"""The benchmark of the LR operator's forms on a tiny frame: all forms agree, one table a size, refused sizes."""

import pytest
import torch

from benchmarks import lr_projection
from utils.errors import UserError


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["lr_projection", *words])
    lr_projection.main()


@pytest.mark.parametrize("stage", lr_projection.STAGES)
def test_all_forms_make_the_same_image(stage):
    dense, *others = (form.image() for form in lr_projection.forms(stage, 48, 4).values())
    for other in others:
        assert torch.allclose(other, dense, atol=1e-5)  # float32 sums in another order


def test_it_prints_a_table_for_each_size(monkeypatch, capsys):
    run(monkeypatch, "--size", "24", "16", "--repeats", "1", "--threads", str(torch.get_num_threads()))
    printed = capsys.readouterr().out
    assert printed.count("| project |") == 2
    assert "### 16x16 px, x4" in printed


@pytest.mark.parametrize("words", [("--size", "3"), ("--scale", "0"), ("--repeats", "0")])
def test_it_refuses_what_cannot_be_measured(words, monkeypatch):
    with pytest.raises(UserError, match="1 or more"):
        run(monkeypatch, *words)
