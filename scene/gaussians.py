"""The splats of a scene as raw (stored) parameters.

A stored value and its activation never share a name: `log_scales` / `scales`, `logit_opacities` / `opacities`. `quats`
are (w, x, y, z) and not normalised: the rasterizers normalise. N splats, K = (degree + 1)^2 - 1 higher
spherical-harmonics coefficients.
"""

from dataclasses import dataclass
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

from scene.points import SH_C0, PointCloud
from utils.errors import UserError

FIELDS = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")
INITIAL_OPACITY = 0.1  # Kerbl et al. 2023, reference code


@dataclass(eq=False)
class Gaussians:
    """Raw parameters, float32 and contiguous where they come from a file or a cloud.

    Attributes
    ----------
    means : [N, 3] world positions.
    log_scales : [N, 3] natural logarithm of the standard deviation along each axis, world units.
    quats : [N, 4] rotation (w, x, y, z), any non-zero length.
    logit_opacities : [N, 1].
    sh0 : [N, 1, 3] constant colour coefficient; colour = 0.5 + SH_C0 * sh0.
    shN : [N, K, 3] the others, band by band; K = 15 for degree 3.
    """

    means: Float[Tensor, "N 3"]
    log_scales: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    logit_opacities: Float[Tensor, "N 1"]
    sh0: Float[Tensor, "N 1 3"]
    shN: Float[Tensor, "N K 3"]

    @property
    def num(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """The highest degree that shN has room for."""
        return isqrt(self.shN.shape[1] + 1) - 1

    @property
    def scales(self) -> Float[Tensor, "N 3"]:
        return self.log_scales.exp()

    @property
    def opacities(self) -> Float[Tensor, "N 1"]:
        return self.logit_opacities.sigmoid()

    @classmethod
    def from_points(cls, points: PointCloud, sh_degree: int, mean_sq_dist: Float[Tensor, "N"]) -> "Gaussians":
        """Start values of Kerbl et al. 2023: round splats as large as the distance to the neighbours, opacity 0.1.

        Parameters
        ----------
        points : N >= 1 coloured points.
        sh_degree : 0 to 3, room for the colour coefficients (all but the constant start at zero).
        mean_sq_dist : [N] mean squared distance to the 3 nearest neighbours (`simple_knn._C.distCUDA2`), at least 1e-7.

        Raises
        ------
        UserError : there are no points.
        """
        n = len(points.xyz)
        if n == 0:
            raise UserError("the initial point cloud is empty: mend or remove its file")
        log_scale = mean_sq_dist.to(torch.float32).clamp_min(1e-7).sqrt().log()
        quats = torch.zeros(n, 4)
        quats[:, 0] = 1.0
        opacity = torch.full((n, 1), INITIAL_OPACITY)
        colours = torch.from_numpy(points.rgb).to(torch.float32) / 255.0
        return cls(
            means=torch.from_numpy(points.xyz).to(torch.float32).clone(),
            log_scales=log_scale[:, None].repeat(1, 3),
            quats=quats,
            logit_opacities=torch.logit(opacity),
            sh0=((colours - 0.5) / SH_C0)[:, None, :].contiguous(),
            shN=torch.zeros(n, (sh_degree + 1) ** 2 - 1, 3),
        )
