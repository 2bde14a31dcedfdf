"""`python -m priors`: the list, and one strict load with one step of each family that needs no other file."""

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from priors.__main__ import main
from priors.verify import LOADERS, Options, one_step, verify
from tests.priors import tiny_models as tiny
from utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ldm_sr")
    tiny.ldm_sr_pipeline().save_pretrained(path)
    return path


def test_list(capsys):
    main(["list"])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {row[0] for row in rows} >= {"ldm_sr", "sd_x4", "sdxl", "sd3", "stablesr", "diffbir_v2", "seesr", "addsr"}
    assert all(len(row) >= 4 for row in rows)
    stablesr = next(row for row in rows if row[0] == "stablesr")
    assert "non-commercial" in stablesr[1]


def test_verify_prints_hashes_and_licence(folder, capsys):
    main(["verify", "ldm_sr", "--model", str(folder)])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    printed = {row[0]: row[-1] for row in rows}
    assert printed["licence"] == "Apache-2.0"
    assert len(printed["sample"]) == len(printed["file"]) == 64
    assert [row[1].partition("/")[0] for row in rows if row[0] == "file"] == ["unet", "vqvae"]


def test_the_sample_is_that_of_the_seed(folder):
    first, second = (verify("ldm_sr", Options(model=str(folder))) for _ in "ab")
    assert first == second
    assert first.lines()[-1].count(" ") > 4


def test_a_base_generator(tmp_path):
    model = tiny.save_sdxl(tmp_path / "sdxl")
    report = verify("sdxl", Options(model=str(model)))
    assert report.numbers[1] > 0


def test_a_straight_path(tmp_path):
    model = tiny.save_sd3(tmp_path / "sd3")
    assert len(verify("sd3", Options(model=str(model), texts=str(model / "texts.safetensors"))).sample) == 64


def test_every_family_has_a_loader():
    assert set(LOADERS) == {"ldm_sr", "sd_x4", "sdxl", "sd3", "stablesr", "diffbir", "seesr", "resshift"}


def test_one_step_of_a_chain_from_the_lr_view(tmp_path):
    from priors.denoisers.resshift import VQ_F4, load_resshift

    network, autoencoder, *_ = tiny.save_resshift(tmp_path)
    prior = load_resshift(network, autoencoder, 4, shape=tiny.SMALL_SWIN, vq=VQ_F4 | tiny.SMALL_VQ)
    assert one_step(prior).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "stablesr"], "allows no commercial use"),
        (["verify", "ldm_sr"], "not on this machine"),
        (["verify", "sd3"], "gated"),
        (["verify", "seesr"], "published as a folder"),
        (["verify", "diffbir_v2.1"], "--base"),
        (["verify", "diffbir_v2"], "v2.pth not found"),
        (["verify", "no_such"], "no published model"),
        (["verfy"], "a command is expected"),
        (["verify", "ldm_sr", "--modle", "x"], "did you mean --model"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        main(words)
    assert "\n" not in str(error.value)
