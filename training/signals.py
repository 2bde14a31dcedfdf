"""SIGINT and SIGTERM: before training they end the process with 128 + n; during it the iteration is finished first.

No heavy import here: the handlers stand before torch is loaded.
"""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The first signal is noted while `deferred`, else it ends the process; the second ends it at once."""

    def __init__(self) -> None:
        self.signum = 0
        self.deferred = False
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum or not self.deferred:
            # Every file is written under a temporary name, so dying here tears none.
            os._exit(128 + signum)
        self.signum = signum
