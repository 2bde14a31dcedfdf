"""The images of training views on a GPU: 8-bit planes stay there as far as they fit, and are composed there.

The others wait in page-locked main memory, from which they are copied while the processor goes on.
"""

from collections import OrderedDict

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scene.alpha import composite_tensor
from scene.images import ImageStore

SHARE = 0.25  # of the GPU's memory that is free before training
WAITING_BYTES = 2 << 30  # of page-locked memory; beyond it images are decoded again
Key = tuple[int, str]  # which store, and the view


def room_for_images(device: torch.device) -> int:
    """Bytes of the GPU that images may take."""
    return int(SHARE * torch.cuda.mem_get_info(device)[0])


class DeviceImages:
    """8-bit planes of views for one device.

    Parameters
    ----------
    device : where `load` delivers. room_bytes : of it for planes that stay; 0 = none does.
    waiting_bytes : of main memory for the others; the least recently used go first.
    """

    def __init__(self, device: torch.device, room_bytes: int, waiting_bytes: int = WAITING_BYTES) -> None:
        self.device, self.room_bytes, self.waiting_bytes = device, room_bytes, waiting_bytes
        self.there: dict[Key, Tensor] = {}
        self.waiting: OrderedDict[Key, Tensor] = OrderedDict()

    def load(self, store: ImageStore, name: str, background: tuple[float, float, float]) -> Float[Tensor, "3 H W"]:
        """What `store.load` gives, bit for bit, on the device; nobody waits for it."""
        key = (id(store), name)
        planes = self.there.get(key)
        if planes is None:
            waiting = self._waiting(store, key)
            planes = waiting.to(self.device, non_blocking=True)
            if waiting.numel() <= self.room_bytes:
                self.room_bytes -= waiting.numel()
                self.there[key] = planes
                self.waiting.pop(key)
        return composite_tensor(planes, background, truncate=store.truncate)

    def _waiting(self, store: ImageStore, key: Key) -> UInt8[Tensor, "C H W"]:
        if key in self.waiting:
            self.waiting.move_to_end(key)
            return self.waiting[key]
        planes = torch.tensor(np.ascontiguousarray(store.decode(key[1]).transpose(2, 0, 1)))
        if self.device.type == "cuda":
            planes = planes.pin_memory()
        self.waiting[key] = planes
        while len(self.waiting) > 1 and sum(p.numel() for p in self.waiting.values()) > self.waiting_bytes:
            self.waiting.popitem(last=False)
        return planes
