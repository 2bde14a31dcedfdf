"""The table of a study, worked by hand from made-up results; what may not be compared is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from arguments.study import StudyTableParams
from evaluation.protocols import Protocol
from evaluation.study.__main__ import main as study_main
from evaluation.study.comparison import ALL, Comparison
from evaluation.study.plan import Plan
from evaluation.study.results import Result, check_protocols, finished, read_results
from evaluation.study.spec import Study, Variant
from evaluation.study.state import read_manifest
from evaluation.study.statistics import holm, paired_bootstrap
from evaluation.study.table import frame_table, same_frames, show_table
from tests.study_factory import fake_results, write_manifest
from utils.errors import UserError

STUDY = Study("toy", "", (), (Variant("base"), Variant("better"), Variant("worse")), baseline="base")
VALUES = {
    ("a", "base", 0): {"x": 20.0, "y": 22.0},
    ("a", "base", 1): {"x": 22.0, "y": 24.0},
    ("a", "better", 0): {"x": 21.0, "y": 23.5},
    ("b", "base", 0): {"z": 30.0},
    ("b", "better", 0): {"z": 30.5},
    ("b", "better", 1): {"z": 99.0},
    ("a", "worse", 0): {"x": 19.0, "y": 21.0},
    ("b", "worse", 0): {"z": 28.0},
}
FRAMES = {("a", "base"): 20.0, ("a", "better"): 21.0, ("b", "base"): 30.0, ("b", "better"): 31.0}


@pytest.fixture
def plan(tmp_path):
    plan = Plan(tmp_path)
    fake_results(plan, VALUES, FRAMES)
    return plan


def rows(plan, **params):
    results = list(finished(plan))
    names = ["base", "better", "worse"]
    found = Comparison(results, names, "base", "PSNR", names).rows(("PSNR",), StudyTableParams(**params))
    return {(row.scene, row.variant): row for row in found}


def test_means_and_spread(plan):
    found = rows(plan)
    assert found["a", "base"].means["PSNR"] == pytest.approx((21 + 23) / 2)  # over seeds, then views
    assert found["a", "base"].sd == pytest.approx(np.sqrt(2))  # of 21 and 23, the seeds' means
    assert found[ALL, "base"].means["PSNR"] == pytest.approx((21 + 30) / 2)  # seed 0, which both have
    assert (found[ALL, "base"].seeds, found["a", "base"].seeds) == ((0,), (0, 1))  # what all scenes have
    assert found["a", "better"].sd is None


def test_differences_are_paired_by_view_and_seed(plan):
    found = rows(plan)
    difference = found["a", "better"].difference
    assert difference.mean == pytest.approx((1.0 + 1.5) / 2)  # seed 0 alone: seed 1 of base is in no pair
    assert (difference.low, difference.high) == (1.0, 1.5)
    assert found[ALL, "better"].difference.mean == pytest.approx((1.25 + 0.5) / 2)  # seed 1 of b is in no pair
    assert found["a", "base"].difference is None
    expected = paired_bootstrap([np.array([1.0, 1.5]), np.array([0.5])])
    assert found[ALL, "better"].difference == expected
    ps = {v: found[ALL, v].difference.p for v in ("better", "worse")}
    assert {v: found[ALL, v].p for v in ps} == holm(ps)


def test_frames_carry_over_and_cost(plan):
    found = rows(plan)
    assert found[ALL, "better"].frame_PSNR == 26.0
    assert found["a", "better"].carry == pytest.approx(1.25)  # 1.25 dB of model for 1 dB of frames
    assert found["a", "worse"].carry is None
    assert found["a", "better"].cost == {"seconds": 15.0, "cpu_seconds": 15.0, "peak_MB": 5.0}
    assert found["a", "worse"].cost["seconds"] == 10.0  # it has no frames


def test_carry_over_compares_the_same_seeds_of_models_and_of_frames():
    def result(variant, seed, psnr, frame):
        views, frames = {"black": {"v": {"PSNR": psnr}}}, {"black": {"f": {"PSNR": frame}}}
        return Result("a", variant, seed, views, frames)

    results = [result("base", 0, 20.0, 20.0), result("better", 0, 21.0, 22.0), result("better", 1, 25.0, 27.0)]
    names = ["base", "better"]
    found = Comparison(results, names, "base", "PSNR", names).rows(("PSNR",), StudyTableParams())
    assert [row.carry for row in found if row.scene == "a"] == [None, 0.5]  # 1 dB for 2 dB, of seed 0 alone
    found = Comparison(results, names, "base", "PSNR", ["base"]).rows(("PSNR",), StudyTableParams())
    assert {row.carry for row in found} == {None}  # it is trained in another way, so not its frames alone did it


def test_a_metric_that_a_view_has_no_value_of_is_no_cell():
    """Means over other views are no comparison: a variant with a value for each view has a cell, another has none."""

    def result(variant, seed, **more):
        views = {"black": {"v": {"PSNR": 20.0}, "w": {"PSNR": 22.0, "NIQE_fit": 5.0}}}
        views["black"]["v"] |= more
        return Result("a", variant, seed, views, {})

    results = [result("base", 0, NIQE_fit=3.0), result("base", 1, NIQE_fit=3.0)]
    results += [result("better", 0, NIQE_fit=3.0), result("better", 1)]
    metrics, names = ("PSNR", "NIQE_fit"), ["base", "better"]
    found = Comparison(results, names, "base", "PSNR", names).rows(metrics, StudyTableParams())
    means = {row.variant: row.means for row in found if row.scene == "a"}
    assert means == {"base": {"PSNR": 21.0, "NIQE_fit": 4.0}, "better": {"PSNR": 21.0}}


def test_variants_with_the_same_frames_share_a_row():
    def result(variant, frames):
        return Result("a", variant, 0, {}, {"black": {"f": {"PSNR": 20.0}}}, tasks={"frames": frames})

    results = [result("one", "frames-1"), result("two", "frames-2"), result("base", "frames-1")]
    comparison = Comparison(results, ["one", "two", "base"], "base", "PSNR", [])
    assert same_frames(comparison, "a") == {"two": [], "base": ["one"]}
    rows = frame_table(comparison, StudyTableParams(metrics=("PSNR",))).rows
    assert [row[2:5] for row in rows] == [["two", "20.00", "+0.000"], ["base, one", "20.00", "-"]]


def test_a_baseline_that_is_not_finished_leaves_a_table_without_differences(tmp_path, capsys):
    plan = Plan(tmp_path)
    fake_results(plan, {k: v for k, v in VALUES.items() if k[1] != "base"}, FRAMES)
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",), frames=True, per_view=True))
    shown = capsys.readouterr()
    assert "no finished run of the baseline 'base'" in shown.err
    assert "| all | black | better | 1 | " in shown.out


def test_a_variant_without_all_scenes_has_no_mean_over_them(tmp_path):
    plan = Plan(tmp_path)
    fake_results(plan, {k: v for k, v in VALUES.items() if k != ("b", "worse", 0)})
    found = rows(plan)
    assert (ALL, "worse") not in found
    assert ("a", "worse") in found


def test_unfinished_runs_are_left_out_and_counted(plan, capsys):
    (plan.folder("views-aworse0") / "study.json").unlink()
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",)))
    shown = capsys.readouterr()
    assert "1 of 8 runs are not finished" in shown.err
    assert "| all | black | better | 1 | 26.38 | - | +0.875 | +0.500 .. " in shown.out


def test_the_file_holds_all_that_the_table_rests_on(plan, tmp_path, capsys):
    path = tmp_path / "r.json"
    options = {"metrics": ("PSNR", "SSIM"), "per_scene": True, "per_view": True, "format": "csv"}
    show_table(STUDY, plan, StudyTableParams(json=str(path), **options))
    first = capsys.readouterr().out.partition("\n")[2]
    show_table(STUDY, Plan(tmp_path / "nothing"), StudyTableParams(results=str(path), **options))
    assert capsys.readouterr().out == first
    assert read_results(path)[0].views["black"]["x"]["PSNR"] == 20.0
    content = json.loads(path.read_text())
    assert len(content["shared"]["frames"]) < len(content["runs"])  # seeds of one variant have one set of frames
    assert content["baseline"] == "base"
    row = next(r for r in content["rows"] if (r["scene"], r["variant"]) == ("a", "better"))
    assert row["difference"]["mean"] == 1.25


def test_a_table_from_a_file_needs_no_data(plan, tmp_path, monkeypatch, capsys):
    path = tmp_path / "s.toml"
    path.write_text('[scenes.a]\nsource = "$NOT_SET_HERE/lr"\n[variants.base]\n[variants.better]\n')
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",), json=str(tmp_path / "r.json")))
    words = ["study", str(path), "table", "--results", str(tmp_path / "r.json"), "--metrics", "PSNR"]
    monkeypatch.setattr("sys.argv", words)
    study_main()
    assert "| all | black | better | 1 | 26.38 |" in capsys.readouterr().out
    (tmp_path / "r.json").write_text('{"schema": 2, "shared": {}, "runs": [{"scene": "a"}]}')
    with pytest.raises(UserError, match="run 0 is not one of a study"):
        study_main()


def test_a_metric_that_was_not_measured(plan, capsys):
    show_table(STUDY, plan, StudyTableParams(format="csv"))  # without LPIPS, as with --no_lpips
    assert ",SSIM,frame_PSNR," in capsys.readouterr().out
    with pytest.raises(UserError, match="--metrics LPIPS_alex: measured are PSNR, SSIM"):
        show_table(STUDY, plan, StudyTableParams(metrics=("PSNR", "LPIPS_alex")))


def test_scenes_that_a_mean_lacks_are_told(tmp_path, capsys):
    plan = Plan(tmp_path)
    fake_results(plan, {("a", "base", 0): {"x": 1.0}, ("b", "base", 0): {"x": 2.0}})
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",)))
    assert "all, black" not in capsys.readouterr().out
    manifest = read_manifest(plan.folder("views-abase0"))["results"]
    white = manifest["black"] | {"protocol": manifest["black"]["protocol"] | {"background": "white"}}
    write_manifest(plan, plan.tasks["views-abase0"], manifest | {"white": white})
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",)))
    assert "all, black: a, b. all, white: a." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr_kernel": "area"}, "'lr_kernel'"),
        ({"truth": "other"}, "'truth'"),
        ({"compositing": "floored"}, "'compositing'"),
    ],
)
def test_other_protocols_are_refused(tmp_path, changed, message):
    plan = Plan(tmp_path)
    shared = Protocol(scene="a", background="black", views=1, truth="t")
    fake_results(plan, {("a", "base", 0): {"x": 1.0}}, protocol=shared)
    fake_results(plan, {("a", "better", 0): {"x": 1.0}}, protocol=replace(shared, **changed))
    with pytest.raises(UserError, match=f"protocols differ in {message}"):
        check_protocols(list(finished(plan)))


def test_ways_of_drawing_are_shown_where_they_differ(tmp_path, capsys):
    plan = Plan(tmp_path)
    shared = Protocol(scene="a", background="black", views=1, truth="t")
    fake_results(plan, {("a", "base", 0): {"x": 1.0}}, protocol=shared)
    fake_results(plan, {("a", "better", 0): {"x": 1.0}}, protocol=replace(shared, dilation=0.1))
    assert check_protocols(list(finished(plan))) == ["dilation"]
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",)))
    assert "| dilation |" in capsys.readouterr().out


def test_the_table_of_frames(tmp_path, capsys):
    plan = Plan(tmp_path)
    models = {("a", "base", 0): {"x": 1.0}, ("a", "better", 0): {"x": 2.0}}
    fake_results(plan, models, {("a", "base"): 20.0, ("a", "better"): 21.5})
    order = {"mean_step_deg": 10.0, "worst_step_deg": 50.0, "jumps": {"PSNR": 19.0}}
    found = {"per_view": {"f": {"PSNR": 21.5}}, "order": order, "alignment": {"flow_px": 3.25}}
    write_manifest(plan, plan.tasks["frames-abetter"], {"black": found})
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",), frames=True, format="csv"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("a,black,better,21.50,+1.500,+1.500 .. +1.500,")
    assert lines[-1].endswith(",19.00,10.00,50.00,-,3.25,-")
    assert lines[-2] == "a,black,base,20.00,-,-,-,-,-,-,-,-,-"
    found["confidence"] = {"views": 1, "pixel": 0.25, "block": None, "per_view": {}}
    write_manifest(plan, plan.tasks["frames-abetter"], {"black": found})
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",), frames=True, format="csv"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(",")[2] for line in lines[-3:]] == ["confidence_pixel", "-", "0.2500"]


def test_wrong_questions(plan):
    with pytest.raises(UserError, match="baseline 'nobody'"):
        show_table(STUDY, plan, StudyTableParams(baseline="nobody"))
    with pytest.raises(UserError, match="--metrics LPIPS: measured are PSNR, SSIM"):
        show_table(STUDY, plan, StudyTableParams(metrics=("LPIPS",)))
    with pytest.raises(UserError, match=r"no run in .* is finished"):
        show_table(STUDY, Plan(plan.out / "empty"), StudyTableParams())


def test_interrupted_and_mixed_code_are_said(plan, capsys):
    for name, code in (("views-abase0", "one"), ("views-abetter0", "two")):
        results = json.loads((plan.folder(name) / "study.json").read_text())["results"]
        write_manifest(plan, plan.tasks[name], results, attempts=2, code={"train": code})
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",)))
    text = capsys.readouterr().out
    assert "* after a time: interrupted" in text
    assert "Not one code state: train ran with several" in text


def test_results_of_other_code_are_said_and_can_be_left_out(plan, tmp_path, capsys):
    path, params = tmp_path / "r.json", StudyTableParams(metrics=("PSNR",))
    show_table(STUDY, plan, replace(params, fresh=True))
    assert "status says which" not in capsys.readouterr().out
    for name in ("frames-abetter", "frames-bbetter"):  # three models were made from what these were before
        results = json.loads((plan.folder(name) / "study.json").read_text())["results"]
        write_manifest(plan, plan.tasks[name], results, product="another")
    said = "3 of 12 tasks were made by other code or from other results; status says which."
    show_table(STUDY, plan, replace(params, json=str(path)))
    assert said in capsys.readouterr().out
    for source in ("", str(path)):
        show_table(STUDY, plan, replace(params, results=source))
        assert said in capsys.readouterr().out
        show_table(STUDY, plan, replace(params, results=source, fresh=True))
        shown = capsys.readouterr()
        assert "3 of 8 finished runs are not up to date and left out" in shown.err
        assert "status says which" not in shown.out
        assert "| better |" not in shown.out
    states = next(r["states"] for r in json.loads(path.read_text())["runs"] if r["variant"] == "better")
    assert states == {"frames-abetter": "", "views-abetter0": "made from an earlier frames-abetter"}


def test_two_trainings_of_one_run_by_different_code_are_said(plan, capsys):
    for name, code in (("frames-abetter", "one"), ("views-abetter0", "two")):
        results = json.loads((plan.folder(name) / "study.json").read_text())["results"]
        write_manifest(plan, plan.tasks[name], results, code={"train": code}, needs={"frames-abetter": "p"})
    assert next(r for r in finished(plan) if r.variant == "better").code == {"train": ["one", "two"]}
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",)))
    assert "Not one code state: train ran with several" in capsys.readouterr().out


def test_mixtures_of_devices_precisions_and_versions_are_said(plan, tmp_path, capsys):
    cpu = {"machine": {"device": ["cpu"], "precision": ["float32"]}, "versions": {"torch": "2.13", "numpy": "2.4"}}
    gpu = {"machine": {"device": ["cuda H200"], "precision": []}, "versions": {"torch": "2.14", "numpy": "2.4"}}
    for name, facts in (("views-abase0", cpu), ("views-abetter0", cpu)):
        results = json.loads((plan.folder(name) / "study.json").read_text())["results"]
        write_manifest(plan, plan.tasks[name], results, **facts)
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",)))
    assert "Not alike" not in capsys.readouterr().out
    write_manifest(plan, plan.tasks["views-abetter0"], results, **gpu)
    path = tmp_path / "r.json"
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",), json=str(path)))
    said = "Not alike everywhere: device cpu, cuda H200; torch 2.13, 2.14."
    assert said in capsys.readouterr().out
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR",), results=str(path)))
    assert said in capsys.readouterr().out


def test_the_compact_table_has_one_row_a_variant(plan, capsys):
    show_table(STUDY, plan, StudyTableParams(metrics=("PSNR", "SSIM"), compact=True))
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0][:6] == ["variant", "seeds", "all PSNR", "all - base", "all SSIM", "all frame_PSNR"]
    assert lines[0][6:10] == ["a PSNR", "a - base", "a SSIM", "a frame_PSNR"]
    better = dict(zip(lines[0], next(line for line in lines if line[0] == "better"), strict=True))
    assert (better["all PSNR"], better["all - base"], better["a - base"]) == ("26.38", "+0.88*", "+1.25")
    assert [line[0] for line in lines[2:]] == ["base", "better", "worse"]
    base = dict(zip(lines[0], lines[2], strict=True))
    assert base["a - base"] == "-"
    assert (base["a SSIM"], better["a SSIM"]) == ("0.5500", "0.5563 (+1 %)")
    assert (better["carry-over"], better["cpu_seconds"], better["peak_MB"]) == ("0.88", "15", "5")


def test_the_compact_table_shows_what_is_asked_of_models(tmp_path, capsys):
    plan = Plan(tmp_path)
    fit = {("a", "base", 0): {"frames": 30.0, "lr": 40.0, "test": 1.0}, ("a", "base", 1): {"frames": 31.0, "lr": 42.0}}
    fit[("b", "base", 0)] = {"frames": 27.5}  # one seed: scenes count alike all the same
    fake_results(plan, VALUES, FRAMES, fit=fit)
    path = tmp_path / "r.json"
    params = StudyTableParams(metrics=("PSNR",), compact=True, facts=("fit_PSNR", "fit_LR_PSNR", "splats"))
    show_table(STUDY, plan, replace(params, json=str(path)))
    first = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in first.splitlines() if line.startswith("|")]
    base, better = (dict(zip(lines[0], lines[k], strict=True)) for k in (2, 3))
    assert (base["all fit_PSNR"], base["a fit_PSNR"], base["b fit_PSNR"]) == ("29.00", "30.50", "27.50")
    assert (base["all fit_LR_PSNR"], base["a fit_LR_PSNR"], base["a splats"]) == ("-", "41.00", "100")
    assert better["a fit_PSNR"] == "-"
    show_table(STUDY, plan, replace(params, results=str(path)))
    assert capsys.readouterr().out == first.partition("\n")[2]
