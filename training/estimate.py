"""How much memory, disk and time a run will take, said before it starts."""

from dataclasses import dataclass

from scene.gaussians import Gaussians
from training.views import TrainingViews

BASE_BYTES = 260 << 20  # interpreter, PyTorch and its libraries, resident
# Parameter and two moments; again in the last good state; again while a checkpoint is read back; and the spare buffers
# of training.reserve, whose room for more rows is resident only once it is used.
COPIES = 10
STATISTICS_BYTES = 2 * 3 * 4
RASTERIZER_BYTES = 460  # a Gaussian's projected record, its gradients and its entries in the sorted lists
IMAGE_PLANES = 24  # float planes of the render, its gradient, the target and the loss's filters
IMAGES_KEPT_BYTES = 2 << 30  # ImageStore's bound


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak with `gaussians` Gaussians, and of one checkpoint. of : whose memory they are."""

    of: str
    gaussians: int
    peak_bytes: int
    checkpoint_bytes: int
    bytes_per_gaussian: int


def floats_per_gaussian(sh_degree: int) -> int:
    """3 means, 3 scales, 4 quaternion, 1 opacity, 3 per colour coefficient."""
    return 11 + 3 * (sh_degree + 1) ** 2


def estimate(views: TrainingViews, gaussians: Gaussians, max_gaussians: int) -> Estimate:
    """Estimate a run's peak from image sizes and the cap on Gaussians (without one: from their present number).

    Notes
    -----
    Checked against the CPU's resident memory. For a GPU the same is said, as room for more rows is taken there at once
    but checkpoints are read back elsewhere; it has not been compared with what a GPU counts.
    """
    count = max(max_gaussians, gaussians.num)
    floats = floats_per_gaussian(gaussians.sh_degree)
    each = 4 * floats * COPIES + STATISTICS_BYTES + RASTERIZER_BYTES
    camera = views.largest
    planes = IMAGE_PLANES * 4 * camera.width * camera.height
    kept = min(_decoded_bytes(views), IMAGES_KEPT_BYTES)
    checkpoint = count * (3 * 4 * floats + 3 * 4)
    of = "memory" if views.device.type == "cpu" else "GPU memory"
    return Estimate(of, count, BASE_BYTES + planes + kept + count * each, checkpoint, each)


def _decoded_bytes(views: TrainingViews) -> int:
    total = 0
    for store in filter(None, (views.hr, views.lr, views.confidence)):
        for name in views.views:
            width, height = store.size(name)
            total += width * height * (4 if store.has_alpha(name) else 3)
    return total


def megabytes(size_bytes: int) -> str:
    """As people read it."""
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.2f} GB"
