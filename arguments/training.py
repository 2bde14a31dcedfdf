"""Settings of training: the optimiser of the original 3DGS code (2023 defaults) and the super-resolution objective."""

from dataclasses import dataclass, fields

from arguments.flags import opt
from utils.errors import UserError

NOT_NEGATIVE = (
    *("position_lr_init", "position_lr_final", "feature_lr", "opacity_lr", "scaling_lr", "rotation_lr"),
    *("percent_dense", "densify_grad_threshold", "min_opacity", "prune_screen_px", "max_gaussians"),
    *("densify_from_iter", "densify_until_iter", "noise_lr", "opacity_reg", "scale_reg"),
    *("exposure_lr_init", "exposure_lr_final", "exposure_lr_delay_steps", "depth_l1_weight_init"),
    "depth_l1_weight_final",
)
OF_MCMC = ("noise_lr", "opacity_reg", "scale_reg")
OF_ADC = ("abs_grad", "prune_screen_px", "densify_dropout")


@dataclass(frozen=True)
class OptimizationParams:
    """How Gaussians are optimised"""

    iterations: int = opt(30_000, "optimisation steps")
    position_lr_init: float = opt(0.00016, "learning rate of the means at the start, times the scene's extent")
    position_lr_final: float = opt(0.0000016, "learning rate of the means at the end, times the scene's extent")
    position_lr_delay_mult: float = opt(
        0.01, "factor on the first steps; as in the original, without a delay no effect"
    )
    position_lr_max_steps: int = opt(30_000, "steps over which the means' learning rate decays")
    feature_lr: float = opt(0.0025, "learning rate of the base colours; the higher bands get a twentieth")
    opacity_lr: float = opt(0.05, "learning rate of the opacity logits")
    scaling_lr: float = opt(0.005, "learning rate of the log scales")
    rotation_lr: float = opt(0.001, "learning rate of the quaternions")
    percent_dense: float = opt(0.01, "size that separates cloning from splitting, as a fraction of the extent")
    lambda_dssim: float = opt(0.2, "weight of 1 - SSIM in each loss; L1 has the rest")
    densification: str = opt(
        "adc",
        "adc: clone, split and prune as 3DGS does; mcmc: 3DGS-MCMC, 5 % more Gaussians a time up to --max_gaussians,"
        " dead ones moved to live ones, noise on the means, no opacity resets",
        choices=("adc", "mcmc"),
    )
    noise_lr: float = opt(5e5, "mcmc: factor on the noise, times the means' learning rate")
    opacity_reg: float = opt(0.01, "mcmc: weight of the mean opacity in the loss")
    scale_reg: float = opt(0.01, "mcmc: weight of the mean scale [world units] in the loss")
    densification_interval: int = opt(100, "iterations between densifications")
    opacity_reset_interval: int = opt(3000, "iterations between opacity resets")
    densify_from_iter: int = opt(500, "no densification up to this iteration")
    densify_until_iter: int = opt(15_000, "no densification from this iteration on")
    densify_grad_threshold: float = opt(0.0002, "mean screen-space gradient from which a Gaussian is densified")
    densify_dropout: float = opt(
        0.0,
        "GaussianSR's dropout: each candidate is passed over with this probability, drawn anew in each densification",
    )
    random_background: bool = opt(False, "a random background colour in each iteration")
    min_opacity: float = opt(0.005, "Gaussians fainter than this are pruned when densifying")
    prune_screen_px: float = opt(
        0.0,
        "prune Gaussians of a larger screen radius after the first opacity reset; 20 is the 3DGS paper's rule, 0 = off"
        " as in the released code, whose rule never fires",
    )
    optimizer_type: str = opt(
        "default",
        "default: Adam on all Gaussians, also those that a view does not see; sparse_adam: only on those that it sees",
        choices=("default", "sparse_adam"),
    )
    abs_grad: bool = opt(
        False,
        "densify by sums of absolute gradients over pixels (AbsGS), which do not cancel: they are larger, so raise"
        " --densify_grad_threshold too (gsplat: 0.0008)",
    )
    filter_3d: bool = opt(
        False,
        "Mip-Splatting's 3D filter: no Gaussian gets thinner than what the training views resolve; the PLY has it"
        " built in (that paper also has --antialiasing --dilation 0.1)",
    )
    filter_3d_rate: str = opt(
        "frames",
        "how sharp --filter_3d takes the views to be: frames: as they are rendered; lr: as the LR views; confidence:"
        " between the two as the weights of --confidence say",
        choices=("frames", "lr", "confidence"),
    )
    exposure_lr_init: float = opt(
        0.0,
        "learning rate at the start (3DGS of 2024: 0.01) of an affine change of colour for each training view; 0 = off;"
        " renders are made without it",
    )
    exposure_lr_final: float = opt(0.001, "the same at the end")
    exposure_lr_delay_steps: int = opt(0, "iterations over which a factor on it rises to 1")
    exposure_lr_delay_mult: float = opt(0.0, "that factor at the start")
    depth_l1_weight_init: float = opt(1.0, "weight of the depths' loss at the start; only with --depths")
    depth_l1_weight_final: float = opt(0.01, "the same at the end")
    sh_interval: int = opt(1000, "iterations after which one more band of spherical harmonics is used")
    max_gaussians: int = opt(
        0,
        "densify no further than this, those with the largest gradients first; a start with more is kept; 0 = no limit",
    )
    lambda_tex: float = opt(0.6, "weight of the pseudo-HR frames' loss; the LR views' loss has the rest")
    lambda_tex_final: float = opt(-1.0, "weight of the frames' loss at the end of a linear schedule; -1 = constant")
    lambda_tex_anneal: float = opt(0.8, "fraction of the iterations over which the weight changes")
    subpixel: str = opt(
        "",
        "downscale of the LR loss: bicubic or avg; default: as the LR views were made",
        choices=("", "bicubic", "avg"),
    )

    @property
    def uses_frames(self) -> bool:
        """Whether the pseudo-HR frames' loss ever has a weight."""
        return self.lambda_tex > 0 or self.lambda_tex_final > 0

    @property
    def uses_lr(self) -> bool:
        """Whether the LR views' loss ever has a weight."""
        return self.lambda_tex < 1 or 0 <= self.lambda_tex_final < 1

    def __post_init__(self) -> None:
        for name, low in (("iterations", 1), ("position_lr_max_steps", 1), ("densification_interval", 1)):
            _at_least(self, name, low)
        for name in ("opacity_reset_interval", "sh_interval"):
            _at_least(self, name, 1)
        for name in NOT_NEGATIVE:
            _at_least(self, name, 0)
        for name in ("lambda_dssim", "lambda_tex", "lambda_tex_anneal", "exposure_lr_delay_mult", "densify_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: a number from 0 to 1 is expected")
        self._check_density()
        if self.filter_3d_rate != "frames" and not self.filter_3d:
            raise UserError(f"--filter_3d_rate {self.filter_3d_rate}: there is no filter without --filter_3d")
        if self.exposure_lr_init > 0 and self.exposure_lr_final == 0:
            raise UserError("--exposure_lr_final 0: above 0 is expected, as its logarithm falls in a straight line")
        if self.lambda_tex_final != -1 and not 0 <= self.lambda_tex_final <= 1:
            raise UserError(f"--lambda_tex_final {self.lambda_tex_final}: -1 or a number from 0 to 1 is expected")

    def _check_density(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        mcmc = self.densification == "mcmc"
        for name in OF_ADC if mcmc else OF_MCMC:
            if getattr(self, name) != defaults[name]:
                other = "adc" if mcmc else "mcmc"
                raise UserError(f"--{name}: only --densification {other} uses it; leave one of the two away")
        if mcmc and not self.max_gaussians:
            raise UserError("--densification mcmc: needs --max_gaussians, the number that it grows to")


@dataclass(frozen=True)
class TrainingParams:
    """What is trained on, tested, and kept"""

    frames: str = opt(
        "", "folder of pseudo-HR frames; default: OUT/hr where it is; none = train on the scene's own", result=False
    )
    choose_lambda: bool = opt(
        False,
        "choose --lambda_tex and --lambda_tex_final, without HR truth, by short trainings of them and of"
        " --lambda_candidates, compared on held-out LR views; in doubt they stay as they are; see OUT/lambda.json",
    )
    lambda_candidates: tuple[str, ...] = opt(
        ("0.6", "0.3", "0.1", "0.05", "0.6:0.05", "0.9:0.02"),
        "weights of the frames' loss that --choose_lambda tries beside the configured one; 0.9:0.1 = a schedule",
    )
    choose_iterations: int = opt(
        0, "optimisation steps of all candidates together; 0 = as many as --iterations, at most 6000"
    )
    held_out_every: int = opt(8, "--choose_lambda holds out every so many training views")
    confidence: str = opt(
        "",
        "folder of 8-bit grey maps NAME.png of the frames' size, which multiply each pixel's part in the frames' loss:"
        " 255 = weight 1, 0 = left to the LR views",
        result=False,
    )
    depths: str = opt(
        "",
        "folder of NAME.npz (render.py --geometry, of a model of the LR views): the inverse depth is held near theirs",
        result=False,
    )
    scale: int = opt(0, "HR size over LR size; 0 = from the frames; with --lambda_tex 0 no frames are needed")
    init_points: str = opt(
        "scene",
        "start from the scene's points (random ones where it has none), or from the visual hull of views with alpha:"
        " far fewer, for short runs on a CPU; lr_model: from the Gaussians of the model in OUT/lr_model, which run.py"
        " makes",
        choices=("scene", "hull", "lr_model"),
    )
    init_ply: str = opt("", "start from the Gaussians of this PLY instead", result=False)
    init_gaussians: int = opt(
        -1,
        "of a model to start from: leave out what contributes less than 2 px to the training views, split the rest to"
        " this number. 0 = all as they are; -1 = with --init_points lr_model four times as many as are left, as"
        " far as that leaves half of --max_gaussians to densification; else 0",
    )
    start_checkpoint: str = opt("", "continue from this checkpoint, or from the latest", result=False)
    test_iterations: tuple[int, ...] = opt((7000, 30_000), "iterations at which views are measured", result=False)
    save_iterations: tuple[int, ...] = opt((7000, 30_000), "iterations at which a PLY is written; the last always is")
    checkpoint_iterations: tuple[int, ...] = opt((), "iterations whose checkpoint is kept", type=int, result=False)
    checkpoint_interval: int = opt(1000, "iterations between rolling checkpoints, the last two are kept", result=False)
    allow_mismatch: bool = opt(False, "continue from a checkpoint that was made from other things", result=False)
    log_interval: int = opt(10, "iterations between lines of log.jsonl", result=False)
    deterministic: bool = opt(
        False, "on a GPU add in a fixed order, slower: two runs on it give the same bits. On the CPU they always do"
    )
    tensorboard: bool = opt(False, "write TensorBoard events (needs the tensorboard package)", result=False)
    ip: str = opt("127.0.0.1", "accepted for scripts written for 3DGS; no effect", result=False)
    port: int = opt(6009, "accepted for scripts written for 3DGS; no effect", result=False)
    debug_from: int = opt(-1, "accepted for scripts written for 3DGS; no effect", result=False)
    detect_anomaly: bool = opt(False, "accepted for scripts written for 3DGS; no effect", result=False)
    disable_viewer: bool = opt(False, "accepted for scripts written for 3DGS; no effect", result=False)

    def __post_init__(self) -> None:
        _at_least(self, "scale", 0)
        _at_least(self, "init_gaussians", -1)
        if self.init_gaussians > 0 and not self.init_ply and self.init_points != "lr_model":
            raise UserError(f"--init_gaussians {self.init_gaussians}: of which model? name its PLY with --init_ply")
        _at_least(self, "choose_iterations", 0)
        _at_least(self, "held_out_every", 2)
        _at_least(self, "checkpoint_interval", 1)
        _at_least(self, "log_interval", 1)


def _at_least(group: object, name: str, low: int) -> None:
    value = getattr(group, name)
    if not value >= low:  # written so that NaN is refused
        raise UserError(f"--{name} {value}: {low} or more is expected")
