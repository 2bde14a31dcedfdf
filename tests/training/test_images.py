"""Images for a device: the same bits as from the store, wherever they wait."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scene.alpha import composite_planes, composite_tensor
from scene.image_files import write_png
from scene.images import ImageStore
from training.images import DeviceImages

PIXELS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([3, 4]))
LEVEL = st.sampled_from([0.0, 1.0, 0.5, 1 / 3, 0.123456789])


@given(hnp.arrays(np.uint8, PIXELS), st.tuples(LEVEL, LEVEL, LEVEL), st.booleans())
def test_a_tensor_is_composed_like_an_array(image, background, truncate):
    planes = torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    expected = composite_planes(image, background, truncate=truncate)
    assert np.array_equal(composite_tensor(planes, background, truncate=truncate).numpy(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("truncate", [False, True])
def test_the_gpu_composes_the_same_bits(cuda, channels, truncate):
    image = np.random.default_rng(0).integers(0, 256, (67, 45, channels)).astype(np.uint8)
    planes = torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    for background in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.123456789, 0.5, 1 / 3)):
        expected = composite_planes(image, background, truncate=truncate)
        found = composite_tensor(planes.to(cuda), background, truncate=truncate).cpu().numpy()
        assert np.array_equal(found, expected)


@pytest.fixture
def stores(tmp_path):
    """Two stores with the same names: an HR and an LR one."""
    made = []
    for folder, channels, size in (("hr", 4, 12), ("lr", 3, 6)):
        (tmp_path / folder).mkdir()
        paths = {f"v{i}": tmp_path / folder / f"v{i}.png" for i in range(4)}
        for i, path in enumerate(paths.values()):
            write_png(path, np.random.default_rng(i).integers(0, 256, (size, size, channels)).astype(np.uint8))
        made.append(ImageStore(paths))
    return made


# one HR image has 576 bytes, one LR image 108
@pytest.mark.parametrize(
    ("room", "waiting", "there", "left"), [(10**6, 10**6, 8, 0), (700, 10**6, 2, 6), (0, 10**6, 0, 8), (0, 200, 0, 1)]
)
def test_what_is_loaded_does_not_depend_on_where_it_waits(stores, room, waiting, there, left, device):
    images = DeviceImages(device, room, waiting)
    for _ in range(2):
        for name in ("v0", "v1", "v2", "v3"):
            for store in stores:
                found = images.load(store, name, (1.0, 0.25, 0.0))
                assert found.device.type == device.type
                assert torch.equal(found.cpu(), store.load(name, (1.0, 0.25, 0.0)))
    assert (len(images.there), len(images.waiting)) == (there, left)
    assert images.room_bytes >= 0
    assert sum(p.numel() for p in images.there.values()) == room - images.room_bytes
