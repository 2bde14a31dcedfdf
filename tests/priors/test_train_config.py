"""The configuration file: comments, keys, and one line for everything that is wrong."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priors.denoisers.tiny import ProcessSpec
from priors.train_config import fingerprint, make_config, read_config
from priors.train_form import without_comments
from tests.priors_factory import small_config
from utils.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "priors"
ROOT = Path("pictures")


def published() -> dict:
    """The form of the multi-frame SR3 code, its values in the order of its file."""
    data = {"name": "CelebvHQ", "mode": "HR", "dataroot": "data", "datatype": "img", "l_resolution": 16}
    data |= {"r_resolution": 128, "batch_size": 4, "num_workers": 8, "use_shuffle": True, "data_len": -1}
    beta = {"schedule": "linear", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 1e-2}
    unet = {"in_channel": 12, "out_channel": 3, "inner_channel": 64, "channel_multiplier": [1, 2, 4, 8, 8]}
    return {
        "name": "sr",
        "phase": "train",
        "multiframes": True,
        "gpu_ids": [0],
        "path": {
            "log": "logs",
            "tb_logger": "tb",
            "results": "results",
            "checkpoint": "checkpoint",
            "resume_state": None,
        },
        "datasets": {"train": data, "val": data | {"mode": "LRHR", "data_len": 100}},
        "model": {
            "which_model_G": "sr3",
            "finetune_norm": False,
            "unet": unet | {"attn_res": [16], "res_blocks": 2, "dropout": 0.2},
            "beta_schedule": {"train": beta, "val": beta},
            "diffusion": {"image_size": 128, "channels": 3, "n_frames": 3, "conditional": True},
        },
        "train": {
            "n_iter": 10000,
            "val_freq": 1000,
            "save_checkpoint_freq": 1000,
            "print_freq": 100,
            "optimizer": {"type": "adam", "lr": 1e-4},
            "ema_scheduler": {"step_start_ema": 5000, "update_ema_every": 1, "ema_decay": 0.9999},
        },
        "wandb": {"project": "sr_ffhq"},
    }


def changed(values: dict, name: str, value: object) -> dict:
    *path, last = name.split(".")
    owner = values
    for key in path:
        owner = owner[key]
    owner[last] = value
    return values


def test_published_form_keeps_its_meaning():
    config = make_config(published(), "f")
    net = config.network
    assert (config.objective, net.stem, net.prediction, net.frames, net.in_channels) == ("sr3", "full", "eps", 3, 12)
    assert net.widths == (64, 128, 256, 512, 512)
    assert net.attention == (False, False, False, True, False)  # 128 / 2^3 = 16
    assert config.process == ProcessSpec("vp", 2000, "linear", 1e-6, 1e-2)
    assert not config.ema.on  # listed, but used by nothing there


@pytest.mark.parametrize(
    ("objective", "channels", "stem", "prediction", "steps"),
    [
        ("sr3", 0, "unshuffle", "x0", 20),
        ("sr3", 12, "full", "eps", 20),
        ("resshift", 0, "unshuffle", "x0", 0),
        ("regression", 0, "unshuffle", "x0", 0),
    ],
)
def test_what_a_file_means_that_leaves_the_form_out(objective, channels, stem, prediction, steps):
    values = small_config(ROOT, objective=objective, model__unet__in_channel=channels)
    for name in ("stem", "prediction", "validation"):
        values.pop(name)
    config = make_config(values, "f")
    assert (config.network.stem, config.network.prediction) == (stem, prediction)
    assert config.validation.steps == steps
    values["validation"] = {"steps": 0}
    assert make_config(values, "f").validation.steps == 0
    values["validation"] = {"steps": -1}
    values["model"]["beta_schedule"] = {part: {"n_timestep": 7} for part in ("train", "val")}
    assert make_config(values, "f").validation.steps == min(steps, 7)


def test_what_has_no_effect_is_named():
    (note,) = make_config(published(), "f").notes
    assert "wandb" in note
    assert "datasets.train.num_workers" in note


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_configurations_are_read_in_silence(path):
    config = read_config(path)
    assert config.name == path.stem
    assert not config.notes


def test_shipped_frames_are_those_of_the_name():
    for path in CONFIGS.glob("*_f?.json"):
        assert read_config(path).network.frames == int(path.stem[-1])


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_without_comments_stays_as_it_is(value):
    text = json.dumps(value, indent=1, ensure_ascii=False)
    assert without_comments(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1} // c', {"a": 1}),
        ('// c\n{"a": "b//c"}', {"a": "b//c"}),
        ('{"a": "http://x", // "b": 2,\n "c": 3}', {"a": "http://x", "c": 3}),
        ('{"a": "\\"//" // c"\n}', {"a": '"//'}),
        ('{"a": "\\\\" // c"\n}', {"a": "\\"}),
        ('{"a": 1 /// c // d\n}', {"a": 1}),
    ],
)
def test_comments_end_with_their_line_and_never_begin_in_a_string(text, value):
    assert json.loads(without_comments(text)) == value


def test_comments_keep_line_numbers(tmp_path):
    (tmp_path / "c.json").write_text('{\n// one\n"a": 1,\n"b" 2}')
    with pytest.raises(UserError, match="line 4"):
        read_config(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.unet.in_channel", 6, r"model.unet.in_channel = 6: .* has 12"),
        ("model.diffusion.n_frames", 5, "has 18"),
        ("model.diffusion.n_frames", 4, "no middle one"),
        ("model.which_model_G", "ddpm", "no other network"),
        ("model.diffusion.conditional", False, "sees the LR view"),
        ("model.finetune_norm", True, "all weights"),
        ("multiframes", False, "n_frames = 1"),
        ("datasets.train.datatype", "lmdb", "img, moving"),
        ("datasets.val.r_resolution", 64, "other resolutions"),
        ("datasets.train.dataroot", "", "prepare_frames.py"),
        ("datasets.train.data_len", 0, "data_len"),
        ("datasets.val.part", "train", '"moving" parts its pictures'),
        ("datasets.val.part", "right", "train, val"),
        ("model.diffusion.image_size", 64, "image_size = 64"),
        ("model.unet.dropout", "0.2", "a number is expected"),
        ("model.unet.channel_multiplier", [1, -2], "a list is expected"),
        ("train.n_iter", 0, "1 or more"),
        ("train.n_itr", 5, "did you mean 'n_iter'"),
        ("train.optimizer.lr", True, "a number is expected"),
        ("train.optimizer.type", "sgd", "adam, adamw"),
        ("objective", "gan", "sr3, resshift, regression"),
        ("objective", "regression", "has 9"),
        ("stem", "unshuffle", "in_channel = 12"),
        ("prediction", "noise", "x0, eps, v"),
        ("path.checkpoint", "../elsewhere", "name of a folder"),
        ("path", "x", "an object is expected"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(name, value, message):
    values = changed(published(), name, value)
    with pytest.raises(UserError, match=message) as caught:
        make_config(values, "my.json")
    assert str(caught.value).startswith("my.json: ")
    assert "\n" not in str(caught.value)


def test_folded_noise_is_not_predicted():
    with pytest.raises(UserError, match="learns nothing"):
        make_config(small_config(ROOT, prediction="eps"), "f")


def test_resshift_predicts_x0_only():
    with pytest.raises(UserError, match='"resshift" predicts "x0"'):
        make_config(small_config(ROOT, objective="resshift", prediction="v"), "f")


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b"", b'{"a": NaN}', b'{"a": 1, "a": 2}'])
def test_files_that_are_no_configuration(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.json"):
        read_config(tmp_path / "c.json")


def test_missing_file():
    with pytest.raises(UserError, match="no such configuration"):
        read_config("nowhere.json")


def test_regression_has_no_x_among_its_channels():
    net = make_config(small_config(ROOT, objective="regression"), "f").network
    assert (net.noisy, net.in_channels) == (False, 3 * 3 + 3 * 2 * 2)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"train__n_iter": 99}, True),
        ({"validation__steps": 7}, True),
        ({"seed": 1}, False),
        ({"train__optimizer__lr": 0.1}, False),
        ({"objective": "regression"}, False),
        ({"datasets__train__stride": 2}, False),
    ],
)
def test_fingerprint_holds_what_decides_the_weights(changes, same):
    before, after = (fingerprint(make_config(v, "f")) for v in (small_config(ROOT), small_config(ROOT, **changes)))
    assert (before == after) is same


def test_length_of_a_cosine_schedule_decides_the_weights():
    cosine = {"train__optimizer__schedule": "cosine"}
    one = fingerprint(make_config(small_config(ROOT, **cosine), "f"))
    assert one != fingerprint(make_config(small_config(ROOT, **cosine, train__n_iter=99), "f"))
