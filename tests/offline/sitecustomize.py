"""No way out: sockets reach this machine only. Python imports this file by its name at every start of a child."""

import socket


def _inside(family: int, address: object) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0] if isinstance(address, tuple) else address)
    return host in ("localhost", "::1", "0.0.0.0", "") or host.startswith("127.")


def _guarded(method):
    def call(self, *args):
        # connect(address), connect_ex(address), sendto(data[, flags], address)
        if not _inside(self.family, args[-1]):
            raise AssertionError(f"a test reached for {args[-1]}")
        return method(self, *args)

    return call


for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guarded(getattr(socket.socket, _name)))
