"""Settings of the upsampling step."""

from dataclasses import dataclass

from arguments.flags import opt
from utils.errors import UserError
from utils.plugins import check_name

SINGLE_IMAGE = ("bicubic", "lanczos", "rlfn", "span", "spandrel")  # upsamplers to which other views say nothing
PATH_ONLY = ("basicvsr_pp", "iconvsr", "psrt")  # video networks that take no graph
PRIORS = (  # diffusion priors: arguments/priors.py
    *("small", "ddnm", "ddnm_sd3", "ldm_sr", "sd_x4", "diffusehigh"),
    *("stablesr", "stablesr_turbo", "diffbir", "seesr", "addsr", "resshift"),
)
WINDOWED = ("small", "ddnm")  # priors whose network may look at several frames: its file says at how many
PROJECTING = ("ddnm", "ddnm_sd3")  # priors that are nothing without the operator of the LR views
UNALIGNED = (*SINGLE_IMAGE, *PRIORS)  # to whom no view hands features
UPSAMPLERS = ("basicvsr", *PATH_ONLY, *UNALIGNED)
NEIGHBOUR_COSTS = ("angle",)


def refuse_both_orders(ensemble: int) -> None:
    """Raise UserError where frames are made alone and an ensemble counts both orders of them."""
    if ensemble in (2, 8):
        raise UserError(
            f"--ensemble {ensemble}: every frame is made alone, so both orders give the same; give --ensemble "
            f"{ensemble // 2}"
        )


@dataclass(frozen=True)
class UpsamplingParams:
    """Which network makes the HR frames, and how"""

    upsampler: str = opt(
        "basicvsr",
        "network (basicvsr, basicvsr_pp, iconvsr, psrt, rlfn, span), filter (bicubic, lanczos), spandrel (any network "
        "that this package knows, of --weights FILE), diffusion prior (small, ddnm, ddnm_sd3, ldm_sr, sd_x4, "
        "diffusehigh, stablesr, stablesr_turbo, diffbir, seesr, addsr, resshift), or a callable MODULE:NAME",
    )
    sequences: str = opt("", "sequences.json; default: the one in the output folder", result=False)
    frames: str = opt("", "plain folder of frames to upsample instead of a scene, sorted by name", result=False)
    output_path: str = opt("", "output folder of --frames", "-o", result=False)
    flow: str = opt(
        "auto",
        "how features are moved between views: learned (the network's own flow), geometry (depth of an LR-trained model"
        " and cameras), or auto = geometry where there is some",
        choices=("auto", "learned", "geometry"),
    )
    propagation: str = opt(
        "auto",
        "path: features run along each sequence; graph: each view gets from its nearest views; none: every frame alone"
        " (T = 1); auto = graph with --flow geometry where the network can, else path",
        choices=("auto", "path", "graph", "none"),
    )
    geometry: str = opt("", "folder of depths (render.py --geometry); default: OUT/geometry", result=False)
    neighbours: int = opt(3, "views that a view gets features from in a graph")
    passes: int = opt(2, "rounds of a graph in each direction; from the second on all views have features")
    max_angle: float = opt(
        0.0,
        "angle between two views, about the scene's centre [degrees], from which nothing is handed on; 0 = 30 with"
        " geometry, 20 with learned flow; without cameras, or as in the paper, any",
    )
    neighbour_cost: str = opt("angle", "which views are nearest in a graph: angle, or a function MODULE:NAME")
    occlusion_tolerance: float = opt(
        0.03, "difference of a surface's depths in two views, as a part of the depth, up to which both see it"
    )
    scale: int = opt(4, "magnification; networks do 4, filters any")
    weights: str = opt("", "weights: a file, or a name of the table (python -m utils.weights lists it)")
    download: bool = opt(False, "fetch missing weights from their official address", result=False)
    trust_weights: str = opt(
        "", "SHA-256 of a weight file whose source publishes none; of several, with commas", result=False
    )
    precision: str = opt(
        "auto",
        "of convolutions: fp32, bf16, fp16 (GPU only), or auto = bf16 where the device multiplies it (0.01 dB lower)",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    alpha: str = opt(
        "network",
        "how an alpha channel is upsampled: network (a second pass; published priors: bicubic) or bicubic",
        choices=("network", "bicubic"),
    )
    ensemble: int = opt(
        1,
        "mean over so many estimates of a frame, as many times the work: 2 = the views in their order and in reverse,"
        " 4 = as they are and mirrored, 8 = both; how far they differ is written to hr/confidence",
        choices=(1, 2, 4, 8),
    )
    internal: str = opt(
        "",
        "folder of renders of an LR-trained model (render.py --hr_frames): they replace the frames where both disagree,"
        " or are mixed with them",
        result=False,
    )
    internal_threshold: float = opt(
        0.6, "relative difference from which a pixel is taken from --internal (IE-SRGS: 0.6, real scenes 0.9); 0 = all"
    )
    internal_weight: float = opt(
        0.0, "share of --internal in every pixel, 0-1, instead of choosing pixels by --internal_threshold; 0 = choose"
    )
    project: bool = opt(
        False, "move each frame the least that makes its LR version equal the LR view, before it is rounded to 8 bit"
    )
    max_memory: float = opt(
        0.0,
        "GB of working memory, on a GPU of its memory; larger clips are cut into tiles and chunks that overlap; "
        "0 = 4, on a GPU 90 % of what is free",
    )
    deterministic: bool = opt(
        False,
        "on a GPU the same kernels in each run, slower: two runs give the same bits. On the CPU they always do",
    )
    random_weights: bool = opt(False, "for tests only: untrained network, every result is stamped RANDOM WEIGHTS")

    def __post_init__(self) -> None:
        check_name("--upsampler", self.upsampler, UPSAMPLERS)
        check_name("--neighbour_cost", self.neighbour_cost, NEIGHBOUR_COSTS)
        if self.scale < 1:
            raise UserError(f"--scale {self.scale}: a whole number from 1 is expected")
        if not 0 <= self.internal_threshold < float("inf"):
            raise UserError(f"--internal_threshold {self.internal_threshold}: a number from 0 is expected")
        self._check_internal_weight()
        alone = self.upsampler in UNALIGNED and self.upsampler not in WINDOWED
        if alone or self.propagation == "none":
            refuse_both_orders(self.ensemble)
        if not self.max_memory >= 0:
            raise UserError(f"--max_memory {self.max_memory}: gigabytes, 0 or more, are expected")
        for name in ("neighbours", "passes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: a whole number from 1 is expected")
        if not 0 <= self.max_angle <= 180:
            raise UserError(f"--max_angle {self.max_angle}: degrees from 0 (automatic) to 180 are expected")
        if not 0 < self.occlusion_tolerance <= 1:
            raise UserError(f"--occlusion_tolerance {self.occlusion_tolerance}: more than 0, up to 1, is expected")
        if self.propagation == "graph" and self.upsampler in UNALIGNED:
            does = "makes every frame alone" if alone else "sees the neighbours in the sequence"
            raise UserError(f"--propagation graph: {self.upsampler} {does}; leave it out")
        if self.propagation == "graph" and self.upsampler in PATH_ONLY:
            raise UserError(f"--propagation graph: {self.upsampler} propagates along a path only; leave it out")
        if self.frames and (self.flow == "geometry" or self.propagation == "graph"):
            raise UserError("--frames: a folder has no cameras; --flow geometry and --propagation graph need a scene")
        if bool(self.frames) != bool(self.output_path):
            raise UserError("--frames DIR and --output_path DIR (-o) go together: frames in, frames out")

    def _check_internal_weight(self) -> None:
        weight, threshold = self.internal_weight, self.internal_threshold
        if not 0 <= weight <= 1:
            raise UserError(f"--internal_weight {weight}: a share from 0 to 1 is expected")
        if weight and not self.internal:
            raise UserError(f"--internal_weight {weight}: there is nothing to mix with; name a folder with --internal")
        if weight and threshold != UpsamplingParams.internal_threshold:
            raise UserError(
                f"--internal_weight {weight} mixes all pixels, --internal_threshold {threshold} chooses some; give one"
            )
