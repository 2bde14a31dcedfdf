"""Flags come from dataclasses: defaults, authority, errors, and a frozen list of everything a user may type."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from arguments.cfg_args import read_cfg_args, write_cfg_args
from arguments.flags import as_flags, opt, parse_groups, settings
from arguments.loading import CommonParams, ModelParams
from arguments.paper_config import read_paper_config
from arguments.pipeline import plan
from arguments.steps import STEPS
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
