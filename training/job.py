"""A run whose inputs are loaded and checked, and how its settings name them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import flags
from arguments.guidance import GuidanceParams
from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.lr_kernel import kernel_files
from arguments.steps import STEPS
from arguments.training import OptimizationParams, TrainingParams
from scene import Scene
from scene.files import scene_inputs
from scene.gaussians import Gaussians
from training import mcmc
from training.depth import depth_path
from training.engines import choose, instruction_set, render_options
from training.guidance import Guidance, load_guidance, prior_files
from training.start import LR_MODEL, initial_gaussians, start_file
from training.state import TrainState
from training.trainer import BLACK, WHITE, Generators, Trainer, World
from training.views import Background, TrainingViews, frame_path
from training.warm_start import warm_start
from utils.errors import UserError
from utils.provenance import hash_code, hash_files


@dataclass(frozen=True)
class Settings:
    """The step's groups, in the order of arguments.steps."""

    common: CommonParams
    model: ModelParams
    pipeline: PipelineParams
    optimisation: OptimizationParams
    training: TrainingParams
    guidance: GuidanceParams = field(default_factory=GuidanceParams)

    @property
    def results(self) -> dict[str, Any]:
        """Every setting that changes the result."""
        groups = (self.common, self.model, self.pipeline, self.optimisation, self.training, self.guidance)
        return flags.settings(*groups)

    @property
    def code(self) -> tuple[str, ...]:
        """Packages whose code makes the result."""
        return STEPS["train"].code + (("priors",) if self.guidance.sds else ())


@dataclass(frozen=True)
class Job:
    """A run whose inputs are loaded and checked.

    loaded : guidance, once it was asked for; `replace` hands it on to jobs of other weights or fewer views.
    """

    settings: Settings
    out: Path
    scene: Scene
    views: TrainingViews
    frames: Path | None
    device: str
    loaded: list[Guidance | None] = field(default_factory=list, compare=False)

    @property
    def background(self) -> Background:
        """Of measurements; training on random backgrounds is measured on black."""
        return WHITE if self.settings.model.white_background else BLACK

    @property
    def extended(self) -> bool:
        """Whether steps have more than the native kernels' own: exposures, depths."""
        return self.settings.optimisation.exposure_lr_init > 0 or self.views.inverse_depths is not None

    @property
    def guidance(self) -> Guidance | None:
        """What --sds names, loaded when it is first asked for. Raises UserError as `load_guidance`."""
        if not self.loaded:
            settings, degraded = self.settings, self.scene.degradation is not None
            kernel = next((view.kernel for view in self.views.views.values() if view.kernel is not None), None)
            self.loaded.append(load_guidance(settings.guidance, settings.common.seed, self.device, degraded, kernel))
        return self.loaded[0]

    def gaussians(self) -> Gaussians:
        """The start of the optimisation."""
        model, training = self.settings.model, self.settings.training
        ply = start_file(training, self.out)
        start = initial_gaussians(self.scene.points, ply, model.sh_degree, self.device)
        if not ply and self.settings.optimisation.densification == "mcmc":
            return mcmc.begun(start)
        automatic = -1 if training.init_points == LR_MODEL else 0
        wanted = training.init_gaussians if training.init_gaussians >= 0 else automatic
        if not wanted:
            return start
        cameras = (self.scene.cameras[name] for name in self.scene.train)
        most = self.settings.optimisation.max_gaussians
        return warm_start(start, cameras, wanted, render_options(self.settings.pipeline), most)

    def trainer(self) -> Trainer:
        """A trainer before its first iteration."""
        settings = self.settings
        world = World(self.scene.extent, settings.model.sh_degree, settings.model.white_background)
        engine = choose(settings.pipeline, self.device, settings.optimisation.abs_grad, self.extended)
        state = TrainState.start(self.gaussians())
        generators = Generators.seeded(settings.common.seed)
        return Trainer(self.views, engine, state, settings.optimisation, world, generators, self.guidance)

    def inputs(self) -> dict[str, list[Path]]:
        """Files that the result is made from, by group."""
        names = self.scene.train
        groups = scene_inputs(self.scene, names)
        # empty groups too: a run with frames is none without them
        groups["frames"] = [frame_path(self.frames, n) for n in names if self.frames and self.views.hr is not None]
        groups["confidence"] = [self.views.confidence.path(n) for n in names if self.views.confidence is not None]
        training = self.settings.training
        groups["depths"] = [depth_path(Path(training.depths), n) for n in names if training.depths]
        ply = start_file(training, self.out)
        groups["init_ply"] = [ply] if ply else []
        groups["prior"] = prior_files(self.settings.guidance)
        groups |= kernel_files(self.settings.model.lr_kernel)
        return groups

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint of this run is made from (trust in it: training.checkpoint), as JSON values."""
        hashes = {f"{name} files": hash_files(paths)["sha256"] for name, paths in self.inputs().items()}
        facts = {"seed": self.settings.common.seed, "device": self.device.split(":")[0]}
        facts |= {
            "instruction set": instruction_set(self.settings.pipeline, self.device),
            "code": hash_code(self.settings.code),
        }
        found: dict[str, Any] = json.loads(json.dumps({"settings": self.settings.results} | hashes | facts))
        return found


def frames_folder(flag: str, out: Path) -> Path | None:
    """The folder of pseudo-HR frames that --frames and OUT decide on; None = train on the scene's own images.

    Raises
    ------
    UserError : a folder was named that is not there.
    """
    if flag == "none":
        return None
    folder = Path(flag) if flag else out / "hr"
    if flag and not folder.is_dir():
        raise UserError(f"--frames {flag}: no such folder; make frames with vsr_upsample.py")
    return folder if folder.is_dir() else None
