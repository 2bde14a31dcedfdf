"""Guidance by a prior: its gradient by the definition, alike with every engine, kept by a resume, refused in a line."""

import json
import re
import time
from dataclasses import dataclass, replace

import pytest
import torch

from arguments.guidance import GuidanceParams
from priors.interfaces import Cond
from priors.processes import EDM, VP, Flow, ResShift
from priors.spaces import PixelSpace
from scene import load_scene
from tests.priors.exact_priors import sd3_space
from tests.training_factory import SCALE, command, settings, whole_and_resumed, write_scene
from training import job
from training.dry_run import describe, step_seconds
from training.estimate import estimate
from training.guidance import Guidance, check
from training.job import Job
from training.trainer import Trainer
from training.views import training_views
from utils import rng
from utils.errors import UserError

LEVELS = VP.linear(1000, 1e-4, 2e-2)


@dataclass(eq=False)
class Grey:
    """A prior that believes in grey images, a little brighter than the LR view."""

    process = LEVELS
    space = PixelSpace()

    def x0(self, x_t: torch.Tensor, t: float, cond: Cond) -> torch.Tensor:
        assert cond.lr is not None
        assert cond.lr.shape[1] == 3
        return torch.zeros_like(x_t) + cond.lr.mean()


@dataclass(frozen=True)
class Coarse(PixelSpace):
    """Pixels that say they were latents of `factor` px."""

    def encode(self, image):
        assert image.shape[-1] % self.factor == image.shape[-2] % self.factor == 0
        return 2 * image - 1


@pytest.fixture(scope="module")
def scene_root(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def guidance(**flags: object) -> Guidance:
    return Guidance.of(Grey(), 3, GuidanceParams(sds="small", **flags), seed=0)  # type: ignore[arg-type]


def trainer(root, rasterizer="native", guide: Guidance | None = None, **optimisation) -> Trainer:
    given = settings(root, rasterizer, **optimisation)
    scene = load_scene(root / "lr")
    views = training_views(scene, root / "out" / "hr", given.model, given.optimisation, 0, "cpu")
    made = Job(given, root / "out", scene, views, root / "out" / "hr", "cpu").trainer()
    made.guidance = guide
    return made


def pulled(run: Trainer, guide: Guidance, image: torch.Tensor, iteration: int = 4):
    name, view = next(iter(run.views.views.items()))
    targets = run.views.targets(name, (0.2, 0.4, 0.6))
    pull = guide.guide(iteration, view, targets)
    assert pull is not None
    return pull(image), view, targets


def test_the_gradient_is_the_definition(scene_root):
    run, guide = trainer(scene_root), guidance(sds_lambda=0.7, sds_project="off")
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    (gradient, size), _, targets = pulled(run, guide, image)
    draws = rng.generator(0, "sds", 4)
    t = guide.sds.times[guide.sds.draw_level(4, draws)]
    a, _, s = LEVELS.coefficients(t)
    weight = s**2 / (a**2 + s**2)
    expected = weight * a / s * (2 * image - 1 - targets.lr.mean()) * 2  # the space is twice the image
    torch.testing.assert_close(gradient, 0.7 * expected / image.numel(), rtol=1e-5, atol=1e-9)
    assert float(size) == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-5)


def test_a_crop_pulls_on_its_part_alone(scene_root):
    run, guide = trainer(scene_root), guidance(sds_crop=16)
    (gradient, _), _, _ = pulled(run, guide, torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    rows, columns = (gradient.abs().sum((0, axis)).nonzero()[:, 0] for axis in (2, 1))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (16, 16)
    assert int(rows.min()) % SCALE == int(columns.min()) % SCALE == 0


@pytest.mark.parametrize(("factor", "crop", "seen"), [(1, 0, 32), (1, 16, 16), (1, 17, 16), (8, 28, 24), (12, 0, 24)])
def test_the_pull_is_a_mean_over_what_the_prior_sees(scene_root, factor, crop, seen):
    """Parts lie on the grids of LR px and latents, so they may be smaller than --sds_crop, and than the render."""
    run, guide = trainer(scene_root), guidance(sds_crop=crop, sds_project="off")
    guide.sds.prior.space = Coarse(factor=factor)
    (gradient, size), view, _ = pulled(run, guide, torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    pulled_at = gradient.abs().amax(0) > 0
    assert int(pulled_at.sum()) == seen * seen
    assert (view.camera.width, view.camera.height) == (32, 32)
    rms = (gradient * 3 * seen * seen / 0.1)[:, pulled_at].square().mean().sqrt()
    torch.testing.assert_close(size, rms, rtol=1e-4, atol=0)


def test_projected_guidance_leaves_the_lr_view_alone(scene_root):
    run = trainer(scene_root)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    name, view = next(iter(run.views.views.items()))
    lr = run.views.targets(name, (0.2, 0.4, 0.6)).lr
    agrees = view.kernel.project(image, lr)
    for project, bound in (("auto", 1e-8), ("on", 1e-8), ("off", None)):
        (gradient, _), _, _ = pulled(run, guidance(sds_project=project), agrees)
        seen = view.kernel.down(gradient).abs().max()
        assert gradient.abs().max() > 1e-5
        assert seen < bound if bound else seen > 1e-5


def test_projection_is_automatic_where_it_is_exact(scene_root):
    """In pixels, unless the LR views were degraded; never by itself in latents."""
    latent = Grey()
    latent.space = sd3_space()
    for prior, flag, degraded, wanted in (
        (Grey(), "auto", False, True),
        (Grey(), "auto", True, False),
        (Grey(), "off", False, False),
        (latent, "auto", False, False),
        (latent, "on", False, True),
    ):
        settings = GuidanceParams(sds="small", sds_project=flag)
        assert Guidance.of(prior, 3, settings, 0, degraded=degraded).project is wanted


def test_draws_depend_on_the_iteration_alone(scene_root):
    run, guide = trainer(scene_root), guidance(sds_every=2)
    image = torch.full((3, 32, 32), 0.9)
    first = [pulled(run, guide, image, i)[0][0] for i in (2, 4)]
    again = [pulled(run, guide, image, i)[0][0] for i in (4, 2)]
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[1], again[0])
    assert not torch.equal(first[0], first[1])
    name, view = next(iter(run.views.views.items()))
    assert guide.guide(3, view, run.views.targets(name, (0.0, 0.0, 0.0))) is None


def test_dry_run_counts_guidance_as_often_as_it_comes(scene_root, monkeypatch, capsys):
    """Every 20th iteration, which is later than the few that a dry run takes. Time passes in the prior alone."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Grey):
        def x0(self, x_t, t, cond):
            now[0] += 0.5
            return super().x0(x_t, t, cond)

    guide = Guidance.of(Slow(), 3, GuidanceParams(sds="small", sds_every=20), seed=0)
    run = trainer(scene_root, guide=guide, iterations=2000)
    assert step_seconds(run) == (0.0, 0.5)
    assert run.guidance is guide
    describe(run, estimate(run.views, run.state.gaussians, 0), scene_root)
    said = capsys.readouterr().out
    assert re.search(r"2000 iterations at 0 ms .*, 100 of them with 500 ms of guidance: about 50 s, more", said)
    assert "what the prior of --sds needs is not in it" in said
    plain = trainer(scene_root, iterations=2000)
    describe(plain, estimate(plain.views, plain.state.gaussians, 0), scene_root)
    said = capsys.readouterr().out
    assert "about 0 s, more" in said
    assert "guidance" not in said
    assert "--sds" not in said


def test_engines_agree(scene_root):
    guide = guidance(sds_lambda=3.0, sds_every=2)
    options = {"densify_from_iter": 1000}
    runs = [trainer(scene_root, name, guide, **options) for name in ("native", "reference")]
    plain = trainer(scene_root, "native", None, **options)
    for i in range(1, 5):
        a, b, c = (run.step() for run in (*runs, plain))
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        sizes = [terms.sds for terms in (a, b) if terms.sds is not None]
        assert len(sizes) == (2 if i % 2 == 0 else 0)
        assert sizes[:1] == pytest.approx(sizes[1:], rel=1e-4)
        assert c.sds is None
    for name, value in runs[0].state.parameters().items():
        if name == "quats":  # of spheres: no gradient but rounding noise, of which Adam makes full steps
            continue
        other, without = (run.state.parameters()[name] for run in (runs[1], plain))
        # Adam turns a gradient that is rounding noise into a full step, so a few entries may differ
        assert ((value - other).abs() > 1e-3 * other.abs().clamp(min=0.1)).float().mean() < 0.01, name
        assert name == "shN" or not torch.equal(value, without), name


def test_a_resumed_run_ends_with_the_same_bits(scene_root, tmp_path):
    guide = guidance(sds_lambda=1.0, sds_crop=16, sds_anneal=1, sds_project="on")
    whole, resumed, _ = whole_and_resumed(lambda: trainer(scene_root, "native", guide), tmp_path)
    state = resumed.state.tensors()
    assert all(torch.equal(value, state[name]) for name, value in whole.state.tensors().items())


def test_levels_are_shares_where_a_process_has_fewer_times():
    settings = GuidanceParams(sds="small", sds_tmin=100, sds_tmax=900, sds_anneal=2)
    few = ResShift(15, 2.0, 0.3, 0.04)
    for process, levels, bounds, anneal in (
        (LEVELS, 1000, (100, 900), 2),
        (few, 15, (1, 13), 134),
        (Flow(3.0), 1000, (100, 900), 2),
        (EDM(LEVELS), 1000, (100, 900), 2),
    ):
        prior = Grey()
        prior.process = process
        sds = Guidance.of(prior, 1, settings, 0).sds
        assert (sds.levels, (sds.lowest, sds.highest), sds.anneal) == (levels, bounds, anneal)
        assert len(sds.times) == levels


def test_what_cannot_be_is_refused():
    check(GuidanceParams(), False)
    with pytest.raises(UserError, match="--sds small: the prior is told the LR views, and none are used"):
        check(GuidanceParams(sds="small"), False)
    with pytest.raises(UserError, match="--sds_project: the LR views were degraded"):
        check(GuidanceParams(sds="small", sds_project="on"), True, True)
    check(GuidanceParams(sds="small"), True, True)
    with pytest.raises(UserError, match="--sds smal: unknown; there are small, ddnm, ddnm_sd3"):
        GuidanceParams(sds="smal")
    with pytest.raises(UserError, match=r"--sds_guidance -0\.5: a number from 0, or -1"):
        GuidanceParams(sds="small", sds_guidance=-0.5)
    with pytest.raises(UserError, match="--sds_lambda: there is no guidance without --sds NAME"):
        GuidanceParams(sds_lambda=0.5)
    for wrong in ({"sds_every": 0}, {"sds_crop": -1}, {"sds_tmin": 980}, {"sds_tmax": 1000}, {"sds_lambda": -1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            GuidanceParams(sds="small", **wrong)
    assert replace(GuidanceParams(sds="small"), sds_crop=64).sds_crop == 64


def test_through_the_script(tmp_path, monkeypatch, capsys):
    """A network of our own pulls; the log has its size, the record its file; a wrong name costs no training."""
    pytest.importorskip("diffusers")
    import train
    from priors.denoisers.tiny import ProcessSpec, TinyConfig, TinyNet, save_prior
    from utils import errors

    write_scene(tmp_path)
    model = tmp_path / "sr3.safetensors"
    save_prior(model, TinyNet(TinyConfig(1, SCALE, widths=(8, 16), groups=4)), ProcessSpec(steps=40), {})
    flags = {"iterations": 12, "lambda_tex": 0.0, "scale": SCALE, "sds_every": 3, "sds_project": True, "quiet": True}
    words = [*command(tmp_path, tmp_path / "guided", **flags, sds="small", sds_model=model), "--densify_dropout", "0.5"]
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    train.main()
    lines = [json.loads(line) for line in (tmp_path / "guided" / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "sds" in line] == [3, 6, 9, 12]
    record = json.loads((tmp_path / "guided" / "run.json").read_text())["steps"]["train"]
    assert record["inputs"]["prior"]["files"] == 1
    assert record["settings"]["sds_project"] == "on"
    regressor, other = tmp_path / "regression.safetensors", tmp_path / "other.safetensors"
    save_prior(regressor, TinyNet(TinyConfig(1, SCALE, noisy=False, widths=(8, 16), groups=4)), ProcessSpec("none"), {})
    save_prior(other, TinyNet(TinyConfig(1, 2 * SCALE, widths=(8, 16), groups=4)), ProcessSpec(steps=40), {})
    for name, file, message in (
        ("smal", model, "--sds smal: unknown; there are"),
        ("small", tmp_path / "nowhere", "nowhere"),
        ("small", regressor, "is a regressor, which knows no noise; give an SR3 or ResShift network"),
        ("small", other, f"magnifies {2 * SCALE} times; renders of 32x32 px and LR views of 16x16 px need another"),
    ):
        for out in ("wrong", "guided"):  # in a new folder, and where results are that --overwrite would replace
            before = files_of(tmp_path / out)
            words = [*command(tmp_path, tmp_path / out, **flags, sds=name, sds_model=file), "--overwrite"]
            monkeypatch.setattr("sys.argv", ["train.py", *words])
            with pytest.raises(SystemExit) as stopped:
                errors.run(train.main)
            assert stopped.value.code == 2
            (error,) = capsys.readouterr().err.splitlines()[-1:]
            assert error.startswith("error: ")
            assert message in error
            assert files_of(tmp_path / out) == before


def test_a_search_loads_the_prior_once_and_trains_as_without_it(tmp_path, monkeypatch, run_train):
    pytest.importorskip("diffusers")
    from priors.denoisers.tiny import ProcessSpec, TinyConfig, TinyNet, save_prior

    write_scene(tmp_path)
    model = tmp_path / "sr3.safetensors"
    save_prior(model, TinyNet(TinyConfig(1, SCALE, widths=(8, 16), groups=4)), ProcessSpec(steps=40), {})
    loads, real = [], job.load_guidance
    monkeypatch.setattr(job, "load_guidance", lambda *arguments: loads.append(arguments) or real(*arguments))
    flags = {"iterations": 12, "lambda_tex": 0.9, "sds": "small", "sds_model": model, "sds_every": 2}
    search = {"choose_lambda": True, "held_out_every": 4, "choose_iterations": 24}
    run_train([*command(tmp_path, tmp_path / "search", **flags, **search), "--lambda_candidates", "0.9", "0.2"])
    assert len(loads) == 1
    chosen = json.loads((tmp_path / "search/lambda.json").read_text())["choice"]
    fixed = flags | {name: chosen[name] for name in ("lambda_tex", "lambda_tex_final")}
    run_train(command(tmp_path, tmp_path / "fixed", **fixed))
    plys = [tmp_path / out / "point_cloud/iteration_12/point_cloud.ply" for out in ("search", "fixed")]
    assert plys[0].read_bytes() == plys[1].read_bytes()


def files_of(folder):
    """Contents by path, but for locks."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
