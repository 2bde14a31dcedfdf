"""Flags come from dataclasses: defaults, authority, errors, and a frozen list of everything a user may type."""

import json
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from arguments.cfg_args import read_cfg_args, write_cfg_args
from arguments.flags import as_flags, opt, parse_given, parse_groups, settings
from arguments.loading import CommonParams, ModelParams
from arguments.next_step import UNDER_RUN, next_step, say_next
from arguments.paper_config import read_paper_config
from arguments.pipeline import METHODS, plan
from arguments.steps import STEPS, parse
from utils.command_line import parted
from utils.errors import UserError

FROZEN = Path(__file__).resolve().parents[1] / "golden" / "flags.json"


@dataclass(frozen=True)
class Example:
    """An example group"""

    count: int = opt(3, "a count")
    rate: float = opt(0.5, "a rate, 50 % by default", "-r")
    name: str = opt("", "a name", choices=("", "x", "y"))
    on: bool = opt(False, "a switch", result=False)
    steps: tuple[int, ...] = opt((7, 30), "some numbers")


def parsed(*words: str) -> Example:
    return parse_groups("x.py", "Example.", [Example], words, section="x")[0]


def test_defaults_and_spellings():
    assert parsed() == Example()
    assert parsed("--count=4", "-r", "-2.5", "--on", "--steps", "1", "2", "3") == Example(4, -2.5, "", True, (1, 2, 3))
    assert parse_groups("x", "", [CommonParams], ["--skip-done", "--dry_run"])[0].skip_done


def test_flags_of_settings_parse_back():
    example = Example(4, -2.5, "y", True, (1, 2))
    assert parsed(*as_flags({f.name: getattr(example, f.name) for f in fields(example)})) == example


def test_only_what_changes_a_result_is_in_the_key():
    assert settings(Example(on=True)) == {"count": 3, "rate": 0.5, "name": "", "steps": (7, 30)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cuont", "4"], "did you mean --count"),
        (["--count", "four"], "invalid int value"),
        (["--name", "z"], "invalid choice"),
        (["--rate"], "expected one argument"),
        (["stray"], "unknown flag stray"),
        (["--wrong_flag"], "unknown flag --wrong_flag; --help lists all"),  # nothing is near it
        (["--coun", "4"], "did you mean --count"),  # no silent abbreviations
    ],
)
def test_wrong_flags(words, message):
    with pytest.raises(UserError, match=message):
        parsed(*words)


def test_configuration_files_lose_to_the_command_line(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[x]\ncount = 9\nrate = 1\nsteps = [5]\n[other]\nanything = 1\n")
    assert parsed("--config", str(config)) == Example(9, 1, "", False, (5,))
    assert parsed("--config", str(config), "--count", "2").count == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x]\ncuont = 1", "did you mean 'count'"),
        ("[x]\ncount = 1.5", "a whole number is expected"),
        ("[x]\ncount = true", "a whole number is expected"),
        ('[x]\nname = "z"', "one of"),
        ('[x]\nsteps = [1, "2"]', "a list of whole numbers is expected"),
        ("[x]\nsteps = [1, true]", "a list of whole numbers is expected"),
        ("[x]\nsteps = [1.5]", "a list of whole numbers is expected"),
        ("[x\n", "c.toml"),
    ],
)
def test_wrong_configuration(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        parsed("--config", str(tmp_path / "c.toml"))


@dataclass(frozen=True)
class Alone:
    """A choice whose flag may stand alone"""

    mode: str = opt("auto", "a choice", choices=("auto", "on", "off"), nargs="?", const="on")


@pytest.mark.parametrize(
    ("words", "mode"),
    [([], "auto"), (["--mode"], "on"), (["--mode", "off"], "off"), (["--mode=auto"], "auto")],
)
def test_a_choice_may_stand_alone(words, mode):
    found = parse_groups("x.py", "Alone.", [Alone], words, section="x")[0]
    assert found.mode == mode
    assert parse_groups("x.py", "Alone.", [Alone], as_flags({"mode": found.mode}), section="x")[0] == found


def test_a_choice_that_may_stand_alone_may_be_true_in_a_file(tmp_path):
    config = tmp_path / "c.toml"
    for text, mode in (("true", "on"), ('"off"', "off")):
        config.write_text(f"[x]\nmode = {text}\n")
        assert parse_groups("x.py", "Alone.", [Alone], ["--config", str(config)], section="x")[0].mode == mode
    config.write_text("[x]\nmode = false\n")
    with pytest.raises(UserError, match="mode = False; one of auto, on, off is expected"):
        parse_groups("x.py", "Alone.", [Alone], ["--config", str(config)], section="x")


def test_cfg_args_round_trip_and_refusals(tmp_path):
    model = ModelParams(source_path=str(tmp_path), white_background=True, eval=True)
    write_cfg_args(tmp_path, model)
    values = read_cfg_args(tmp_path)
    assert values["white_background"] is True
    assert values["eval"] is True
    assert values["images"] == "images"
    attack = "Namespace(a=__import__('os').system('touch hacked'))"
    for text in (attack, "Namespace(**{'a': 1})", "Namespace(1)", "print(1)", "(" * 5000):
        (tmp_path / "cfg_args").write_text(text)
        with pytest.raises(UserError, match="not a cfg_args file"):
            read_cfg_args(tmp_path)
    with pytest.raises(UserError, match="trained model"):
        read_cfg_args(tmp_path / "nowhere")


PAPER = """
hr_source_dir: /data/hr   # parents of scene folders
vsr_model: psrt
spynet_path: null
als: false
num_images_in_sequence: 100
similarity: feature
thres_values: [45]
subpixel: bicubic
lambda_tex: 0.60
white_background: false
"""


def test_the_papers_yaml_is_accepted_and_the_command_line_wins(tmp_path):
    path = tmp_path / "blender.yml"
    path.write_text(PAPER)
    values = read_paper_config(path)
    assert values["thres_values"] == [45]
    assert values["lambda_tex"] == 0.6
    commands = plan(
        ["-s", "scene", "-m", "out", "--config", str(path), "--lambda_tex", "0.4", "--upsampler", "basicvsr"]
    )
    words = {c.step: list(c.arguments) for c in commands}
    assert "--lambda_tex=0.4" in words["train"]
    assert "--compat=sequence_matters" in words["order"]
    assert "--upsampler=basicvsr" in words["upsample"]
    assert "--similarity=feature" in words["order"]
    path.write_text("als: true\nunknown_key: 1\n")
    with pytest.raises(UserError, match="line 2: unknown key 'unknown_key'"):
        read_paper_config(path)


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


def flag_table() -> dict:
    return {
        name: {f.name: [f.metadata["short"], f.default] for group in step.groups for f in fields(group)}
        for name, step in STEPS.items()
    }


def test_the_flags_are_frozen(request):
    """Scripts in the wild rely on them: a change is made with `make golden` and explained in the commit."""
    table = json.loads(json.dumps(flag_table()))
    if request.config.getoption("--regenerate"):
        FROZEN.parent.mkdir(exist_ok=True)
        FROZEN.write_text(json.dumps(table, indent=1) + "\n")
    assert table == json.loads(FROZEN.read_text())


ORIGINAL_3DGS = {
    "sh_degree": 3,
    "resolution": -1,
    "iterations": 30000,
    "position_lr_init": 0.00016,
    "position_lr_final": 0.0000016,
    "position_lr_delay_mult": 0.01,
    "position_lr_max_steps": 30000,
    "feature_lr": 0.0025,
    "opacity_lr": 0.05,
    "scaling_lr": 0.005,
    "rotation_lr": 0.001,
    "percent_dense": 0.01,
    "lambda_dssim": 0.2,
    "densification_interval": 100,
    "opacity_reset_interval": 3000,
    "densify_from_iter": 500,
    "densify_until_iter": 15000,
    "densify_grad_threshold": 0.0002,
    "random_background": False,
    "white_background": False,
    "eval": False,
    "images": "images",
    "source_path": "",
    "model_path": "",
    "test_iterations": (7000, 30000),
    "save_iterations": (7000, 30000),
    "checkpoint_iterations": (),
    "start_checkpoint": "",
    "ip": "127.0.0.1",
    "port": 6009,
    "debug_from": -1,
    "detect_anomaly": False,
    "quiet": False,
    "convert_SHs_python": False,
    "compute_cov3D_python": False,
    "debug": False,
}


def test_the_flags_of_3dgs_keep_their_names_and_defaults():
    ours = {f.name: f.default for group in STEPS["train"].groups for f in fields(group)}
    assert {name: ours[name] for name in ORIGINAL_3DGS} == ORIGINAL_3DGS
    short = {f.metadata["short"]: f.name for group in STEPS["train"].groups for f in fields(group)}
    assert {k: short[k] for k in ("-s", "-m", "-i", "-r", "-w")} == {
        "-s": "source_path",
        "-m": "model_path",
        "-i": "images",
        "-r": "resolution",
        "-w": "white_background",
    }


@pytest.mark.parametrize(
    ("words", "names", "flags", "own"),
    [
        ("", "", "", ""),
        ("a b --flag c -- --own d", "a b", "--flag c", "--own d"),
        ("--flag a", "", "--flag a", ""),
        ("a -- b -- c", "a", "", "b -- c"),
    ],
)
def test_words_before_flags_and_after_two_hyphens(words, names, flags, own):
    assert parted(words.split()) == (names.split(), flags.split(), own.split())
