"""A study file becomes runs and shared tasks."""

from pathlib import Path

import pytest

from evaluation.study.executors import wanted_tasks
from evaluation.study.planner import make_plan
from evaluation.study.spec import restrict, with_overrides
from tests.plan_factory import BASE, plan, study, task, words
from utils.errors import UserError


def test_variants_that_differ_in_training_share_their_frames(tmp_path):
    p = plan(tmp_path)
    assert len(p.runs) == 6
    assert {r.frames for r in p.runs if r.variant != "bound"} == {task(p, "single", "frames").id}
    assert len({r.model for r in p.runs}) == len({r.views for r in p.runs}) == 6
    train = words(task(p, "low", "model", seed=1), "train")
    assert f"--frames={p.folder(task(p, 'single', 'frames').id)}/hr" in train
    assert {"--lambda_tex=0.2", "--seed=1"} <= set(train)
    assert task(p, "single", "frames").seed is None
    assert task(p, "low", "model", seed=1).seed == 1


def test_every_task_comes_after_its_needs(tmp_path):
    p, seen = plan(tmp_path), set()
    for name, t in p.tasks.items():
        assert set(t.needs) <= seen
        seen.add(name)


def test_a_seed_makes_a_new_folder_only_where_it_matters(tmp_path):
    p = plan(tmp_path, '[variants.shuffled]\norder = {ordering = "random"}\n')
    frames = [task(p, "shuffled", "frames", seed) for seed in (0, 1)]
    assert frames[0].id != frames[1].id
    assert [next(w for w in words(f, "order") if w.startswith("--seed")) for f in frames] == ["--seed=0", "--seed=1"]
    assert "--seed=0" in words(task(p, "single", "frames", 1), "order")


def test_names_depend_on_settings_not_on_their_place(tmp_path):
    first = task(plan(tmp_path), "single", "model").id
    said = plan(
        tmp_path,
        '[variants.other.train]\nlambda_tex = 0.6\n[variants.other.order]\nordering = "file"\n'
        '[variants.other.upsample]\npropagation = "none"\n',
    )
    assert task(said, "other", "model").id == first  # its default, said
    elsewhere = make_plan(study(tmp_path, ""), out=str(tmp_path / "elsewhere"))
    assert task(elsewhere, "single", "model").id == first
    harmless = with_overrides(study(tmp_path, ""), ["--checkpoint_interval", "7", "--raster_memory", "2"], "x")
    assert task(make_plan(harmless), "single", "frames").id == task(plan(tmp_path), "single", "frames").id
    smaller = with_overrides(study(tmp_path, ""), ["--max_memory", "2"], "x")  # tiles and chunks of networks
    assert task(make_plan(smaller), "single", "frames").id != task(plan(tmp_path), "single", "frames").id


def test_the_bound_trains_on_hr_and_models_of_lr_views_on_themselves(tmp_path):
    p = plan(
        tmp_path,
        '[variants."3dgs-lr"]\nsteps = ["train"]\n'
        '[variants.lr-loss-only]\nsteps = ["train"]\ntrain = {lambda_tex = 0, scale = 4}\n',
    )
    bound, lr, loss = (words(task(p, v, "model"), "train") for v in ("bound", "3dgs-lr", "lr-loss-only"))
    assert {f"--source_path={Path('hr').absolute()}", "--frames=none"} <= set(bound)
    assert {f"--source_path={Path('lr').absolute()}", "--frames=none"} <= set(lr)
    assert not [w for w in loss if w.startswith("--frames")]
    assert task(p, "bound", "model").needs == ()


def test_flags_go_to_the_steps_that_have_them_and_sections_win(tmp_path):
    p = plan(
        tmp_path,
        "[variants.aa]\nflags = {antialiasing = true, dilation = 0.1}\n"
        'order = {compat = "sequence_matters", cost = "pose", ordering = "greedy"}\n'
        "train = {dilation = 0.2}\n",
    )
    assert {"--antialiasing", "--dilation=0.2"} <= set(words(task(p, "aa", "model"), "train"))
    assert {"--antialiasing", "--dilation=0.1"} <= set(words(task(p, "aa", "views"), "render"))
    assert "--compat=sequence_matters" in words(task(p, "aa", "frames"), "order")


def test_results_are_measured_by_one_protocol(tmp_path):
    p = plan(tmp_path, '[variants.paper]\nmethod = "sequence_matters"\n')
    assert "--compat=sequence_matters" in words(task(p, "paper", "model"), "train")
    render = words(task(p, "paper", "views"), "render")
    assert [w for w in render if "compat" in w] == ["--compat="]  # also against what the model remembers
    assert not [w for w in words(task(p, "paper", "views"), "metrics") if "compat" in w]
    assert [c.name for c in task(p, "paper", "views").commands] == ["render", "render", "metrics"]


def test_a_variant_may_use_another_ones_results(tmp_path):
    p = plan(
        tmp_path,
        '[variants.refined]\nneeds = {first = "single"}\n'
        'before = {upsample = "python -m tool {first} -o {task}/in --device {device}"}\n'
        'train = {init_ply = "{first.ply}", confidence = "{first.frames}/hr/confidence"}\n',
    )
    for seed in (0, 1):
        frames, single = task(p, "refined", "frames", seed), task(p, "single", "model", seed)
        assert single.id in frames.needs
        model, used = task(p, "refined", "model", seed), task(p, "single", "frames", seed)
        assert {single.id, used.id} <= set(model.needs)
        assert f"--init_ply={p.folder(single.id)}/point_cloud/iteration_30000/point_cloud.ply" in words(model, "train")
        assert f"--confidence={p.folder(used.id)}/hr/confidence" in words(model, "train")
        command = words(frames, "command")
        assert command == [
            "python",
            "-m",
            "tool",
            str(p.folder(single.id)),
            "-o",
            f"{p.folder(frames.id)}/in",
            "--device",
            "{device}",
        ]
    assert task(p, "refined", "frames", 0).id != task(p, "refined", "frames", 1).id


def test_a_scene_is_prepared_once_before_all_else(tmp_path):
    text = BASE.replace('source = "lr"', 'source = "{prepared}/lr"\nprepare = "make-scene {task}/lr"')
    text = text.replace("eval = true", 'eval = true, hr_root = "{prepared}/hr"')
    p = make_plan(study(tmp_path, "", text))
    first = next(iter(p.tasks.values()))
    assert (first.kind, first.commands[0].words) == ("scene", ("make-scene", f"{p.folder(first.id)}/lr"))
    assert first.id in task(p, "single", "frames").needs
    assert f"--source_path={p.folder(first.id)}/lr" in words(task(p, "single", "frames"), "order")
    for t in p.tasks.values():
        assert not [w for c in t.commands for w in c.words if "{prepared}" in w]
    assert f"--hr_root={p.folder(first.id)}/hr" in words(task(p, "single", "frames"), "frames")


GRAPH = """
[variants.graph]
upsample = {flow = "geometry", propagation = "graph"}
lr_model = {max_gaussians = 500}
flags = {iterations = 50}
[variants.depth]
upsample = {flow = "geometry", propagation = "graph"}
lr_model = {max_gaussians = 500}
train = {depths = "{geometry}/geometry", confidence = "{frames}/hr/confidence"}
"""


def test_flow_from_geometry_brings_a_model_of_the_lr_views(tmp_path):
    p = plan(tmp_path, GRAPH)
    frames = [task(p, "graph", "frames", seed) for seed in (0, 1)]
    lr = [p.tasks[next(n for n in f.needs if n.startswith("lr-"))] for f in frames]
    assert lr[0].id != lr[1].id  # a training depends on the seed, and so do the frames from its depth
    train, geometry = lr[0].commands
    assert {"--frames=none", "--max_gaussians=500", f"--model_path={p.folder(lr[0].id)}/lr_model"} <= set(train.words)
    assert "--iterations=50" not in train.words  # flags speak of the model that is wanted, not of this one
    assert (train.record, geometry.record) == (("lr_model", "train"), (".", "geometry"))
    assert {"--geometry", f"--output_path={p.folder(lr[0].id)}"} <= set(geometry.words)
    assert f"--geometry={p.folder(lr[0].id)}/geometry" in words(frames[0], "upsample")
    model = words(task(p, "depth", "model"), "train")
    assert f"--depths={p.folder(lr[0].id)}/geometry" in model
    assert f"--confidence={p.folder(frames[0].id)}/hr/confidence" in model
    assert not [w for w in words(task(p, "single", "frames"), "upsample") if w.startswith("--geometry")]


def test_a_start_from_the_model_of_the_lr_views_brings_it(tmp_path):
    text = GRAPH + (
        "[variants.start]\nupsample = {flow = 'geometry', propagation = 'graph'}\nlr_model = {max_gaussians = 500}\n"
        "train = {init_points = 'lr_model'}\n"
        "[variants.named]\nlr_model = {iterations = 70}\ntrain = {init_points = 'hull', init_ply = '{lr_model.ply}'}\n"
    )
    p = plan(
        tmp_path,
        text,
        BASE.replace("[variants.bound]", "[variants.bound.train]\ninit_points = 'lr_model'\n[variants.bound]"),
    )
    frames, model = task(p, "start", "frames"), task(p, "start", "model")
    (depths,) = {n for n in frames.needs if n.startswith("lr-")}
    assert depths in model.needs  # the same task that the frames' flow comes from
    ply = f"--init_ply={p.folder(depths)}/lr_model/point_cloud/iteration_3000/point_cloud.ply"
    assert ply in words(model, "train")
    assert task(p, "start", "frames").id == task(p, "graph", "frames").id
    named = [w for w in words(task(p, "named", "model"), "train") if w.startswith("--init_ply")]
    assert len(named) == 1
    assert named[0].endswith("/lr_model/point_cloud/iteration_70/point_cloud.ply")
    bound = task(p, "bound", "model")
    assert "--init_points=scene" in words(bound, "train")
    assert not [n for n in bound.needs if n.startswith("lr-")]


def test_one_scene_in_place_of_those_of_the_file(tmp_path):
    whole = study(tmp_path, "[variants.there]\nscenes = ['toy']\n")
    p = make_plan(whole, source="given/scene")
    assert {r.variant for r in p.runs} == {"single", "low"}  # no truth was named: no bound; `there` is for toy only
    named = restrict(whole, (), ["there"], (), "x")
    assert {r.variant for r in make_plan(named, source="given/scene").runs} == {"there"}
    with_truth = make_plan(whole, source="given/scene", hr="given/hr")
    absolute = make_plan(whole, source=str(Path("given/scene").absolute()), hr=str(Path("given/hr").absolute()))
    assert with_truth.tasks == absolute.tasks  # a recipe that says "scene" would be another one in another folder
    bound = words(task(with_truth, "bound", "model"), "train")
    assert f"--source_path={Path('given/hr').absolute()}" in bound
    (tmp_path / "c.toml").write_text("[train]\niterations = 77\n")
    other = make_plan(with_overrides(whole, ["--config", str(tmp_path / "c.toml"), "--lambda_tex", "0.5"], "x"))
    assert {"--iterations=77", "--lambda_tex=0.5"} <= set(words(task(other, "low", "model"), "train"))


def test_the_configuration_s_method_is_that_of_variants_that_say_none(tmp_path):
    (tmp_path / "c.toml").write_text('method = "sequence_matters"\n')
    p = plan(tmp_path, '[variants.ours]\nmethod = "seqsplat"\n', 'config = "c.toml"\n' + BASE)
    assert "--compat=sequence_matters" in words(task(p, "single", "model"), "train")
    assert not [w for w in words(task(p, "ours", "model"), "train") if "compat" in w]


def test_words_of_commands_that_prepare_and_that_precede_rendering(tmp_path):
    for word in ("prepared", "source", "frames", "geometry"):
        text = BASE.replace('source = "lr"', f'source = "{{prepared}}/lr"\nprepare = "make {{{word}}}"')
        with pytest.raises(UserError, match=f"{{{word}}} means nothing here; there are device, task, threads"):
            plan(tmp_path, "", text)
    p = plan(tmp_path, '[variants.x]\nbefore = {render = "look {source}"}\n')
    assert words(task(p, "x", "views"), "command") == ["look", str(Path("lr").absolute())]


def test_a_command_that_is_told_the_seed_is_one_for_each(tmp_path):
    text = 'seeds = [0, 7]\nupsample = {upsampler = "bicubic"}\nbefore = {upsample = "draw'
    p = plan(tmp_path, f'[variants.x]\n{text} --seed {{seed}}"}}\n[variants.y]\n{text}"}}\n')
    drawn, same = ({r.frames: p.tasks[r.frames] for r in p.runs if r.variant == v} for v in "xy")
    assert sorted(words(t, "command")[-1] for t in drawn.values()) == ["0", "7"]
    assert sorted(t.seed for t in drawn.values()) == [0, 7]
    assert [t.seed for t in same.values()] == [None]


def test_settings_of_the_truth_alone(tmp_path):
    p = make_plan(study(tmp_path, "", BASE.replace("flags = {eval = true}", 'hr_flags = {images = "images_gt"}')))
    assert "--images=images_gt" in words(task(p, "bound", "model"), "train")
    assert not [w for w in words(task(p, "single", "model"), "train") if "images" in w]


def test_a_scene_without_the_training_views_truth_has_no_bound(tmp_path):
    p = plan(tmp_path, "[scenes.half]\nsource = 'x'\n")
    assert {r.scene for r in p.runs if r.variant == "bound"} == {"toy"}
    assert {r.variant for r in p.runs if r.scene == "half"} == {"single", "low"}
    with pytest.raises(UserError, match="bound: source = 'hr', but no scene says hr = FOLDER"):
        plan(tmp_path, "", base=BASE.replace('hr = "hr"\n', ""))


def test_settings_of_the_study_itself(tmp_path):
    (tmp_path / "c.toml").write_text('method = "seqsplat"\n[train]\niterations = 77\nlambda_tex = 0.9\n')
    (tmp_path / "base.toml").write_text(BASE + "[train]\nlambda_tex = 0.3\nsh_interval = 9\n")
    top = 'include = ["base.toml"]\nconfig = "c.toml"\n[train]\ninit_points = "scene"\nsh_interval = 8\n'
    p = plan(tmp_path, "", top)
    assert {"--iterations=77", "--lambda_tex=0.3", "--sh_interval=8"} <= set(words(task(p, "single", "model"), "train"))
    assert "--init_points=scene" in words(task(p, "single", "model"), "train")  # the method's own is lr_model
    assert "--lambda_tex=0.2" in words(task(p, "low", "model"), "train")  # a variant says it last
    with pytest.raises(UserError, match="seed is decided by the study itself"):
        study(tmp_path, "", "flags = {seed = 3}\n" + BASE)


def test_a_part_of_a_study(tmp_path):
    whole = study(tmp_path, '[scenes.second]\nsource = "two"\nhr = "two_hr"\n')
    part = make_plan(restrict(whole, ["toy"], ["low"], [7], "x"))
    assert [(r.scene, r.variant, r.seed) for r in part.runs] == [("toy", "low", 7)]
    assert [(r.scene, r.seed) for r in make_plan(whole, source="given/scene").runs[:2]] == [("scene", 0), ("scene", 1)]
    assert {t.id for t in part.closure([part.runs[0].views])} == set(part.tasks)


def test_the_command_line_may_want_what_the_file_leaves_out(tmp_path):
    used = study(tmp_path, "", 'use = {variants = ["single"]}' + BASE)
    assert {r.variant for r in make_plan(used).runs} == {"single"}
    assert {r.variant for r in make_plan(restrict(used, (), ["low"], (), "x")).runs} == {"low"}
    assert {r.variant for r in make_plan(restrict(used, (), (), [3], "x")).runs} == {"single"}
    two = study(tmp_path, "[scenes.second]\nsource = 'two'\n", 'use = {scenes = ["toy"]}' + BASE)
    assert {r.scene for r in make_plan(two).runs} == {"toy"}
    assert {r.scene for r in make_plan(restrict(two, ["second"], (), (), "x")).runs} == {"second"}


def test_variables_and_included_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_DATA", "/data")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.toml").write_text('config = "c.toml"\n[variants.mine]\nsteps = ["train"]\n')
    (tmp_path / "more" / "c.toml").write_text("[train]\niterations = 5\n")
    text = 'include = ["more/base.toml"]\n[scenes.a]\nsource = "$TOY_DATA/lr"\n'
    p = make_plan(study(tmp_path, text, ""))
    train = words(task(p, "mine", "model"), "train")
    assert {"--iterations=5", "--source_path=/data/lr"} <= set(train)
    monkeypatch.delenv("TOY_DATA")
    with pytest.raises(UserError, match="TOY_DATA is not set"):
        make_plan(study(tmp_path, text, ""))


def test_one_scene_in_place_of_the_file_s_is_not_called_as_the_mean_is(tmp_path):
    with pytest.raises(UserError, match="/all: a scene 'all': tables call the mean over scenes so"):
        plan(tmp_path, source=str(tmp_path / "all"))


def test_one_run_of_the_plan_with_what_it_needs(tmp_path):
    p = plan(tmp_path)
    run = p.runs[3]
    assert set(wanted_tasks(p, 3)) == {run.frames, run.model, run.views}
    assert sorted(t.kind for t in p.closure(wanted_tasks(p, 3))) == ["frames", "lr", "model", "views"]
    assert {t.id for t in p.closure(wanted_tasks(p, -1))} == set(p.tasks)
