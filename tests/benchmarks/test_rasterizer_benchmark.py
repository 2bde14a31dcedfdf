"""The rasterizer benchmark: reproducible scenes, runners that time the same step, a report with all that matters."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import diff_gaussian_rasterization
import numpy as np
import pytest
import torch

from benchmarks import gen, modules, rasterizer, report
from benchmarks.cases import RENDER, STAGES, Case, measure, ratio, summary, with_sums
from benchmarks.modules import Rasterization, Training, import_original, original_render, reference_render
from benchmarks.ours import Fused, Worker, Written, camera_of, objective
from benchmarks.prototype import Prototype, build
from benchmarks.torch_loss import torch_loss
from utils.errors import UserError
from utils.ssim import ssim

SMALL = Case("skewed", 400, 48)
NATIVE = {"preprocess", "sort_bin", "forward", "loss", "blend_backward", "geometry", "whole"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", list(gen.KINDS))
def test_scenes_are_reproducible_and_finite(kind):
    first, second = gen.scene(500, 64, kind), gen.scene(500, 64, kind)
    assert all(np.array_equal(first[k], second[k]) and np.isfinite(first[k]).all() for k in first)
    assert first["shN"].shape == (500, 15, 3)


def test_a_case_names_itself():
    assert [str(c) for c in (Case("random", 50_000, 400), Case("skewed", 1234, 64))] == [
        "random 50k/400",
        "skewed 1234/64",
    ]


@pytest.mark.parametrize("two_term", [False, True])
def test_a_fused_step_reports_its_stages_and_leaves_the_scene_as_it_is(two_term):
    ours = Fused(SMALL, 1, two_term=two_term)
    times = ours.step()
    assert set(times) == NATIVE
    assert all(ms > 0 for ms in times.values())
    assert sum(ms for name, ms in times.items() if name != "whole") <= times["whole"] * (1 + 1e-9)
    assert all(np.array_equal(p.numpy(), v) for p, v in zip(ours.six, SMALL.values.values(), strict=True))
    assert ours.mean[0].abs().sum() > 0  # Adam ran
    assert ours.stats.count is not None
    assert ours.stats.count.sum() > 0
    assert ours.facts["drawn"] > 0


def test_the_two_term_objective_has_the_papers_weights():
    hr, lr = objective(SMALL, 1.0)
    assert hr.weight + lr.weight == pytest.approx(1)
    assert tuple(lr.lr_target.shape) == (3, 12, 12)
    (alone,) = Fused(SMALL, 1).turns[0]
    assert alone.weight == 1


def test_steps_with_both_terms_find_nothing_cached():
    """The workspace compares the taps with those of the step before."""
    (_, first), (_, second) = Fused(SMALL, 1, two_term=True).turns
    for (start, weight), (other_start, other_weight) in ((first.taps_x, second.taps_x), (first.taps_y, second.taps_y)):
        assert np.array_equal(start, other_start)
        assert weight.dtype == other_weight.dtype == np.float32
        assert (weight != other_weight).any()
        assert np.allclose(weight, other_weight, rtol=1e-5, atol=0)


def test_written_gradients_are_those_of_the_loss():
    written = Written(SMALL, 1)
    assert set(written.step()) == NATIVE
    raw = {k: v.requires_grad_() for k, v in modules.tensors(SMALL).items()}
    image = original_render(diff_gaussian_rasterization, SMALL)(modules.activated(raw))
    torch_loss(image, written.target).backward()
    for mine, (name, value) in zip(written.written, raw.items(), strict=True):
        assert torch.linalg.vector_norm(mine - value.grad) < 1e-4 * torch.linalg.vector_norm(value.grad), name


def test_every_runner_sees_the_same_picture():
    inputs = modules.activated(modules.tensors(SMALL))
    ours = original_render(diff_gaussian_rasterization, SMALL)(inputs)
    plain = reference_render(SMALL)(inputs)
    image = Fused(SMALL, 1).workspace.forward(camera_of(SMALL), *modules.tensors(SMALL).values())[0]
    assert torch.allclose(ours, image, atol=1e-5)
    assert (ours - plain).abs().mean() < 1e-5
    assert plain.std() > 0.01


@pytest.mark.parametrize(
    "make", [lambda: original_render(diff_gaussian_rasterization, SMALL), lambda: reference_render(SMALL)]
)
def test_a_training_step_around_a_module(make):
    runner = Training(make(), SMALL, 1)
    times = runner.step()
    assert set(times) == {"render", "loss", "backward", "adam", "whole"}
    assert times["whole"] == pytest.approx(sum(ms for name, ms in times.items() if name != "whole"))
    state = runner.optimizer.state[runner.raw["means"]]
    assert state["exp_avg"].abs().sum() > 0
    assert all(torch.equal(v, torch.from_numpy(SMALL.values[k])) for k, v in runner.raw.items())


def test_the_autograd_runner_reaches_every_input():
    runner = Rasterization(diff_gaussian_rasterization, SMALL, 1)
    assert set(runner.step()) == {"render", "backward"}
    assert all(v.grad is not None and v.grad.abs().sum() > 0 for v in runner.inputs.values())


def test_a_worker_that_dies_is_told(capfd):
    with pytest.raises(RuntimeError, match="runs of-none ended with code 1"):
        Worker(SMALL, 1, "of-none")
    assert "unknown instruction set" in capfd.readouterr().err


def test_the_loss_of_3dgs_users_is_the_projects():
    image, target = torch.rand(2, 3, 40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = 0.8 * (image - target).abs().mean() + 0.2 * (1 - ssim(image, target))
    assert torch_loss(image, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_reference_is_refused_where_memory_is_short():
    with pytest.raises(UserError, match=r"needs about 640\d* GB; .* use a smaller case"):
        reference_render(Case("random", 10_000_000, 800))


def test_modules_that_cannot_be_run_are_refused():
    assert import_original("diff_gaussian_rasterization") is diff_gaussian_rasterization
    with pytest.raises(UserError, match="module:no_such_package: cannot be imported"):
        import_original("no_such_package")
    with pytest.raises(UserError, match="has no GaussianRasterizationSettings and no GaussianRasterizer"):
        import_original("json")


def test_settings_of_both_generations_and_of_strangers():
    original = [*diff_gaussian_rasterization.GaussianRasterizationSettings._fields]

    def module(fields):
        from collections import namedtuple

        return types.SimpleNamespace(
            __name__="stranger", GaussianRasterizationSettings=namedtuple("GaussianRasterizationSettings", fields)
        )

    newer = modules.settings_of(module(original), SMALL)
    assert newer.antialiasing is False
    older = modules.settings_of(module([f for f in original if f != "antialiasing"]), SMALL)
    assert older.prefiltered is False
    assert modules.settings_of(diff_gaussian_rasterization, SMALL).antialiasing is None
    with pytest.raises(UserError, match=r"stranger: .*not the original's: \['mirror'\]"):
        modules.settings_of(module([*original, "mirror"]), SMALL)


class Told:
    """A runner with given times."""

    def __init__(self, name, log, times):
        self.name, self.log, self.times = name, log, iter(times)

    def step(self):
        self.log.append(self.name)
        return {**dict.fromkeys((*RENDER, "blend_backward", "geometry"), 1.0), "whole": next(self.times)}


def test_runners_take_turns_and_the_first_round_does_not_count():
    log: list[str] = []
    results = measure({"a": Told("a", log, [1, 9, 5, 7]), "b": Told("b", log, [99, 4, 2, 6])}, repeats=3)
    assert log == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert (results["a"]["min"]["whole"], results["a"]["median"]["whole"]) == (5, 7)
    assert (results["b"]["min"]["whole"], results["b"]["median"]["whole"]) == (2, 4)
    assert (results["a"]["min"]["render"], results["a"]["min"]["backward"], results["a"]["min"]["raster"]) == (3, 2, 5)
    assert ratio(results, "a", "b") == 2.5
    assert ratio(results, "a", "b", statistic="median") == 7 / 4
    assert list(results["a"]["min"]) == [stage for stage in STAGES if stage in results["a"]["min"]]


def test_sums_are_formed_only_of_what_is_there():
    assert with_sums({"render": 2.0, "backward": 3.0, "loss": 1.0})["raster"] == 5
    assert "raster" not in with_sums({"render": 2.0, "forward": 1.0})


def test_adams_share_is_a_difference_of_minima():
    results = {
        "ours": summary([{"geometry": 5.0}, {"geometry": 7.0}]),
        "ours" + rasterizer.WRITTEN: summary([{"geometry": 4.0}, {"geometry": 4.5}]),
    }
    rasterizer.tell_adam(results)
    assert results["ours"]["min"]["adam"] == 1.0
    assert results["ours"]["median"]["adam"] == 6.0 - 4.25


def test_the_scaling_section_states_times_shares_and_speed_ups():
    cases = [
        {
            "kind": "random",
            "n": n,
            "size": 64,
            "ms": {"ours": {"min": {"whole": two}}, "ours, 1 thr.": {"min": {"whole": one}}},
        }
        for n, two, one in ((1000, 2.0, 3.0), (4000, 5.0, 10.0))
    ]
    rows = report.scaling(cases, {"ours, 1 thr.": 1, "ours": 2})
    assert rows[0]["speed_up"] == {"1": 1.0, "2": 1.5}
    assert rows[1]["us_per_1000"] == {"1": 2500.0, "2": 1250.0}
    text = report.scaling_table(rows)
    assert "| random 4k/64 | 10.00 | 5.00 | 2500.0 | 1250.0 | 2.00x |" in text


def test_the_summary_has_a_row_a_scene():
    one, two = ({"min": dict.fromkeys(NATIVE, ms)} for ms in (4.0, 2.0))
    case = {"kind": "random", "n": 1000, "size": 64, "facts": {"ours": {"instances": 30, "drawn": 12}}}
    cases = [
        case | {"ms": {"ours": two, "ours, 1 thr.": one, "prototype": {"min": {"whole": 2.5}}}},
        case | {"ms": {"ours": two, "ours, 1 thr.": one}},
    ]
    rows = report.summary_table(cases, {"ours, 1 thr.": 1, "ours": 2}).splitlines()[-2:]
    assert rows[0] == "| random 1k/64 | 2.5 |" + " 4.0 / 2.0 |" * 7 + " 0.80 |"
    assert rows[1].endswith("| not measured |")


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["rasterizer", *map(str, words)])
    rasterizer.main()
    return capsys.readouterr().out


def test_one_command_prints_and_writes_everything(monkeypatch, capsys, tmp_path):
    path = tmp_path / "bench.json"
    scene = ("--n", 300, 500, "--size", 32, "--kind", "random", "--threads", 1, 2, "--repeats", 2)
    others = (
        "--isa",
        "scalar",
        "--autograd",
        "--two_term",
        "--against",
        "module:diff_gaussian_rasterization",
        "reference",
    )
    out = run(monkeypatch, capsys, *scene, *others, "--json", path)
    written = json.loads(path.read_text())
    assert set(written) == {"format", "command", "machine", "settings", "cases", "scaling", "load_at_end"}
    for name in ("cpu", "cores", "isa", "commit", "dirty", "native", "versions", "load", "OMP_WAIT_POLICY"):
        assert name in written["machine"]
    assert [case["n"] for case in written["cases"]] == [300, 500]
    for case in written["cases"]:
        assert case["facts"]["ours"]["drawn"] > 0
        assert case["facts"]["ours, scalar"]["isa"] == "scalar"  # a process of its own was forced
        assert set(case["ms"]["ours"]["min"]) >= NATIVE | {"adam", "cpu", "raster"}
        assert all(set(both) == {"min", "median"} for both in case["ms"].values())
    expected = {"ours", "ours, 1 thr.", "ours, gradients written", "ours, two terms", "ours, autograd", "ours, scalar"}
    assert set(written["cases"][0]["ms"]) == expected | {"module:diff_gaussian_rasterization", "reference"}
    assert [set(row["ms"]) for row in written["scaling"]] == [{"1", "2"}] * 2
    for text in (
        "### random 300/32, ms",
        "| ours / reference | whole |",
        "| two terms / one |",
        "### Scaling",
        "load average",
    ):
        assert text in out


def test_wrong_words_are_one_line(monkeypatch, capsys, tmp_path):
    for words, message in (
        (("--goals", "--repeats", 2), "at least 5 --repeats"),
        (("--n", 0), "must be at least 1"),
        (("--against", tmp_path), "one folder with the prototype's Makefile"),
        (("--agains", tmp_path), "did you mean --against"),
        (("--against", "module:json", "--n", 10, "--size", 8), "needs the original's API"),
    ):
        with pytest.raises(UserError, match=message):
            run(monkeypatch, capsys, *words)


@pytest.mark.slow
def test_the_prototype_is_built_in_a_copy_and_draws_the_same_step(tmp_path, data_dir):
    source = data_dir.parent / "prototype" / "rasterizer"
    if not source.is_dir():
        pytest.skip(f"{source} is not there: no prototype to measure against")
    before = sorted(source.iterdir())
    library = build(source, tmp_path)
    assert sorted(source.iterdir()) == before
    theirs, ours = Prototype(library, SMALL, 1), Fused(SMALL, 1)
    assert set(theirs.step()) == NATIVE
    ours.step()
    image = ours.workspace.forward(camera_of(SMALL), *ours.six)[0].numpy()
    assert np.abs(theirs.image - image).max() < 1e-4
    written, mine = Prototype(library, SMALL, 1, adam=False), Written(SMALL, 1)
    written.step()
    mine.step()
    for value, name in zip(mine.written, SMALL.values, strict=True):
        assert np.linalg.norm(value.numpy() - written.written[name]) < 1e-3 * np.linalg.norm(written.written[name])


def test_the_command_sets_the_wait_policy_that_the_environment_lacks(tmp_path):
    words = [sys.executable, "-m", "benchmarks.rasterizer", "--n", "50", "--size", "16", "--kind", "random"]
    path, environment = tmp_path / "bench.json", {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    words += ["--repeats", "1", "--json", str(path)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "### random 50/16, ms" in done.stdout
    assert json.loads(path.read_text())["machine"]["OMP_WAIT_POLICY"] == "PASSIVE"
