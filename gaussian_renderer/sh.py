"""Real spherical harmonics of degree 0 to 3: colour as a function of the viewing direction.

Letters: d = (x, y, z) unit viewing direction in world axes (from the camera centre to the Gaussian), l = degree,
K = (l + 1)^2 coefficients a channel, ordered by (l, m) with m = -l..l. The sign of every function is that of the
quantum-mechanics convention (Condon-Shortley phase kept), which is what stored 3DGS models use.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from scene.points import SH_C0

MAX_DEGREE = 3
# Normalisation constants sqrt((2l + 1)(l - |m|)! / (4 pi (l + |m|)!)), times sqrt(2) for m != 0, as they multiply the
# polynomials below.
C0 = SH_C0
C1 = 0.4886025119029199
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


def num_coefficients(degree: int) -> int:
    """Coefficients a colour channel has up to and including `degree`."""
    return (degree + 1) ** 2


def basis(directions: Float[Tensor, "N 3"], degree: int) -> Float[Tensor, "N K"]:
    """Values of the (degree + 1)^2 basis functions.

    Parameters
    ----------
    directions : [N, 3] unit vectors; the caller normalises.
    degree : 0 to 3.

    Raises
    ------
    ValueError : degree is outside 0..3.

    Notes
    -----
    Polynomials of Sloan, "Efficient Spherical Harmonic Evaluation" (2013), appendix A.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"spherical-harmonics degree {degree}: need 0 to {MAX_DEGREE}")
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree >= 1:
        values += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        values += [
            C2[0] * x * y,
            -C2[0] * y * z,
            C2[1] * (2 * zz - xx - yy),
            -C2[0] * x * z,
            C2[2] * (xx - yy),
        ]
    if degree >= 3:
        values += [
            -C3[0] * y * (3 * xx - yy),
            C3[1] * x * y * z,
            -C3[2] * y * (4 * zz - xx - yy),
            C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -C3[2] * x * (4 * zz - xx - yy),
            C3[4] * z * (xx - yy),
            -C3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(values, dim=-1)


def colors_from_sh(sh: Float[Tensor, "N K 3"], directions: Float[Tensor, "N 3"], degree: int) -> Float[Tensor, "N 3"]:
    """Colours seen along `directions`: max(0, 1/2 + sum_k basis_k sh_k); a clamped channel gets no gradient.

    Parameters
    ----------
    sh : [N, K, 3] coefficients, K >= (degree + 1)^2; those above `degree` are not read.
    directions : [N, 3] unit vectors.
    degree : 0 to 3.

    Returns
    -------
    [N, 3] RGB >= 0, not limited above.
    """
    active = sh[:, : num_coefficients(degree)]  # [N, (degree + 1)^2, 3]
    return ((basis(directions, degree)[..., None] * active).sum(dim=1) + 0.5).clamp(min=0)
