"""The losses' benchmark on tiny images: every runner, the table, the JSON file, refused sizes."""

import json

import pytest

from benchmarks import losses
from utils.errors import UserError


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["losses", *words])
    losses.main()


def test_it_times_all_runners_and_writes_them(tmp_path, monkeypatch, capsys):
    path = tmp_path / "losses.json"
    run(monkeypatch, "--size", "40x24", "--n", "50", "--side", "32", "--repeats", "2", "--json", str(path))
    printed, found = capsys.readouterr().out, json.loads(path.read_text())
    assert set(found["40x24"]["ms"]) == {losses.HR, losses.LR, losses.TORCH, losses.HR_ONE}
    assert set(found["random 50/32"]["ms"]) == {losses.ONE, losses.TWO}
    for entry in (found["40x24"], found["random 50/32"]):
        assert len(entry["load"]) == 3
        assert all(0 < both["min"][k] <= both["median"][k] for both in entry["ms"].values() for k in both["min"])
    ms = found["40x24"]["ms"]
    assert f"| PyTorch / HR term | {ms['PyTorch']['min']['loss'] / ms['HR term']['min']['loss']:.3f} |" in printed
    assert "| HR and LR / HR alone |" in printed


@pytest.mark.parametrize("size", ["800", "3x800", "800x533px", "0x0"])
def test_it_refuses_what_is_not_a_size(size, monkeypatch):
    with pytest.raises(UserError, match="WxH"):
        run(monkeypatch, "--size", size)
