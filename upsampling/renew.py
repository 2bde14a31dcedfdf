"""A round of render consistency: `python -m upsampling.renew -s LR_SCENE --renders DIR -o DIR --model FILE`.

Each view's render by a 3D model, which all views have shaped, is noised a little, denoised by a diffusion prior that is
told the LR view, and projected onto that view: detail that the model averaged away comes back where the prior knows it,
from a beginning on which all views agree. Training on these frames and rendering again is the next round (3DSR, 2025,
arXiv 2508.04090, whose rounds are the steps of one walk).
"""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arguments.flags import parse_groups, settings
from arguments.loading import CommonParams, ModelParams
from arguments.lr_kernel import kernel_files, projecting, refuse_unknown
from arguments.priors import PriorParams
from arguments.renew import RenewParams
from priors.making import Loading, listed
from priors.samplers import PriorUpsampler, hub_commits, input_files, load_sampler
from scene import Scene, open_scene
from scene.files import scene_inputs
from scene.image_files import read_image, write_png
from upsampling.fusion import internal_files, internal_planes
from upsampling.planes import alpha_plane, colour_plane, stored
from upsampling.sources import known_kernel
from utils import errors, record, rng
from utils.compute import choose_device, set_threads, use_device
from utils.errors import UserError
from utils.folders import refuse_inside
from utils.log import Progress, say, set_quiet


def load(
    common: CommonParams, model: ModelParams, prior: PriorParams, params: RenewParams, scene: Scene
) -> PriorUpsampler:
    """The prior that renews.

    Raises
    ------
    UserError : it has no such walk, files of it are missing, or projection without a kernel.
    """
    device = choose_device(common.device)
    kernel = known_kernel(scene, model.lr_kernel)
    refuse_unknown(projecting(False, params.upsampler, prior.project_lr), kernel, scene.degradation is not None)
    loading = Loading(device, params.scale, params.download, listed(params.trust_weights))
    net = load_sampler(params.upsampler, prior, loading, kernel, common.seed)
    if net.maker.renew is None:
        raise UserError(f"--upsampler {params.upsampler}: has no walk that could begin with an image")
    return net


def renew(
    net: PriorUpsampler,
    params: RenewParams,
    scene: Scene,
    files: Mapping[str, Path],
    device: torch.device,
    resume: bool,
) -> list[Path]:
    """Write the renewed frames of all training views.

    Parameters
    ----------
    files : renders by view. resume : frames that are there are of these settings and stay.
    """
    out, names = Path(params.output_path), list(files)
    progress = Progress("renew", len(names), "frame")
    for done, name in enumerate(names, 1):
        path = out / f"{name}.png"
        if not (resume and path.is_file()):
            raw = scene.images.raw(name)
            planes = internal_planes(read_image(files[name]), raw)
            lr, alpha = colour_plane(raw).to(device), alpha_plane(raw).to(device) if raw.shape[2] == 4 else None
            colour = _one(net, lr, alpha, planes[:3].to(device), params.level, "" if net.shared else name).cpu()
            write_png(path, stored(torch.cat([colour, planes[3:]])))
        progress.update(done)
    progress.close()
    return [out / f"{name}.png" for name in names]


def _one(
    net: PriorUpsampler,
    lr: Float[Tensor, "3 h w"],
    alpha: Float[Tensor, "h w"] | None,
    render: Float[Tensor, "3 H W"],
    level: float,
    own: str,
) -> Float[Tensor, "3 H W"]:
    """Mean of the walks from a render. own : whose noise alone it is, "" = that of all views."""
    assert net.maker.renew is not None
    window = lr.expand(net.maker.frames, -1, -1, -1)  # neighbours' renders are in the model already
    height, width = render.shape[-2:]
    renew_one = net.maker.renew
    if alpha is not None:
        net = net.masked([alpha])
    known = net.known((width, height), (lr.shape[-1], lr.shape[-2]), net.masks[0] if net.masks else None)
    with torch.no_grad():
        draws = [rng.generator(net.seed, "renew", *filter(None, (own, walk))) for walk in range(net.samples)]
        image = torch.stack([renew_one(window, render, level, known, of) for of in draws]).mean(0)
        return (image if known is None else known.settled(image, lr)).float()


def main() -> None:
    """Renew the frames of a scene."""
    groups = (CommonParams, ModelParams, PriorParams, RenewParams)
    common, model, prior, params = parse_groups("upsampling.renew", __doc__.partition("\n\n")[2], groups)
    set_quiet(common.quiet)
    set_threads(common.threads)
    device = choose_device(common.device)
    use_device(device)
    scene = open_scene(model, common.compat)
    out = Path(params.output_path)
    refuse_inside(out, model.source_path, scene.hr_root, params.renders)
    files = internal_files(Path(params.renders), scene.train, scene.images, params.scale, "--renders")
    weights = input_files(params.upsampler, prior, listed(params.trust_weights), params.download)
    inputs = {**scene_inputs(scene, scene.train), "renders": list(files.values()), "weights": weights}
    inputs |= kernel_files(model.lr_kernel)
    kept = settings(common, prior, params) | {"lr_kernel": model.lr_kernel}
    if common.dry_run:
        say(f"{len(files)} frames would be renewed; nothing was written")
        return

    def clear() -> None:
        for name in files:
            (out / f"{name}.png").unlink(missing_ok=True)

    net, code = cache(partial(load, common, model, prior, params, scene)), ("upsampling", "priors")
    with record.step(out, "renew", kept, inputs, code, common, clear=clear, ready=net) as attempt:
        if not attempt.up_to_date:
            attempt.outputs = renew(net(), params, scene, files, device, attempt.resume)
            attempt.notes["models"] = hub_commits(params.upsampler, prior)
    say(f"wrote {len(files)} frames to {out}")


if __name__ == "__main__":
    errors.run(main)
