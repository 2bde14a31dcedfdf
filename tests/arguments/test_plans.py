"""What run.py makes of flags and configuration files: the commands of all steps, and the next one."""

import shlex

import pytest

from arguments.flags import parse_given
from arguments.loading import ModelParams
from arguments.next_step import UNDER_RUN, next_step, say_next
from arguments.pipeline import METHODS, plan
from arguments.steps import STEPS, parse
from utils.errors import UserError


def test_a_plan_gives_each_step_its_own_flags_and_they_parse(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'method = "seqsplat"\n[scene]\neval = true\n[train]\niterations = 70\n[order]\nordering = "tour"\n'
    )
    commands = plan(
        ["-s", "scene", "-m", "out", "--config", str(config), "--seed", "3", "--test_iterations", "7", "70"]
    )
    assert [c.step for c in commands] == list(STEPS)  # with depth: the default network is a video network
    for command in commands:
        groups = parse(command.step, command.arguments)
        assert groups[0].seed == 3
        assert groups[0].skip_done
    train = parse("train", next(c.arguments for c in commands if c.step == "train"))
    assert train[3].iterations == 70
    assert train[1].eval


def test_a_script_alone_reads_of_a_file_what_run_py_gives_it(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        'method = "sequence_matters"\n[common]\nthreads = 2\n[scene]\neval = true\nsh_degree = 2\n'
        '[order]\nordering = "als"\n[train]\niterations = 70\nsh_degree = 1\n[metrics]\nno_lpips = true\n'
    )
    words = ["-s", "scene", "-m", "out", "--config", str(path)]
    for command in plan([*words, "--seed", "3"]):
        alone = words if command.step != "metrics" else ["-m", "out", "--config", str(path)]
        ours = parse(command.step, [*alone, "--seed", "3", "--skip_done", "--overwrite"])
        assert ours == parse(command.step, command.arguments)
        assert (ours[0].compat, ours[0].threads) == ("sequence_matters", 2)
    assert parse("train", words)[1].sh_degree == 1
    assert parse("train", [*words, "--sh_degree", "3"])[1].sh_degree == 3
    path.write_text("[trian]\na = 1\n")
    with pytest.raises(UserError, match="unknown section"):
        parse("train", words)


def test_flags_that_mean_another_thing_to_a_step_do_not_reach_it():
    commands = plan(["-s", "scene", "-m", "out", "--frames", "mine", "--output_path", "white"])
    groups = {command.step: parse(command.step, command.arguments) for command in commands}
    assert (groups["upsample"][2].frames, groups["upsample"][2].output_path) == ("", "")
    assert groups["train"][4].frames == "mine"
    assert groups["render"][3].output_path == "white"
    assert (groups["metrics"][1].frames, groups["metrics"][1].model_paths) == ("mine", ("white",))
    assert {command.step: command.folder for command in commands}["render"] == "white"


@pytest.mark.parametrize(
    ("words", "made"),  # made: the depth; the model also where training starts from it
    [
        ([], True),
        (["--flow", "geometry", "--compat", "sequence_matters"], True),
        (["--flow", "learned"], False),
        (["--propagation", "none"], False),
        (["--upsampler", "bicubic"], False),
        (["--upsampler", "rlfn"], False),
        (["--method", "sequence_matters"], False),
        (["--compat", "sequence_matters"], False),
        (["--geometry", "elsewhere"], False),
        (["--flow", "learned", "--steps", "lr_model", "geometry"], True),  # what is asked for is done
    ],
)
def test_depth_is_made_only_where_something_needs_it(words, made):
    for start in ("lr_model", "hull"):
        more = ["--init_points", start] if "--method" not in words or start == "hull" else []
        steps = [command.step for command in plan(["-s", "scene", "-m", "out", *words, *more])]
        assert ("geometry" in steps) is made
        assert ("lr_model" in steps) is (made or (start in more and "lr_model" in more))
        assert "--steps" in words or [s for s in steps if s not in ("lr_model", "geometry")] == [
            *("order", "upsample", "train", "render", "metrics")
        ]


def test_a_configuration_may_speak_to_one_method(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[train]\nlambda_tex = 0.5\nscale = 2\n[sequence_matters.train]\nlambda_tex = 0.4\n")
    words = ["-s", "scene", "-m", "out", "--config", str(config)]
    for method, more, value in (("seqsplat", [], 0.5), ("sequence_matters", [], 0.4), ("sequence_matters", [0.3], 0.3)):
        flags = ["--method", method, *(f"--lambda_tex={x}" for x in more)]
        (train,) = (c for c in plan([*words, *flags]) if c.step == "train")
        *_, optimisation, training, _ = parse("train", train.arguments)
        assert (optimisation.lambda_tex, training.scale) == (value, 2)


def test_training_starts_from_the_model_of_the_lr_views_where_the_method_says_so():
    def first(*words):
        return {c.step: c for c in plan(["-s", "scene", "-m", "out", "--upsampler", "bicubic", *words])}

    made = first()
    assert list(made) == ["order", "lr_model", "upsample", "train", "render", "metrics"]
    assert parse("train", made["train"].arguments)[4].init_points == "lr_model"
    assert parse("lr_model", made["lr_model"].arguments)[4].init_points == "scene"
    for words in (["--method", "sequence_matters"], ["--init_points", "hull"], ["--init_ply", "other.ply"]):
        assert "lr_model" not in first(*words)


def test_the_model_of_the_lr_views_has_settings_of_its_own(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[scene]\nsh_degree = 1\n[lr_model]\nmax_gaussians = 77\n[train]\nlambda_tex = 0.3\n")
    words = ["--iterations", "70", "--geometry", "depths", "--threads", "3", "--flow", "geometry", "--antialiasing"]
    steps = ["--steps", "lr_model", "geometry", "upsample", "render"]
    commands = {c.step: c for c in plan(["-s", "scene", "-m", "out", "--config", str(config), *words, *steps])}
    values = {name: parse(name, command.arguments) for name, command in commands.items()}
    common, model, pipeline, optimisation, training, guidance = values["lr_model"]
    assert guidance.sds == ""
    assert (common.threads, model.model_path, model.sh_degree) == (3, "out/lr_model", 1)
    assert (optimisation.iterations, optimisation.max_gaussians, optimisation.lambda_tex) == (3000, 77, 0.6)
    assert (training.frames, training.init_points, pipeline.antialiasing) == ("none", "scene", False)
    assert (commands["lr_model"].folder, commands["lr_model"].record) == ("out/lr_model", "train")
    _, model, _, render = values["geometry"]
    assert (model.model_path, render.output_path, render.geometry) == ("out/lr_model", "out", True)
    assert (commands["geometry"].folder, commands["geometry"].record) == ("out", "geometry")
    assert values["upsample"][2].geometry == "depths"
    assert values["render"][3].geometry is False


def test_the_next_command_carries_every_loading_flag():
    words = ["-s", "my scene", "--eval", "-r", "-1", "--hr_root=a b", "-i", "i_2", "--compat", "sequence_matters"]
    given = parse_given("", "", STEPS["upsample"].groups, [*words, "-m", "out", "--scale", "2"])
    line = next_step("train", "out", given)
    assert line.startswith("next: python train.py -s 'my scene' -m out ")
    common, again = parse("train", shlex.split(line.removeprefix("next: python train.py ")))[:2]
    assert again == ModelParams(source_path="my scene", model_path="out", eval=True, hr_root="a b", images="i_2")
    assert common.compat == "sequence_matters"
    assert next_step("train", "m", {"source_path": "s", "model_path": "m"}) == "next: python train.py -s s -m m"


def test_the_next_command_stays_with_the_configuration_file(monkeypatch, capsys):
    words = ["-s", "lr", "-m", "out", "--config", "c.toml", "--images", "photos"]
    monkeypatch.setattr("sys.argv", ["vsr_upsample.py", *words])
    say_next("upsample", "train", "out")
    assert capsys.readouterr().out == "next: python train.py -s lr -m out --config c.toml --images=photos\n"
    say_next("train", "render", "out")  # which knows from OUT what was loaded
    assert capsys.readouterr().out == "next: python render.py -m out --config c.toml\n"
    monkeypatch.setenv(UNDER_RUN, "1")
    say_next("upsample", "train", "out")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\na = 1\n", "unknown section"),
        ("[seqsplat.trian]\na = 1\n", r"unknown section \[seqsplat.trian\]; .*METHOD.STEP"),
        ("[seqsplat.train]\nsacle = 1\n", r"\[seqsplat.train\].*sacle"),
        ("[seqsplat]\nscale = 1\n", "unknown section|a section .seqsplat.scale. of a step's settings"),
        ("train = 3\n", r"train = 3: a section \[train\] is expected"),
        ("[seqsplat]\ntrain = 1\n", r"a section \[seqsplat.train\] of a step's settings"),
        ("[train]\nlamda_tex = 1.0\n", "did you mean 'lambda_tex'"),
        ('method = "x"\n', "one of"),
    ],
)
def test_a_wrong_plan(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        plan(["-s", "scene", "-m", "out", "--config", str(tmp_path / "c.toml")])


def test_a_plan_needs_a_scene():
    with pytest.raises(UserError, match="-s SCENE"):
        plan(["-m", "out"])


@pytest.mark.parametrize("config", ["blender", "mip360"])
def test_the_shipped_configurations_parse(config):
    commands = plan(["-s", "scene", "-m", "out", "--config", f"configs/{config}.toml"])
    assert all(parse(c.step, c.arguments) for c in commands)
    assert set(METHODS) == {"seqsplat", "sequence_matters"}
