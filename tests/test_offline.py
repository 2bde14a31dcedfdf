"""The guard itself: neither a test nor a process that it starts gets out, and both reach this machine."""

import socket
import subprocess
import sys

import pytest

OUTSIDE = ("192.0.2.1", 9)  # a documentation address (RFC 5737): no packet leaves, for the guard stops it first


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_this_process_cannot_get_out(method):
    with socket.socket() as probe, pytest.raises(AssertionError, match="reached for"):
        getattr(probe, method)(OUTSIDE)


def test_datagrams_neither():
    with socket.socket(type=socket.SOCK_DGRAM) as probe, pytest.raises(AssertionError, match="reached for"):
        probe.sendto(b"x", OUTSIDE)


def test_nor_can_a_child():
    code = f"import socket; socket.socket().connect({OUTSIDE!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "a test reached for" in done.stderr


def test_this_machine_is_in_reach():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
