"""Models of the hub: the state that was used is recorded, another one is another input, and an id may name one."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")

import huggingface_hub.constants

import vsr_upsample
from arguments.priors import PriorParams
from priors.denoisers.ldm_sr import load_ldm_sr
from priors.denoisers.loading import hub_state, model_folder
from priors.published import hub_ids
from priors.samplers import hub_commits, input_files
from priors.verify import Options, verify
from tests.priors import tiny_models as tiny
from tests.priors_factory import smooth_picture
from utils.errors import UserError
from utils.keys import make_key

ID, FIRST, SECOND = "maker/tiny-ldm", "a" * 40, "b" * 40


@pytest.fixture
def refs(tmp_path, monkeypatch):
    """The folder of names of states, in a cache of the hub that holds one model in two of them; main is FIRST."""
    model = tmp_path / "cache" / "models--maker--tiny-ldm"
    tiny.ldm_sr_pipeline().save_pretrained(model / "snapshots" / FIRST)
    shutil.copytree(model / "snapshots" / FIRST, model / "snapshots" / SECOND)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(FIRST)
    (model / "refs" / "v2").write_text(SECOND)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return model / "refs"


def test_the_state_is_the_cached_one_or_the_one_that_the_id_names(refs):
    assert hub_state(ID) == (FIRST, [refs / "main"])
    assert hub_state(f"{ID}@v2") == (SECOND, [refs / "v2"])
    assert hub_state(f"{ID}@{SECOND}") == (SECOND, [])
    assert hub_state("maker/unknown") == ("", [])
    assert hub_state(str(refs.parent)) == ("", [])


def test_networks_and_settings_are_those_of_the_state(refs):
    vqvae = refs.parent / "snapshots" / SECOND / "vqvae" / "config.json"
    vqvae.write_text(json.dumps(json.loads(vqvae.read_text()) | {"scaling_factor": 0.25}))
    assert load_ldm_sr(f"{ID}@v2").space.vae.config.scaling_factor == 0.25
    assert load_ldm_sr(ID).space.vae.config.scaling_factor != 0.25
    with pytest.raises(UserError, match=r"maker/tiny-ldm@v3/.*not on this machine"):
        load_ldm_sr(f"{ID}@v3")


def test_a_moved_model_is_another_input_and_the_record_says_the_commit(refs, tmp_path, monkeypatch, capsys):
    (tmp_path / "lr").mkdir()
    Image.fromarray(np.asarray(smooth_picture(16, 16, 0))).save(tmp_path / "lr" / "0.png")
    words = ["--frames", str(tmp_path / "lr"), "-o", str(tmp_path / "out"), "--upsampler", "ldm_sr", "--model", ID]
    words += ["--prior_steps", "2", "--device", "cpu", "--skip_done"]
    monkeypatch.setattr("sys.argv", ["vsr_upsample.py", *words])

    def commits():
        vsr_upsample.main()
        return json.loads((tmp_path / "out" / "run.json").read_text())["steps"]["upsample"]["notes"]["models"]

    assert commits() == {ID: FIRST}
    assert commits() == {ID: FIRST}
    assert "up to date" in capsys.readouterr().err
    (refs / "main").write_text(SECOND)
    assert commits() == {ID: SECOND}
    assert "its input weights changed" in capsys.readouterr().err


def test_the_state_is_known_without_files_that_loading_leaves_aside(refs):
    (refs.parent / "snapshots" / FIRST / "model_index.json").unlink()
    assert hub_state(ID) == (FIRST, [refs / "main"])
    assert len(verify("ldm_sr", Options(model=ID)).files) == 2
    shutil.rmtree(refs.parent)
    with pytest.raises(UserError, match="maker/tiny-ldm/: not on this machine"):
        model_folder(ID)


@pytest.mark.parametrize(
    ("name", "params", "ids"),
    [
        ("ldm_sr", PriorParams(), ["CompVis/ldm-super-resolution-4x-openimages"]),
        ("ddnm_sd3", PriorParams(), ["stabilityai/stable-diffusion-3.5-medium"]),
        ("diffusehigh", PriorParams(model="maker/own"), ["maker/own"]),
        ("seesr", PriorParams(base="maker/sd2"), ["maker/sd2"]),
        ("small", PriorParams(model="file.safetensors"), []),
        ("resshift", PriorParams(), []),
    ],
)
def test_which_ids_a_system_stands_on(name, params, ids):
    assert hub_ids(name, params) == ids


def test_a_folder_is_hashed_and_has_no_commit(refs):
    folder = str(refs.parent / "snapshots" / FIRST)
    assert hub_commits("ldm_sr", PriorParams(model=folder)) == {}
    key = make_key({}, {"weights": input_files("ldm_sr", PriorParams(model=folder))}, (), 0)
    assert key["inputs"]["weights"]["files"] > 3


def test_an_unknown_release_is_one_line():
    with pytest.raises(UserError, match="no published model named 'x'"):
        hub_ids("diffbir", PriorParams(release="x"))
    with pytest.raises(UserError, match="--release seesr: is not one of --upsampler ddnm_sd3"):
        hub_ids("ddnm_sd3", PriorParams(release="seesr"))
    with pytest.raises(UserError, match="--release v2: --upsampler small has none"):
        hub_ids("small", PriorParams(release="v2"))
