"""What all tests share: where the development data lie, that nothing talks to the network, which device is meant."""

import contextlib
import fcntl
import os
import runpy
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: spinning threads starve each other
# torch looks once, at its first matrix product on a GPU, whether a fixed order can be had; any test may ask for one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest

with contextlib.suppress(ImportError):  # beartype is not on every machine
    import tests.typecheck  # noqa: F401 (named by --jaxtyping-packages)

SHARED = Path(__file__).resolve().parents[2] / "shared"
if (SHARED / "data").is_dir():
    os.environ.setdefault("SEQSPLAT_DATA", str(SHARED / "data"))
if (SHARED / "weights").is_dir():
    os.environ.setdefault("SEQSPLAT_WEIGHTS", str(SHARED / "weights"))


OFFLINE = Path(__file__).resolve().parent / "offline"
runpy.run_path(str(OFFLINE / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])])


def _raise_loopback() -> None:
    """In a network namespace of its own (`unshare -rn make test`) the loopback interface starts down: raise it."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        answer = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", answer)[1]
        if not flags & up:
            fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags | up))


_raise_loopback()


def _folder(variable: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if not os.environ.get(variable) or not path.is_dir():
        pytest.skip(f"{variable} names no folder: the development data are not here")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real test data (lego, bonsai, Vid4, COLMAP fixture)."""
    return _folder("SEQSPLAT_DATA")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Single-image networks."""
    return _folder("SEQSPLAT_WEIGHTS")


@pytest.fixture(autouse=True)
def _talkative() -> Iterator[None]:
    """--quiet of one test is not that of the next."""
    yield
    if "utils.log" in sys.modules:
        sys.modules["utils.log"].set_quiet(False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` run where there is one, and say so where there is none."""
    if item.get_closest_marker("gpu") and (reason := _without_gpu()):
        pytest.skip(reason)


def _without_gpu() -> str | None:
    from benchmarks import device  # later than SEQSPLAT_DATA, and only where a test asks

    return device.why_not()


def _device(name: str) -> Any:
    import torch

    return torch.device(name)


@pytest.fixture(scope="session")
def cuda() -> Any:
    """The GPU, torch.device; for tests marked `gpu` alone."""
    assert _without_gpu() is None, "mark this test with @pytest.mark.gpu"
    return _device("cuda:0")


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """The CPU, then the GPU, torch.device: the same test on each."""
    return _device(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="rewrite golden files (make golden)")
