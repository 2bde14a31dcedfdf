"""Tables: formats, refusal to mix protocols, published numbers."""

import csv
import io
import json
import sys

import pytest

from arguments.flags import read_toml
from evaluation import tables
from evaluation.formats import FORMATS, Table
from evaluation.protocols import Protocol
from evaluation.published import FILE, load_published
from utils.errors import UserError


def write_metrics(folder, psnr=30.123, split="test", **protocol):
    folder.mkdir(parents=True)
    made = Protocol(**({"scene": "lego", "background": "black", "scale": 4.0} | protocol)).to_json()
    result = {"protocol": made, "mean": {"PSNR": psnr, "SSIM": 0.91234, "LPIPS": 0.056789}, "views": {}}
    content = {"schema": 1, "methods": {f"{split}/ours_30000": result}, "frames": None, "weights": {}}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def table(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["tables", *map(str, words)])
    tables.main()
    return capsys.readouterr().out


def test_markdown(tmp_path, monkeypatch, capsys):
    a, b = write_metrics(tmp_path / "a"), write_metrics(tmp_path / "b", 31.5)
    text = table(monkeypatch, capsys, a, b)
    assert text.splitlines() == [
        "| name | scene | PSNR | SSIM | LPIPS |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | lego | 30.12 | 0.9123 | 0.0568 |",
        "| b | lego | 31.50 | 0.9123 | 0.0568 |",
    ]


@pytest.mark.parametrize(("format_", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_separated_formats_are_read_back(tmp_path, monkeypatch, capsys, format_, delimiter):
    a, b = write_metrics(tmp_path / "a"), write_metrics(tmp_path / "b")
    text = table(monkeypatch, capsys, a, b, "--format", format_, "--columns", "name", "PSNR", "--published", "blender")
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    assert rows[:3] == [["name", "PSNR", "note"], ["a", "30.12", ""], ["b", "30.12", ""]]
    assert ["Sequence Matters, ALS", "33.03"] in [row[:2] for row in rows]  # all rows are lego, so its values are taken
    assert {len(row) for row in rows} == {3}


def test_latex_escapes(tmp_path):
    text = FORMATS["latex"](Table(["name", "PSNR"], [["a_b & 50%", "30"]]))
    assert r"a\_b \& 50\% & 30 \\" in text
    assert text.count(r"\midrule") == 1


def test_mixed_backgrounds_are_refused_by_name(tmp_path, monkeypatch, capsys):
    a, b = write_metrics(tmp_path / "a"), write_metrics(tmp_path / "b", background="white")
    with pytest.raises(UserError, match=r"'background'.*--columns"):
        table(monkeypatch, capsys, a, b)
    shown = table(monkeypatch, capsys, a, b, "--columns", "name", "background", "PSNR")
    assert "| b | white | 30.12 |" in shown


def test_mean_row(tmp_path, monkeypatch, capsys):
    a, b = write_metrics(tmp_path / "a", 30.0), write_metrics(tmp_path / "b", 31.0, scene="ship")
    assert "| mean | - | 30.50 |" in table(monkeypatch, capsys, a, b, "--columns", "scene", "PSNR", "--mean")


def test_unknown_column_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="PSRN"):
        table(monkeypatch, capsys, write_metrics(tmp_path / "a"), "--columns", "PSRN")


def test_unmeasured_folder_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"metrics\.py"):
        table(monkeypatch, capsys, tmp_path)


def test_split_that_was_not_measured_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no train results"):
        table(monkeypatch, capsys, write_metrics(tmp_path / "a"), "--split", "train")


def test_published_rows_carry_source_and_the_background_that_forbids_comparing(tmp_path, monkeypatch, capsys):
    text = table(monkeypatch, capsys, write_metrics(tmp_path / "a", scene="own"), "--published", "blender")
    assert "| *Sequence Matters, ALS [" in text
    assert "31.41 | 0.9520 | 0.0540" in text
    assert "Sequence Matters' run; NOT COMPARABLE: white background, ours black" in text


def test_another_number_of_test_views_forbids_comparing(tmp_path, monkeypatch, capsys):
    few = write_metrics(tmp_path / "few", scene="own", views=25)
    text = table(monkeypatch, capsys, few, "--published", "blender")
    assert "NOT COMPARABLE: 200 test views, ours 25" in text
    assert "NOT COMPARABLE: white background, ours black, and 200 test views, ours 25" in text
    all_ = write_metrics(tmp_path / "all", scene="own", views=200)
    assert "test views, ours" not in table(monkeypatch, capsys, all_, "--published", "blender")
    assert "test views, ours" not in table(monkeypatch, capsys, few, "--published", "mip360")


def test_published_file_is_complete_and_consistent():
    content = read_toml(FILE)
    scenes = {"blender": 8, "mip360": 9}
    for name, count in scenes.items():
        for entry in load_published(name).entries:
            assert entry.source
            assert len(entry.scenes) in (0, count)
            for i, tolerance in enumerate((0.011, 0.00021, 0.00011)):
                values = [triple[i] for triple in entry.scenes.values()]
                if values and entry.name != "NeRF-SR":  # its paper and Sequence Matters' run differ, as its caveat says
                    assert sum(values) / count == pytest.approx(entry.values[i], abs=tolerance), entry.name
    assert set(content["sets"]) == set(scenes)


def test_unknown_published_set_is_refused():
    with pytest.raises(UserError, match="blender"):
        load_published("blende")
    with pytest.raises(UserError, match="lego"):
        load_published("blender:bicycle")


def write_records(folder, **steps):
    folder.mkdir(parents=True, exist_ok=True)
    records = {name: {"peak_bytes": 2e6, "seed": 3, "notes": {}} | record for name, record in steps.items()}
    (folder / "run.json").write_text(json.dumps({"schema": 1, "steps": records}))


@pytest.mark.parametrize(("flow", "seconds"), [("geometry", 1111), ("learned", 1001)])
def test_time_counts_the_model_of_the_lr_views_where_frames_used_its_depth(tmp_path, flow, seconds):
    out = tmp_path / "out"
    upsample = {"seconds": 1.0, "notes": {"flow": flow}}
    write_records(out, upsample=upsample, train={"seconds": 1000.0}, geometry={"seconds": 10.0, "peak_bytes": 9e6})
    write_records(out / "lr_model", train={"seconds": 100.0})
    facts = tables.run_facts(out)
    assert facts["seconds"] == seconds
    assert facts["peak_MB"] == (9 if flow == "geometry" else 2)
