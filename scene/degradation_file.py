"""degradation.json: how the LR views of a scene were degraded. A scene that holds it has no linear LR operator.

{"preset": "realesrgan" | "mild" | "classical", "per": "scene" | "view", "seed": int, "scale": HR px per LR px,
 "alpha": "none" | "straight", "hr_root": folder of the HR scene (absolute, or relative to this one),
 "sizes": [{"hr": [W, H], "used": [W, H] after the crop, "lr": [w, h]}, ...] one entry for each distinct triple,
 "steps": {"" (per scene) or NAME (per view): [{"step": "blur" | "resize" | "noise" | "jpeg", its fields...}, ...]},
 "noise_seeds": {NAME: int}: step number i of a view's list draws from numpy.random.default_rng([seed, i]),
 "made": {settings, digest of the source images, versions}}

The fields of the steps are those of scene.degrade_kernels.Blur (radians, px) and of scene.degrade_steps.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arguments.lr_kernel import DEGRADATION_FILE
from utils.atomic import read_json, write_json
from utils.errors import UserError

FILE_NAME = DEGRADATION_FILE
_MAX_BYTES = 64 << 20  # per view a kilobyte and a half


@dataclass(frozen=True)
class DegradationFile:
    """What the file holds; see the module's docstring."""

    preset: str
    per: str = "scene"
    seed: int = 0
    scale: int = 4
    alpha: str = "none"
    hr_root: str = ""
    sizes: tuple[dict[str, Any], ...] = ()
    steps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    noise_seeds: dict[str, int] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """The degradation in a few words, for protocols and messages: "degraded: mild, per view, seed 3"."""
        return f"degraded: {self.preset}, per {self.per}, seed {self.seed}"

    def write(self, path: str | Path) -> None:
        """Write atomically. Raises UserError where that fails."""
        write_json(path, {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()})

    @classmethod
    def read(cls, path: str | Path) -> "DegradationFile":
        """Read and check. Raises UserError naming the file and the field."""
        values = read_json(path, max_bytes=_MAX_BYTES)
        if not isinstance(values, dict) or "preset" not in values:
            raise UserError(f'{path}: a JSON object with at least {{"preset": ...}} is expected')
        known = {f: type(v) for f, v in asdict(cls("")).items()}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"{path}: unknown field {name!r}; known: {', '.join(known)}")
            expected = list if known[name] is tuple else known[name]
            if not isinstance(value, expected) or isinstance(value, bool):
                raise UserError(f"{path}: {name} = {value!r} is of the wrong type")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)
