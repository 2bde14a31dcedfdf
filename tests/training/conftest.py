"""What the tests of training share."""

import signal
import sys

import pytest

import train
from training.signals import SIGNALS


@pytest.fixture
def run_train(monkeypatch, capsys):
    """train.py's main, in this process, with the given words; returns what it said."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def run(argv):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
        train.main()
        return capsys.readouterr()

    yield run
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
