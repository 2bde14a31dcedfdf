"""The table of published models, and files: found, vouched for, read without running anything in them."""

import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file

from priors import checkpoints, verify
from priors.checkpoints import CHECKPOINTS, File, load_into, located, read_tensors, vouched
from utils.errors import UserError


def _write(folder, name="x.pth", content=b"weights"):
    path = folder / name
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def test_every_entry_can_be_loaded_and_read_about():
    for name, found in CHECKPOINTS.items():
        assert name == found.name
        assert found.family in verify.LOADERS
        assert found.source.startswith("https://")
        assert found.licence
        assert found.model or found.files or found.folder
        assert all(not file.url or file.url.startswith("https://") for file in found.files)
        assert found.model or found.family == "resshift" or found.base or "--base" in found.notice


def test_no_entry_points_to_what_was_withdrawn():
    assert not any(
        "stable-diffusion-2" in i and i.startswith("stabilityai/")
        for c in CHECKPOINTS.values()
        for i in (c.base, c.model)
    )


def test_licences_without_commercial_use_must_be_accepted():
    needing = [c for c in CHECKPOINTS.values() if not c.commercial]
    assert {c.family for c in needing} == {"stablesr", "resshift"}
    for found in needing:
        with pytest.raises(UserError, match="--accept_licence") as error:
            found.accepted(False)
        assert found.licence in str(error.value)
        assert found.source in str(error.value)
        found.accepted(True)
    checkpoints.checkpoint("ldm_sr").accepted(False)


def test_unknown_names_say_what_is_known():
    with pytest.raises(UserError, match="known: ldm_sr"):
        checkpoints.checkpoint("ldm")


def test_files_are_vouched_for(tmp_path):
    path, digest = _write(tmp_path)
    with pytest.raises(UserError, match=f"--trust_weights {digest}"):
        located(File("x.pth"), tmp_path)
    with pytest.raises(UserError, match=f"SHA-256 is {digest}"):
        located(File("x.pth"), tmp_path, trust="0" * 64)
    assert located(File("x.pth"), tmp_path, trust=digest.upper()) == path
    assert located(File("other.pth"), path, trust=digest) == path  # the file itself may be named
    assert located(File("x.pth", sha256=digest), tmp_path) == path
    with pytest.raises(UserError, match="SHA-256"):
        located(File("x.pth", sha256="1" * 64), tmp_path)


def test_all_files_of_a_system(tmp_path):
    found = checkpoints.checkpoint("resshift_bicsrx4_s4")
    written = [_write(tmp_path, file.name, file.name.encode()) for file in found.files]
    trust = [digest for _, digest in written]
    with pytest.raises(UserError, match="--accept_licence"):
        vouched(found, tmp_path, trust)
    assert vouched(found, tmp_path, trust, accept_licence=True) == [path for path, _ in written]
    with pytest.raises(UserError, match="no checksum is published"):
        vouched(found, tmp_path, trust[:1], accept_licence=True)


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path / "given"))
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"given.*cache.*fetch x\.pth from https://a/x\.pth"):
        located(File("x.pth", "https://a/x.pth"))
    (tmp_path / "cache/weights").mkdir(parents=True)
    path, digest = _write(tmp_path / "cache/weights")
    assert located(File("x.pth"), trust=digest) == path
    with pytest.raises(UserError, match="give --trust_weights SHA256 with --download"):
        located(File("y.pth", "https://a/y.pth"), download=True)


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_tensors_are_read_out_of_their_containers(tmp_path, kind):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    path = tmp_path / f"x{kind}"
    if kind == ".pth":
        torch.save({"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    found = read_tensors(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


class Harmful:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "not a plain file"),
        (pickle.dumps({"state_dict": Harmful()}), "not a plain file"),
        (b"", "not a plain"),
    ],
)
def test_files_that_are_none_of_tensors_are_refused(tmp_path, capsys, content, message):
    path, _ = _write(tmp_path, content=content)
    with pytest.raises(UserError, match=message) as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"state_dict": {"a": 3}}, {}, torch.ones(2), {"a": torch.ones(2).to_sparse()}])
def test_contents_that_are_no_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="refused"):
        read_tensors(tmp_path / "x.pth")


def test_loading_is_strict(tmp_path):
    with torch.device("meta"):
        network = torch.nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2, dtype=torch.float16), "bias": torch.zeros(3)}
    with pytest.raises(UserError, match=r"1 missing, e\.g\. bias"):
        load_into(network, {"weight": state["weight"]}, "x")
    with pytest.raises(UserError, match=r"1 left over, e\.g\. more"):
        load_into(network, state | {"more": torch.ones(1)}, "x")
    load_into(network, state, "x")
    assert network.weight.dtype == torch.float32
    assert network.weight.device.type == "cpu"
